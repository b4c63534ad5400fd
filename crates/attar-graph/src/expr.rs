//! Weight expressions: a pure term over the names of a source.
//!
//! They let a graph say how its constant comes out of a checkpoint without touching a byte: a GGUF file keeps the
//! rotary pairs of its query rows interleaved, so the graph says `halves(tensor("blk.0.attn_q.weight"), 9)`. Rows are
//! evaluated as they are asked for. A rearranged tensor keeps its numbers: nothing here rounds.

use std::{fmt, ops::Range};

use attar_tensor::{Digest, Encoding, QuantizedTensor, Source, TensorInfo};

use crate::Result;

/// A term over stored names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Expr {
    /// A stored tensor.
    Tensor(String),
    /// Rows reordered within each of `heads` equal runs: even rows first, then odd ones. Undoes the interleaving of
    /// rotary pairs that GGUF files of the Llama family have.
    Halves(Box<Expr>, usize),
}

impl Expr {
    /// A stored tensor.
    pub fn tensor(name: impl Into<String>) -> Expr {
        Expr::Tensor(name.into())
    }

    /// The stored names it reads.
    pub fn tensor_name(&self) -> &str {
        match self {
            Expr::Tensor(name) => name,
            Expr::Halves(of, _) => of.tensor_name(),
        }
    }

    /// Whether its value exists for a stored tensor of so many rows: every head is made of pairs.
    pub(crate) fn fits(&self, rows: usize) -> bool {
        match self {
            Expr::Tensor(_) => true,
            Expr::Halves(of, heads) => *heads > 0 && rows.is_multiple_of(2 * heads) && of.fits(rows),
        }
    }

    /// Shape and encoding of its value. Rows move, so both are those of the stored tensor.
    pub fn info<'s>(&self, source: &'s dyn Source) -> Result<&'s TensorInfo> {
        Ok(source.info(self.tensor_name())?)
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
        }
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
        }
    }

    /// Changes when its value does.
    pub fn digest(&self, source: &dyn Source) -> Result<Digest> {
        match self {
            Expr::Tensor(name) => Ok(source.digest(name)?),
            Expr::Halves(of, heads) => {
                let inner = of.digest(source)?;
                Ok(Digest::of_parts([b"halves".as_slice(), &heads.to_le_bytes(), inner.as_bytes()]))
            }
        }
    }

    /// The encoding of its value.
    pub fn encoding(&self, source: &dyn Source) -> Result<Encoding> {
        Ok(self.info(source)?.encoding)
    }
}

/// Where row `row` of the value lies when pairs of each run of `size` rows are interleaved.
fn interleaved(row: usize, size: usize) -> usize {
    let (run, at) = (row / size, row % size);
    let half = size / 2;
    run * size + if at < half { 2 * at } else { 2 * (at - half) + 1 }
}

impl fmt::Display for Expr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expr::Tensor(name) => write!(f, "tensor({name:?})"),
            Expr::Halves(of, heads) => write!(f, "halves({of}, {heads})"),
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
