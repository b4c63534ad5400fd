//! Quantized weights that learn by gradients: what `autoround` and `recover` share.
//!
//! A [`Learned`] weight is rounded on the way forward and takes the gradient of its rounded value on the way back
//! (straight-through, Bengio et al. 2013). Its scales learn too (LSQ, Esser et al. 2020). Where gradients come from, a
//! block or a whole model, is the caller's.

mod adam;
mod adapter;
mod autoround;
mod beside;
mod gradients;
mod plain;
mod quantized;
mod recover;

pub use adam::{Adam, Rate};
pub use adapter::directions;
pub use autoround::{AutoRound, Lesson, Task, stride, tensors};
pub use beside::{adapter_names, with_adapters};
pub use gradients::{Differentiable, Gradients, relative_error};
pub use plain::{Pace, Plain};
pub use quantized::Learned;

use crate::{Error, Result};

/// Refuses settings that nothing could come of: counts of zero, rates that are no share.
fn check(counts: &[(&'static str, usize)], rates: &[(&'static str, f64)]) -> Result<()> {
    if let Some((key, found)) = counts.iter().find(|(_, count)| *count == 0) {
        return Err(Error::Setting { key, found: *found, wanted: "it is 1 or more".into() });
    }
    match rates.iter().find(|(_, rate)| !(0.0..=1.0).contains(rate)) {
        Some((key, found)) => Err(Error::Share { key, found: *found }),
        None => Ok(()),
    }
}

pub use recover::{Adapters, Method, ROWS, Rates, Recover, Student, Teacher};
