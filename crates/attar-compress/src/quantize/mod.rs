//! Quantizers: algorithms that pick the codes of weights.

mod config;
mod gptaq;
mod gptq;
mod hqq;
mod rate;
mod rtn;

use std::ops::Range;

use attar_tensor::{BlobWriter, Damage, Scheme};

pub use config::{
    Algorithm, Assignment, GridName, Grouping, LEAST_CODED, LostRule, MOST_CODED, Override, Quantize, ScaleDtype, TailRule, kind,
    scheme,
};
pub(crate) use config::{block_matrices, registered};

pub use rate::Rate;

use crate::{Drift, Hessian, Result, ScaleSearch};

/// The statistics that an algorithm needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Needs {
    /// None: the weights are enough.
    Nothing,
    /// Second moments of the layer's inputs.
    Hessian,
    /// Those, and how far quantization upstream has moved the inputs.
    Drift,
}

/// Statistics of a layer's inputs, as far as the algorithm needs them.
#[derive(Clone, Copy, Default)]
pub struct Seen<'a> {
    /// For [`Needs::Hessian`] and [`Needs::Drift`].
    pub hessian: Option<&'a Hessian>,
    /// For [`Needs::Drift`]; `None` if the inputs have not moved.
    pub drift: Option<&'a Drift>,
}

/// The weights of one tensor, read by rows.
pub trait WeightRows: Sync {
    /// Rows and columns.
    fn dims(&self) -> [usize; 2];
    /// Rows as f32.
    fn read(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;
    /// The name of the stored tensor, for messages.
    fn name(&self) -> &str;
    /// Whether weights that are exactly zero left by pruning, and stay exactly zero. The grid has a code for that.
    fn keeps_zeros(&self) -> bool {
        false
    }
    /// How coarse the weights are rounded for a coder of codes, where [`Quantizer::weighs_bits`].
    fn rate(&self) -> Option<Rate> {
        None
    }
}

/// An algorithm that picks codes.
pub trait Quantizer: Sync {
    /// Its name in recipes.
    fn name(&self) -> &'static str;

    /// Raised whenever the same input gives other bytes: part of every cache key.
    fn version(&self) -> u32;

    /// The statistics that it needs.
    fn needs(&self) -> Needs;

    /// Whether it rounds to the [`WeightRows::rate`].
    fn weighs_bits(&self) -> bool {
        false
    }

    /// Bytes of memory that quantizing a tensor of `dims` takes at most.
    fn memory(&self, dims: [usize; 2]) -> u64;

    /// Picks the codes of a tensor and writes them row by row. `rows_done` is called with the number of finished rows.
    fn quantize(
        &self,
        weights: &dyn WeightRows,
        seen: Seen<'_>,
        scheme: Scheme,
        search: ScaleSearch,
        to: BlobWriter<'_>,
        rows_done: &(dyn Fn(usize) + Sync),
    ) -> Result<Damage>;
}

/// Every algorithm, in the order of the documentation.
pub static QUANTIZERS: &[&dyn Quantizer] = &[&rtn::Rtn, &hqq::Hqq, &gptq::Gptq, &gptaq::Gptaq];

/// Refuses weights that are not finite. `first` is the first row of `values`.
fn check_finite(weights: &dyn WeightRows, first: usize, values: &[f32]) -> Result<()> {
    const EXPONENT: u32 = 0x7f80_0000;
    let bad = |x: &f32| x.to_bits() & EXPONENT == EXPONENT;
    // A fold over chunks vectorises; `any` would not.
    if !values.chunks(1024).any(|chunk| chunk.iter().fold(false, |found, x| found | bad(x))) {
        return Ok(());
    }
    let columns = weights.dims()[1];
    let count = values.iter().filter(|x| bad(x)).count();
    let at = values.iter().position(bad).unwrap_or(0);
    let (row, column, name) = (first + at / columns, at % columns, weights.name().to_owned());
    Err(attar_tensor::Error::NotFinite { name, count, value: values[at], row, column }.into())
}
