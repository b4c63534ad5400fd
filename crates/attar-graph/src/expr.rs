//! Weight expressions: a pure term over the names of a source.
//!
//! They describe how a constant is made from a checkpoint without changing the checkpoint: a GGUF file interleaves the
//! rotary pairs of query rows, so the graph says `halves(tensor("blk.0.attn_q.weight"), 9)`. Rows are
//! evaluated on demand. A rearranged tensor keeps the format of its numbers; a computed one is f32, rounded once per
//! operation, unless it is rounded further.
//!
//! Reading single rows can be expensive: `rotate_rows` reads whole blocks of rows for any of them
//! and `transpose` the whole matrix, so whoever needs many parts of a large one stores the result instead
//! ([`Expr::rows_together`]).

use std::{fmt, ops::Range};

use attar_tensor::{Digest, Dtype, Encoding, QuantizedTensor, Source, TensorInfo};

use crate::{Error, Result, Rotation, Runs};

/// Numbers that are held to rearrange a matrix.
const PART: usize = 1 << 18;

/// The axis of an operation on a matrix. A vector is a matrix of one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axis {
    /// By rows: the outputs of a linear layer.
    Rows,
    /// By columns: the inputs of a linear layer.
    Columns,
}

/// A term over stored names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A stored tensor.
    Tensor(String),
    /// Rows reordered within each of `heads` equal runs: even rows first, then odd ones. Undoes the interleaving of
    /// rotary pairs that GGUF files of the Llama family have.
    Halves(Box<Expr>, usize),
    /// A vector of so many ones.
    Ones(usize),
    /// The identity matrix of that size.
    Identity(usize),
    /// Every row, or column, times its number of a vector.
    Scale(Axis, Box<Expr>, Box<Expr>),
    /// Every row, or column, divided by its number of a vector.
    Divide(Axis, Box<Expr>, Box<Expr>),
    /// The sum of two of one shape, number by number.
    Sum(Box<Expr>, Box<Expr>),
    /// Rows become columns: layers that are stored as `[in, out]` (`Conv1D` of GPT-2).
    Transpose(Box<Expr>),
    /// Some rows, or columns, in the order of the list. Those of a vector are its numbers, as columns.
    Select(Axis, Box<Expr>, Runs),
    /// Blocks of neighbouring columns, or rows, multiplied by an orthogonal matrix `R`, a [`Rotation`]: `w (I x R)` for
    /// columns, `(I x R^T) w` for rows.
    Rotate {
        /// What is rotated.
        axis: Axis,
        /// The matrix.
        of: Box<Expr>,
        /// Width of `R`.
        size: usize,
        /// Seed of `R`.
        seed: u64,
    },
    /// Every number rounded to a floating-point format, in which it then is.
    Round(Box<Expr>, Dtype),
}

impl Expr {
    /// A stored tensor.
    pub fn tensor(name: impl Into<String>) -> Expr {
        Expr::Tensor(name.into())
    }

    /// Every row, or column, times its number of `by`.
    pub fn scaled(self, axis: Axis, by: Expr) -> Expr {
        Expr::Scale(axis, Box::new(self), Box::new(by))
    }

    /// Every row, or column, divided by its number of `by`.
    pub fn divided(self, axis: Axis, by: Expr) -> Expr {
        Expr::Divide(axis, Box::new(self), Box::new(by))
    }

    /// The sum with `other`, number by number. A gain that is stored as its distance from one is `g.plus(Expr::Ones(n))`.
    pub fn plus(self, other: Expr) -> Expr {
        Expr::Sum(Box::new(self), Box::new(other))
    }

    /// Rows as columns.
    pub fn transposed(self) -> Expr {
        Expr::Transpose(Box::new(self))
    }

    /// Some rows, or columns.
    pub fn selected(self, axis: Axis, indices: Runs) -> Expr {
        Expr::Select(axis, Box::new(self), indices)
    }

    /// Blocks of `size` rows, or columns, rotated by the [`Rotation`] of that size and `seed`.
    pub fn rotated(self, axis: Axis, size: usize, seed: u64) -> Expr {
        Expr::Rotate { axis, of: Box::new(self), size, seed }
    }

    /// Rounded to a floating-point format; f32 is no change.
    pub fn rounded(self, dtype: Dtype) -> Expr {
        if dtype == Dtype::F32 { self } else { Expr::Round(Box::new(self), dtype) }
    }

