//! Search for the scales of a row that minimize the error of its weights.

use std::ops::Range;

use attar_tensor::{Error, Fit, Granularity, Levels, QuantizedTensor, Scheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Result,
    distribution::{Distribution, Histogram},
};

/// Criterion for the scale of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleSearch {
    /// Smallest scale that covers every weight of the group.
    #[default]
    Absmax,
    /// Least squared error among 24 candidates between the absmax scale and half of it.
    Mse,
}

/// Number of scales that [`ScaleSearch::Mse`] tries, and the distance between them, relative to the largest.
const CANDIDATES: usize = 24;
const STEP: f32 = 0.02;

impl ScaleSearch {
    /// How many scales are tried.
    pub(crate) fn candidates(self, scheme: &Scheme) -> usize {
        match self {
            ScaleSearch::Absmax => 1,
            ScaleSearch::Mse => CANDIDATES * scheme.signs().len(),
        }
    }

    /// The candidate of that number for values from `low` to `high`, with its scale as it will be stored if it is stored on
    /// its own.
    pub(crate) fn candidate(self, number: usize, scheme: &Scheme, low: f32, high: f32) -> Result<Fit<'static>, Error> {
        let share = 1.0 - (number % CANDIDATES) as f32 * STEP;
        let fit = scheme.cover(low * share, high * share);
        let scale = fit.scale * scheme.signs()[number / CANDIDATES];
        Ok(Fit { scale: scheme.scale.round(scale)?, ..fit })
    }

    /// The scale and zero of one group.
    pub(crate) fn fit(self, scheme: &Scheme, values: &[f32]) -> Result<Fit<'static>, Error> {
        if let Some(fit) = best_fit(scheme, || Distribution::of(values, None))? {
            return Ok(fit);
        }
        let (low, high) = range(values);
        let mut best = self.candidate(0, scheme, low, high)?;
        if self == ScaleSearch::Mse {
            let mut least = scheme.grid.error(values, best);
            for number in 1..self.candidates(scheme) {
                let fit = self.candidate(number, scheme, low, high)?;
                let error = scheme.grid.error(values, fit);
                if error < least {
                    (best, least) = (fit, error);
                }
            }
        }
        Ok(best)
    }

    /// The scale and zero of one group, with the error of each weight weighted by its `importance`.
    pub(crate) fn weighted_fit(self, scheme: &Scheme, values: &[f32], importance: &[f32]) -> Result<Fit<'static>, Error> {
        if let Some(fit) = best_fit(scheme, || Distribution::of(values, Some(importance)))? {
            return Ok(fit);
        }
        let (low, high) = range(values);
        let mut best = self.candidate(0, scheme, low, high)?;
        let mut least = f64::INFINITY;
        for number in (0..self.candidates(scheme)).take_while(|_| self != ScaleSearch::Absmax) {
            let fit = self.candidate(number, scheme, low, high)?;
            let error = weighted_error(scheme, fit, values, importance);
            if error < least {
                (best, least) = (fit, error);
            }
        }
        Ok(best)
    }
}

/// The fit of a grid that knows its best scale.
fn best_fit(scheme: &Scheme, values: impl FnOnce() -> Distribution) -> Result<Option<Fit<'static>>, Error> {
    let mut magnitudes = std::iter::once_with(values).flat_map(Distribution::magnitudes);
    let Some(scale) = scheme.grid.best_scale(&mut magnitudes) else { return Ok(None) };
    Ok(Some(Fit { scale: scheme.scale.round(scale)?, zero: scheme.grid.middle(), table: &[] }))
}

/// The learned table of `values`, as it will be stored.
fn table(scheme: &Scheme, values: &Distribution) -> Result<Vec<f32>, Error> {
    values.table(scheme.entries()).into_iter().map(|entry| scheme.scale.round(entry as f32)).collect()
}

/// What the rows of a tensor share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shared {
    /// Scale and zero of all weights, under [`Granularity::Tensor`].
    pub fit: Option<Fit<'static>>,
    /// The table of all weights, under [`Granularity::Tensor`] of a grid that learns it.
    pub table: Vec<f32>,
    /// The super scale, where the whole tensor has one.
    pub super_scale: Option<f32>,
}

impl Shared {
    /// Whether `scheme` shares anything.
    pub(crate) fn is_wanted(scheme: &Scheme) -> bool {
        scheme.granularity == Granularity::Tensor || matches!(scheme.scale.supers(), Some((_, Granularity::Tensor)))
    }

    /// The super scale for weights from `low` to `high`.
    pub(crate) fn supers(scheme: &Scheme, low: f32, high: f32) -> Result<Shared, Error> {
        let largest = scheme.cover(low, high).scale;
        Ok(Shared { super_scale: Some(scheme.scale.super_scale(largest)?), ..Shared::default() })
    }

