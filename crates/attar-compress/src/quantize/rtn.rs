//! Round to nearest: every weight becomes the closest code under its group's scale.

use std::ops::Range;

use attar_tensor::{BlobWriter, Damage, Fit, Granularity, QuantizedTensor, Scheme};
use rayon::prelude::*;

use super::{Needs, Quantizer, Seen, WeightRows, check_finite};
use crate::{Error, Result, RowFits, ScaleSearch, Shared, distribution::Histogram, row_fits, scale::range};

/// Round to nearest.
pub(super) struct Rtn;

/// Weights in memory at a time: 4 MiB of f32.
const PIECE: usize = 1 << 20;

/// Weights per parallel task.
const PART: usize = 1 << 16;

impl Quantizer for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }

    fn version(&self) -> u32 {
        1
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn memory(&self, [rows, columns]: [usize; 2]) -> u64 {
        // A piece of weights, as much of codes, and all scales of the tensor until they are written.
        (6 * PIECE.max(columns) + 4 * rows * columns.div_ceil(16)) as u64
    }

    fn quantize(
        &self,
        weights: &dyn WeightRows,
        _: Seen<'_>,
        scheme: Scheme,
        search: ScaleSearch,
        to: BlobWriter<'_>,
        rows_done: &(dyn Fn(usize) + Sync),
    ) -> Result<Damage> {
        by_rows(weights, scheme, search, to, rows_done, |scheme, search, shared, row| row_fits(scheme, search, shared, row, None))
    }
}

/// Chooses the scales of each row by `fits`, and rounds to nearest under them.
pub(super) fn by_rows(
    weights: &dyn WeightRows,
    scheme: Scheme,
    search: ScaleSearch,
    mut to: BlobWriter<'_>,
    rows_done: &(dyn Fn(usize) + Sync),
    fits: impl Fn(&Scheme, ScaleSearch, &Shared, &[f32]) -> Result<RowFits, crate::Refusal> + Sync,
) -> Result<Damage> {
    let columns = weights.dims()[1];
    let shared = shared(weights, &scheme, search)?;
    let mut damage = Damage::default();
    in_pieces(weights, |first, values| {
        let step = (PART / columns.max(1)).max(1);
        let parts = values.par_chunks((step * columns).max(1)).enumerate();
        let parts: Vec<Part> = parts
            .map(|(at, values)| {
                let refused = |(row, columns, source)| {
                    let row = first + at * step + row;
                    Error::Scale { weight: weights.name().into(), rows: row..row + 1, columns, source }
                };
                rows(values, columns, &scheme, &|row| fits(&scheme, search, &shared, row)).map_err(refused)
            })
            .collect::<Result<_>>()?;
        for part in parts {
            damage += part.damage;
            to.append(&part.rows).map_err(attar_tensor::Error::from)?;
        }
        rows_done(first + values.len() / columns.max(1));
        Ok(())
    })?;
    to.finish(damage).map_err(attar_tensor::Error::from)?;
    Ok(damage)
}

/// Some finished rows.
struct Part {
    rows: QuantizedTensor,
    damage: Damage,
}

/// Chooses the scales of a row.
type FitsOfRow<'a> = dyn Fn(&[f32]) -> Result<RowFits, crate::Refusal> + Sync + 'a;

/// Row and columns of a group whose scale cannot be stored, and why.
type Refusal = (usize, Range<usize>, attar_tensor::Error);

fn rows(values: &[f32], columns: usize, scheme: &Scheme, fits: &FitsOfRow<'_>) -> Result<Part, Refusal> {
    let size = scheme.group(columns).max(1);
    let mut all = QuantizedTensor::empty(*scheme, columns);
    all.codes.reserve(values.len() / columns.max(1) * scheme.grid.packing().row_bytes(columns));
    let mut damage = Damage::default();
    let mut codes = vec![0; columns];
    for (at, row) in values.chunks(columns.max(1)).enumerate() {
        let mut of_row = Damage::default();
        let fits = fits(row).map_err(|(columns, source)| (at, columns, source))?;
        for (number, (group, codes)) in row.chunks(size).zip(codes.chunks_mut(size)).enumerate() {
            let fit = fits.fit(number);
            scheme.grid.encode(group, fit, codes);
            of_row += Damage::of_nearest(scheme.grid, group, fit);
        }
        damage += of_row;
        fits.push_row(&codes, &mut all);
    }
    Ok(Part { rows: all, damage })
}