    /// The main stored tensor, for messages; the name of the constant, if there is none.
    pub fn tensor_name(&self) -> &str {
        match self {
            Expr::Tensor(name) => name,
            Expr::Halves(of, _)
            | Expr::Scale(_, of, _)
            | Expr::Divide(_, of, _)
            | Expr::Rotate { of, .. }
            | Expr::Sum(of, _)
            | Expr::Transpose(of)
            | Expr::Select(_, of, _)
            | Expr::Round(of, _) => of.tensor_name(),
            Expr::Ones(_) => "ones",
            Expr::Identity(_) => "identity",
        }
    }

    /// Every stored tensor that it reads.
    pub fn tensors(&self) -> Vec<&str> {
        match self {
            Expr::Tensor(name) => vec![name],
            Expr::Ones(_) | Expr::Identity(_) => Vec::new(),
            Expr::Halves(of, _) | Expr::Rotate { of, .. } | Expr::Transpose(of) | Expr::Select(_, of, _) | Expr::Round(of, _) => {
                of.tensors()
            }
            Expr::Scale(_, of, by) | Expr::Divide(_, of, by) | Expr::Sum(of, by) => {
                let mut all = of.tensors();
                all.extend(by.tensors());
                all
            }
        }
    }

    /// Whether numbers of its matrix are sums of several: zeros of what is stored would not stay.
    pub fn mixes(&self) -> bool {
        match self {
            Expr::Tensor(_) | Expr::Ones(_) | Expr::Identity(_) => false,
            Expr::Sum(..) | Expr::Rotate { .. } => true,
            Expr::Halves(of, _)
            | Expr::Scale(_, of, _)
            | Expr::Divide(_, of, _)
            | Expr::Transpose(of)
            | Expr::Select(_, of, _)
            | Expr::Round(of, _) => of.mixes(),
        }
    }

    /// How many rows must be read to compute one: whole blocks, where rows are rotated; all, where rows were columns.
    pub fn rows_together(&self) -> usize {
        match self {
            Expr::Tensor(_) | Expr::Ones(_) | Expr::Identity(_) => 1,
            Expr::Halves(of, _) | Expr::Scale(_, of, _) | Expr::Divide(_, of, _) | Expr::Round(of, _) => of.rows_together(),
            Expr::Select(_, of, _) => of.rows_together(),
            Expr::Sum(a, b) => a.rows_together().max(b.rows_together()),
            Expr::Transpose(_) => usize::MAX,
            Expr::Rotate { axis: Axis::Columns, of, .. } => of.rows_together(),
            Expr::Rotate { axis: Axis::Rows, of, size, .. } => of.rows_together().max(*size),
        }
    }

    /// Whether its parts go together: heads are made of pairs, vectors are as long as what they scale, rotations divide
    /// what they rotate, selections name what there is.
    pub(crate) fn fits(&self, source: &dyn Source) -> Result<bool> {
        let along = |axis: &Axis, of: &Expr| {
            let [rows, columns] = of.info(source)?.matrix();
            Result::Ok(if *axis == Axis::Rows { rows } else { columns })
        };
        Ok(match self {
            Expr::Tensor(_) | Expr::Ones(_) | Expr::Identity(_) => true,
            Expr::Halves(of, heads) => {
                let rows = of.info(source)?.matrix()[0];
                *heads > 0 && rows.is_multiple_of(heads.saturating_mul(2)) && of.fits(source)?
            }
            Expr::Scale(axis, of, by) | Expr::Divide(axis, of, by) => {
                let by_info = by.info(source)?;
                by_info.dims.as_slice() == [along(axis, of)?] && of.fits(source)? && by.fits(source)?
            }
            Expr::Round(of, dtype) => dtype.is_float() && of.fits(source)?,
            Expr::Sum(a, b) => a.info(source)?.dims == b.info(source)?.dims && a.fits(source)? && b.fits(source)?,
            Expr::Transpose(of) => of.info(source)?.dims.len() == 2 && of.fits(source)?,
            Expr::Select(axis, of, indices) => {
                let vector_or_matrix = match of.info(source)?.dims.len() {
                    1 => *axis == Axis::Columns,
                    dims => dims == 2,
                };
                let named = !indices.is_empty() && indices.end() <= along(axis, of)?;
                vector_or_matrix && named && of.fits(source)?
            }
            Expr::Rotate { axis, of, size, .. } => *size > 0 && along(axis, of)?.is_multiple_of(*size) && of.fits(source)?,
        })
    }