    /// What all weights of a tensor share, for a grid that takes no search: it learns its table, or knows its best scale.
    pub(crate) fn of_all(scheme: &Scheme, weights: &Histogram) -> Result<Option<Shared>, Error> {
        if scheme.grid.levels() == Levels::Learned {
            let table = table(scheme, &weights.distribution())?;
            return Ok(Some(Shared { table, ..Shared::default() }));
        }
        let fit = best_fit(scheme, || weights.distribution())?;
        Ok(fit.map(|fit| Shared { fit: Some(fit), ..Shared::default() }))
    }

    /// For all weights of a tensor, `[rows, columns]`, each weighted by the `importance` of its column.
    pub(crate) fn weighted(scheme: &Scheme, search: ScaleSearch, values: &[f32], importance: &[f32]) -> Result<Shared, Error> {
        if scheme.granularity == Granularity::Tensor {
            let repeated: Vec<f32> = importance.iter().copied().cycle().take(values.len()).collect();
            let mut histogram = Histogram::new();
            histogram.add(values, Some(&repeated));
            if let Some(known) = Shared::of_all(scheme, &histogram)? {
                return Ok(known);
            }
            return Ok(Shared { fit: Some(search.weighted_fit(scheme, values, &repeated)?), ..Shared::default() });
        }
        if !Shared::is_wanted(scheme) {
            return Ok(Shared::default());
        }
        let (low, high) = range(values);
        Shared::supers(scheme, low, high)
    }
}

/// The scales of one row.
#[derive(Clone, Debug, PartialEq)]
pub struct RowFits {
    /// The super scale above `fits`; 1 where the format has none.
    pub super_scale: f32,
    /// Scale and zero of every group; scale 1 where tables are learned.
    pub fits: Vec<Fit<'static>>,
    /// The tables of all groups, concatenated, or one for all; empty unless they are learned.
    pub tables: Vec<f32>,
}

impl RowFits {
    /// What `group` shares.
    pub fn fit(&self, group: usize) -> Fit<'_> {
        let entries = self.tables.len() / self.fits.len().max(1);
        Fit { table: &self.tables[group * entries..][..entries], ..self.fits[group] }
    }

    /// Adds a row of `codes` under these scales. What a whole tensor shares is kept once.
    pub fn push_row(&self, codes: &[u8], to: &mut QuantizedTensor) {
        let scheme = to.scheme;
        scheme.grid.packing().pack(codes, &mut to.codes);
        if scheme.granularity != Granularity::Tensor || to.dims[0] == 0 {
            to.scales.extend(self.fits.iter().map(|fit| fit.scale).filter(|_| self.tables.is_empty()));
            to.scales.extend(&self.tables);
            to.zeros.extend(self.fits.iter().map(|fit| fit.zero).filter(|_| !scheme.is_symmetric()));
        }
        to.dims[0] += 1;
        if to.supers.len() < scheme.scale.super_count(to.dims[0]) {
            to.supers.push(self.super_scale);
        }
    }
}

/// Columns of a group whose scale cannot be stored, and why.
pub type Refusal = (Range<usize>, Error);

/// The scales of one row of weights, with errors weighted by `importance`, if given.
///
/// Every scale is first chosen on its own by `search`. If scales are stored as codes, the super scale comes from the
/// largest of them, and then each becomes the one of the neighbouring codes under which its group's error is least.
pub fn row_fits(
    scheme: &Scheme,
    search: ScaleSearch,
    shared: &Shared,
    values: &[f32],
    importance: Option<&[f32]>,
) -> Result<RowFits, Refusal> {
    let row = Row { scheme, shared, values, importance };
    if let Some(fit) = shared.fit {
        return Ok(RowFits { super_scale: 1.0, fits: vec![fit; row.groups().count()], tables: Vec::new() });
    }
    if scheme.grid.levels() == Levels::Learned {
        return row.tables();
    }
    if scheme.scale.plain().is_some() {
        return Ok(RowFits { super_scale: 1.0, fits: row.wishes(search)?, tables: Vec::new() });
    }
    let (absmax, error) = row.in_codes(&row.wishes(ScaleSearch::Absmax)?)?;
    if search == ScaleSearch::Absmax {
        return Ok(absmax);
    }
    // Another super scale moves every code: the search may lose what it wins.
    let (found, less) = row.in_codes(&row.wishes(search)?)?;
    Ok(if less < error { found } else { absmax })
}

/// A row whose scales are being chosen.
struct Row<'a> {
    scheme: &'a Scheme,
    shared: &'a Shared,
    values: &'a [f32],
    importance: Option<&'a [f32]>,
}

impl<'a> Row<'a> {
    /// First column, values and importance of each group.
    fn groups(&self) -> impl Iterator<Item = (usize, &'a [f32], Option<&'a [f32]>)> {
        let size = self.scheme.group(self.values.len()).max(1);
        let importance = self.importance;
        let weights = move |from: usize, group: &[f32]| importance.map(|all| &all[from..from + group.len()]);
        self.values.chunks(size).enumerate().map(move |(at, group)| (at * size, group, weights(at * size, group)))
    }