/// What the rows share: a super scale that follows from the range of the tensor.
fn shared(weights: &dyn WeightRows, scheme: &Scheme, search: ScaleSearch) -> Result<Shared> {
    if !Shared::is_wanted(scheme) {
        return Ok(Shared::default());
    }
    if scheme.granularity == Granularity::Tensor {
        return shared_by_all(weights, scheme, search);
    }
    let (low, high) = whole_range(weights)?;
    Shared::supers(scheme, low, high).map_err(refused(weights))
}

fn shared_by_all(weights: &dyn WeightRows, scheme: &Scheme, search: ScaleSearch) -> Result<Shared> {
    // Whether the grid needs no search shows without a weight.
    if Shared::of_all(scheme, &Histogram::new()).map_err(refused(weights))?.is_some() {
        let known = Shared::of_all(scheme, &histogram(weights)?).map_err(refused(weights))?;
        return Ok(known.expect("it is known for any weights"));
    }
    Ok(Shared { fit: Some(whole_fit(weights, scheme, search)?), ..Shared::default() })
}

fn refused(weights: &dyn WeightRows) -> impl Fn(attar_tensor::Error) -> Error {
    let [rows, columns] = weights.dims();
    move |source| Error::Scale { weight: weights.name().into(), rows: 0..rows, columns: 0..columns, source }
}

fn histogram(weights: &dyn WeightRows) -> Result<Histogram> {
    let mut histogram = Histogram::new();
    in_pieces(weights, |_, values| {
        histogram.add(values, None);
        Ok(())
    })?;
    Ok(histogram)
}

fn whole_range(weights: &dyn WeightRows) -> Result<(f32, f32)> {
    let (mut low, mut high) = (0.0f32, 0.0f32);
    in_pieces(weights, |_, values| {
        let (least, greatest) = range(values);
        (low, high) = (low.min(least), high.max(greatest));
        Ok(())
    })?;
    Ok((low, high))
}

/// One scale for the whole tensor: the error of every candidate, over all pieces.
fn whole_fit(weights: &dyn WeightRows, scheme: &Scheme, search: ScaleSearch) -> Result<Fit<'static>> {
    let (low, high) = whole_range(weights)?;
    let candidates = (0..search.candidates(scheme)).map(|n| search.candidate(n, scheme, low, high));
    let candidates: Vec<Fit<'static>> = candidates.collect::<attar_tensor::Result<_>>().map_err(refused(weights))?;
    if let [only] = candidates.as_slice() {
        return Ok(*only);
    }
    let mut errors = vec![0.0f64; candidates.len()];
    in_pieces(weights, |_, values| {
        let parts: Vec<Vec<f64>> = values
            .par_chunks(PART)
            .map(|part| candidates.iter().map(|fit| f64::from(scheme.grid.error(part, *fit))).collect())
            .collect();
        for part in parts {
            errors.iter_mut().zip(part).for_each(|(sum, error)| *sum += error);
        }
        Ok(())
    })?;
    let best = errors.iter().enumerate().min_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at);
    Ok(candidates[best])
}

/// Reads a tensor piece by piece, in order; refuses what is not finite.
fn in_pieces(weights: &dyn WeightRows, mut each: impl FnMut(usize, &[f32]) -> Result<()>) -> Result<()> {
    let [rows, columns] = weights.dims();
    let step = (PIECE / columns.max(1)).clamp(1, rows.max(1));
    let mut values = vec![0.0; step * columns];
    for first in (0..rows).step_by(step) {
        let last = (first + step).min(rows);
        let values = &mut values[..(last - first) * columns];
        weights.read(first..last, values)?;
        check_finite(weights, first, values)?;
        each(first, values)?;
    }
    Ok(())
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::Tensor(error.into())
    }
}