    /// Shape and encoding of its value.
    pub fn info(&self, source: &dyn Source) -> Result<TensorInfo> {
        let computed = |dims: Vec<usize>| TensorInfo { dims, encoding: Encoding::Plain(Dtype::F32) };
        Ok(match self {
            Expr::Tensor(name) => source.info(name)?.clone(),
            Expr::Halves(of, _) => of.info(source)?,
            Expr::Round(of, dtype) => TensorInfo { dims: of.info(source)?.dims, encoding: Encoding::Plain(*dtype) },
            Expr::Ones(n) => computed(vec![*n]),
            Expr::Identity(n) => computed(vec![*n, *n]),
            Expr::Scale(_, of, _) | Expr::Divide(_, of, _) | Expr::Sum(of, _) | Expr::Rotate { of, .. } => {
                computed(of.info(source)?.dims)
            }
            Expr::Transpose(of) => {
                let info = of.info(source)?;
                let [rows, columns] = info.matrix();
                number_by_number(info, vec![columns, rows])
            }
            Expr::Select(axis, of, indices) => {
                let info = of.info(source)?;
                let mut dims = info.dims.clone();
                let at = if *axis == Axis::Rows { dims.first_mut() } else { dims.last_mut() };
                at.into_iter().for_each(|dim| *dim = indices.len());
                match axis {
                    Axis::Rows => TensorInfo { dims, ..info },
                    Axis::Columns => number_by_number(info, dims),
                }
            }
        })
    }

    /// Rows of its value as f32. `out` is `[rows, columns]`.
    pub fn read(&self, source: &dyn Source, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        match self {
            Expr::Tensor(name) => Ok(source.read(name, rows, out)?),
            Expr::Halves(of, heads) => {
                let [count, columns] = self.info(source)?.matrix();
                for (row, out) in rows.zip(out.chunks_mut(columns.max(1))) {
                    let from = interleaved(row, count / heads);
                    of.read(source, from..from + 1, out)?;
                }
                Ok(())
            }
            Expr::Ones(_) => {
                out.fill(1.0);
                Ok(())
            }
            Expr::Identity(n) => {
                out.fill(0.0);
                rows.zip(out.chunks_mut((*n).max(1))).for_each(|(row, out)| out[row] = 1.0);
                Ok(())
            }
            Expr::Scale(axis, of, by) => {
                of.read(source, rows.clone(), out)?;
                by.along(*axis, source, rows, out, |x, s| x * s)
            }
            Expr::Divide(axis, of, by) => {
                of.read(source, rows.clone(), out)?;
                by.along(*axis, source, rows, out, |x, s| x / s)
            }
            Expr::Round(of, dtype) => {
                of.read(source, rows, out)?;
                out.iter_mut().for_each(|x| *x = dtype.round(*x));
                Ok(())
            }
            Expr::Sum(a, b) => {
                a.read(source, rows.clone(), out)?;
                let mut more = vec![0.0; out.len()];
                b.read(source, rows, &mut more)?;
                out.iter_mut().zip(more).for_each(|(x, more)| *x += more);
                Ok(())
            }
            Expr::Transpose(of) => of.read_columns(source, rows, out),
            Expr::Select(Axis::Rows, of, indices) => {
                let columns = of.info(source)?.matrix()[1];
                let mut rest = out;
                for run in indices.at(rows) {
                    let (part, after) = rest.split_at_mut(run.len() * columns);
                    of.read(source, run, part)?;
                    rest = after;
                }
                Ok(())
            }
            Expr::Select(Axis::Columns, of, indices) => {
                let columns = indices.len().max(1);
                of.read_in_parts(source, rows.clone(), &mut |part, row| {
                    let out = &mut out[(part - rows.start) * columns..][..columns];
                    let numbers = indices.runs().iter().flat_map(|run| &row[run.clone()]);
                    out.iter_mut().zip(numbers).for_each(|(out, x)| *out = *x);
                })
            }
            Expr::Rotate { axis: Axis::Columns, of, size, seed } => {
                of.read(source, rows, out)?;
                Rotation::shared(*size, *seed).apply(out);
                Ok(())
            }
            Expr::Rotate { axis: Axis::Rows, of, size, seed } => {
                let columns = of.info(source)?.matrix()[1];
                read_blocks(rows, *size, columns, out, |block, all| {
                    of.read(source, block, all)?;
                    Rotation::shared(*size, *seed).apply_to_columns(all, columns);
                    Ok(())
                })
            }
        }
    }