    /// The best table of each group.
    fn tables(&self) -> Result<RowFits, Refusal> {
        let mut tables = self.shared.table.clone();
        let mut fits = Vec::new();
        for (from, group, importance) in self.groups() {
            fits.push(Fit { scale: 1.0, zero: self.scheme.grid.middle(), table: &[] });
            if self.shared.table.is_empty() {
                let own = table(self.scheme, &Distribution::of(group, importance));
                tables.extend(own.map_err(|error| (from..from + group.len(), error))?);
            }
        }
        Ok(RowFits { super_scale: 1.0, fits, tables })
    }

    /// The best scale of each group, whatever the others are.
    fn wishes(&self, search: ScaleSearch) -> Result<Vec<Fit<'static>>, Refusal> {
        let wish = |(from, group, importance): (usize, &[f32], Option<&[f32]>)| {
            let fit = match importance {
                None => search.fit(self.scheme, group),
                Some(importance) => search.weighted_fit(self.scheme, group, importance),
            };
            fit.map_err(|error| (from..from + group.len(), error))
        };
        self.groups().map(wish).collect()
    }

    /// Scales near the wished ones that are codes under one super scale, and the error of the row.
    fn in_codes(&self, wishes: &[Fit<'static>]) -> Result<(RowFits, f64), Refusal> {
        let largest = wishes.iter().fold(0.0f32, |most, fit| if fit.scale.abs() > most.abs() { fit.scale } else { most });
        let refused = |error| (0..self.values.len(), error);
        let super_scale = self.shared.super_scale.map_or_else(|| self.scheme.scale.super_scale(largest), Ok).map_err(refused)?;
        let (mut fits, mut total) = (Vec::with_capacity(wishes.len()), 0.0);
        for ((_, group, importance), wish) in self.groups().zip(wishes) {
            let (fit, error) = self.nearby(*wish, super_scale, group, importance);
            fits.push(fit);
            total += error;
        }
        Ok((RowFits { super_scale, fits, tables: Vec::new() }, total))
    }

    /// The best of the fits that can be stored and are next to `wish`.
    fn nearby(&self, wish: Fit<'static>, super_scale: f32, group: &[f32], importance: Option<&[f32]>) -> (Fit<'static>, f64) {
        let format = self.scheme.scale;
        let mut best: Option<(Fit<'static>, f64)> = None;
        for code in format.neighbours(format.code(wish.scale, super_scale)) {
            for zero in self.zeros(wish.zero) {
                let fit = Fit { scale: format.scale(code, super_scale), zero, ..wish };
                let error = self.error(fit, group, importance);
                if best.is_none_or(|(_, least)| error < least) {
                    best = Some((fit, error));
                }
            }
        }
        best.expect("a code is a neighbour of itself")
    }

    /// A zero and its neighbours, if zeros are stored.
    fn zeros(&self, zero: u8) -> impl Iterator<Item = u8> {
        let top = u8::MAX >> (8 - self.scheme.grid.bits());
        let neighbours = [zero.checked_sub(1), zero.checked_add(1).filter(|zero| *zero <= top)];
        let stored = !self.scheme.is_symmetric();
        std::iter::once(zero).chain(neighbours.into_iter().flatten().filter(move |_| stored))
    }

    fn error(&self, fit: Fit<'_>, group: &[f32], importance: Option<&[f32]>) -> f64 {
        match importance {
            None => f64::from(self.scheme.grid.error(group, fit)),
            Some(importance) => weighted_error(self.scheme, fit, group, importance),
        }
    }
}

/// Sum of squared differences between `values` and what their nearest codes mean, each as often as its importance.
fn weighted_error(scheme: &Scheme, fit: Fit<'_>, values: &[f32], importance: &[f32]) -> f64 {
    let (mut codes, mut decoded) = (vec![0; values.len()], vec![0.0; values.len()]);
    scheme.grid.encode(values, fit, &mut codes);
    scheme.grid.decode(&codes, fit, &mut decoded);
    let errors = values.iter().zip(&decoded).zip(importance);
    errors.map(|((w, q), h)| f64::from((w - q) * (w - q) * h)).sum()
}

/// Least and greatest value, in lanes so that the compiler can use vectors.
pub(crate) fn range(values: &[f32]) -> (f32, f32) {
    const LANES: usize = 16;
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for i in 0..LANES {
            low[i] = if chunk[i] < low[i] { chunk[i] } else { low[i] };
            high[i] = if chunk[i] > high[i] { chunk[i] } else { high[i] };
        }
    }
    // By halves, which stays in vectors; one by one would take longer than the groups themselves.
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            low[i] = if low[i + half] < low[i] { low[i + half] } else { low[i] };
            high[i] = if high[i + half] > high[i] { high[i + half] } else { high[i] };
        }
    }
    let rest = chunks.remainder();
    let least = rest.iter().copied().fold(low[0], f32::min);
    let greatest = rest.iter().copied().fold(high[0], f32::max);
    if values.is_empty() { (0.0, 0.0) } else { (least, greatest) }
}