    /// Some of its columns as rows: all of it is read, in parts.
    fn read_columns(&self, source: &dyn Source, columns: Range<usize>, out: &mut [f32]) -> Result<()> {
        let count = self.info(source)?.matrix()[0];
        if columns.is_empty() {
            return Ok(());
        }
        self.read_in_parts(source, 0..count, &mut |row, numbers| {
            let wanted = &numbers[columns.clone()];
            wanted.iter().zip(out[row..].iter_mut().step_by(count)).for_each(|(x, out)| *out = *x);
        })
    }

    /// Shows rows one by one, and holds few at a time.
    fn read_in_parts(&self, source: &dyn Source, rows: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        let columns = self.info(source)?.matrix()[1].max(1);
        let together = (PART / columns).max(1);
        let mut part = vec![0.0; together.min(rows.len()) * columns];
        for first in rows.clone().step_by(together) {
            let end = (first + together).min(rows.end);
            let part = &mut part[..(end - first) * columns];
            self.read(source, first..end, part)?;
            (first..end).zip(part.chunks(columns)).for_each(|(row, numbers)| each(row, numbers));
        }
        Ok(())
    }

    /// Combines `out`, some `rows` of a matrix, with this vector along an axis.
    fn along(
        &self,
        axis: Axis,
        source: &dyn Source,
        rows: Range<usize>,
        out: &mut [f32],
        f: impl Fn(f32, f32) -> f32,
    ) -> Result<()> {
        let mut by = vec![0.0; self.info(source)?.elements()];
        self.read(source, 0..1, &mut by)?;
        let columns = (out.len() / rows.len().max(1)).max(1);
        for (row, out) in rows.zip(out.chunks_mut(columns)) {
            match axis {
                Axis::Rows => out.iter_mut().for_each(|x| *x = f(*x, by[row])),
                Axis::Columns => out.iter_mut().zip(&by).for_each(|(x, s)| *x = f(*x, *s)),
            }
        }
        Ok(())
    }

    /// Rows of its value as codes, scales and zeros.
    pub fn read_quantized(&self, source: &dyn Source, rows: Range<usize>) -> Result<QuantizedTensor> {
        match self {
            Expr::Tensor(name) => Ok(source.read_quantized(name, rows)?),
            Expr::Halves(of, heads) => {
                let [count, columns] = self.info(source)?.matrix();
                let mut all: Option<QuantizedTensor> = None;
                for row in rows {
                    let from = interleaved(row, count / heads);
                    let one = of.read_quantized(source, from..from + 1)?;
                    let all = all.get_or_insert_with(|| QuantizedTensor::empty(one.scheme, columns));
                    all.append(one);
                }
                Ok(all.unwrap_or(of.read_quantized(source, 0..0)?))
            }
            Expr::Select(Axis::Rows, of, indices) => {
                let mut all = of.read_quantized(source, 0..0)?;
                for run in indices.at(rows) {
                    all.append(of.read_quantized(source, run)?);
                }
                Ok(all)
            }
            computed => {
                let (name, encoding) = (computed.to_string(), computed.encoding(source)?.to_string());
                Err(Error::Tensor(attar_tensor::Error::WrongEncoding { name, encoding, wanted: "codes" }))
            }
        }
    }

    /// A digest of its value: of the stored tensors and of what is done to them.
    pub fn digest(&self, source: &dyn Source) -> Result<Digest> {
        let of_parts = |word: &str, numbers: &[u64], parts: &[Digest]| {
            let numbers: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
            let parts = parts.iter().map(|digest| digest.as_bytes().as_slice());
            Digest::of_parts([word.as_bytes(), numbers.as_slice()].into_iter().chain(parts))
        };
        Ok(match self {
            Expr::Tensor(name) => source.digest(name)?,
            Expr::Halves(of, heads) => of_parts("halves", &[*heads as u64], &[of.digest(source)?]),
            Expr::Ones(n) => of_parts("ones", &[*n as u64], &[]),
            Expr::Identity(n) => of_parts("identity", &[*n as u64], &[]),
            Expr::Scale(_, of, by) | Expr::Divide(_, of, by) => {
                of_parts(self.word(), &[], &[of.digest(source)?, by.digest(source)?])
            }
            Expr::Round(of, dtype) => of_parts(dtype.name(), &[], &[of.digest(source)?]),
            Expr::Sum(a, b) => of_parts(self.word(), &[], &[a.digest(source)?, b.digest(source)?]),
            Expr::Transpose(of) => of_parts(self.word(), &[], &[of.digest(source)?]),
            Expr::Select(_, of, indices) => {
                let ends = indices.runs().iter().flat_map(|run| [run.start as u64, run.end as u64]);
                of_parts(self.word(), &ends.collect::<Vec<_>>(), &[of.digest(source)?])
            }
            Expr::Rotate { of, size, seed, .. } => of_parts(self.word(), &[*size as u64, *seed], &[of.digest(source)?]),
        })
    }

    /// The encoding of its value.
    pub fn encoding(&self, source: &dyn Source) -> Result<Encoding> {
        Ok(self.info(source)?.encoding)
    }

    /// The name of its outermost operation in text form.
    fn word(&self) -> &'static str {
        match self {
            Expr::Tensor(_) => "tensor",
            Expr::Halves(..) => "halves",
            Expr::Ones(_) => "ones",
            Expr::Identity(_) => "identity",
            Expr::Round(..) => "round",
            Expr::Scale(Axis::Rows, ..) => "scale_rows",
            Expr::Scale(Axis::Columns, ..) => "scale_columns",
            Expr::Divide(Axis::Rows, ..) => "divide_rows",
            Expr::Divide(Axis::Columns, ..) => "divide_columns",
            Expr::Sum(..) => "sum",
            Expr::Transpose(_) => "transpose",
            Expr::Select(Axis::Rows, ..) => "select_rows",
            Expr::Select(Axis::Columns, ..) => "select_columns",
            Expr::Rotate { axis: Axis::Rows, .. } => "rotate_rows",
            Expr::Rotate { axis: Axis::Columns, .. } => "rotate_columns",
        }
    }
}

/// What is known of `info`'s numbers rearranged one by one: those of groups and blocks do not keep what they share.
fn number_by_number(info: TensorInfo, dims: Vec<usize>) -> TensorInfo {
    let encoding = match info.encoding {
        plain @ Encoding::Plain(_) => plain,
        _ => Encoding::Plain(Dtype::F32),
    };
    TensorInfo { dims, encoding }
}

/// Fills `out` with `rows` of a matrix that can only be made by blocks of `size` rows.
fn read_blocks(
    rows: Range<usize>,
    size: usize,
    columns: usize,
    out: &mut [f32],
    make: impl Fn(Range<usize>, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let mut all = vec![0.0; size * columns];
    let mut row = rows.start;
    while row < rows.end {
        let first = row / size * size;
        let end = (first + size).min(rows.end);
        make(first..first + size, &mut all)?;
        out[(row - rows.start) * columns..(end - rows.start) * columns]
            .copy_from_slice(&all[(row - first) * columns..(end - first) * columns]);
        row = end;
    }
    Ok(())
}

/// The stored row of row `row`, where pairs of each run of `size` rows are interleaved.
fn interleaved(row: usize, size: usize) -> usize {
    let (run, at) = (row / size, row % size);
    let half = size / 2;
    run * size + if at < half { 2 * at } else { 2 * (at - half) + 1 }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word();
        match self {
            Expr::Tensor(name) => write!(f, "{word}({name:?})"),
            Expr::Halves(of, heads) => write!(f, "{word}({of}, {heads})"),
            Expr::Round(of, dtype) => write!(f, "{word}({of}, {dtype})"),
            Expr::Ones(n) | Expr::Identity(n) => write!(f, "{word}({n})"),
            Expr::Scale(_, of, by) | Expr::Divide(_, of, by) | Expr::Sum(of, by) => write!(f, "{word}({of}, {by})"),
            Expr::Transpose(of) => write!(f, "{word}({of})"),
            Expr::Select(_, of, indices) => write!(f, "{word}({of}, {indices})"),
            Expr::Rotate { of, size, seed, .. } => write!(f, "{word}({of}, {size}, {seed})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_puts_even_rows_before_odd_ones_in_each_head() {
        let order: Vec<usize> = (0..12).map(|row| interleaved(row, 6)).collect();
        assert_eq!(order, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
    }
}
