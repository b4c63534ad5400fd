//! Gradient-based optimization of weights: what `autoround`, `recover` and `distill` share.
//!
//! A [`Learned`] weight is rounded in the forward pass and receives the gradient of its rounded value in the backward pass
//! (straight-through estimator, Bengio et al. 2013). Its scales are trainable, too (LSQ, Esser et al. 2020). The caller
//! decides what the loss spans: one block or the whole model.

mod adam;
mod adapt;
mod adapter;
mod autoround;
mod distill;
mod gradients;
mod plain;
mod quantized;
mod recover;
mod shape;
mod states;
mod student;

pub use adam::{Adam, Rate, Rates};
pub use adapt::{adapter_names, with_adapters};
pub use adapter::directions;
pub use autoround::{AutoRound, Progress, Task, stride, tensors};
pub use distill::{Batch, Distill, Measured, PlainDtype, Teacher};
pub use gradients::{Differentiable, Gradients, relative_error};
pub use plain::{Pace, Plain};
pub use quantized::Learned;
pub use recover::{Adapters, Method, Recover};
pub use shape::{Init, StudentShape};
pub use states::map;
pub use student::{Criterion, Found, Inner, Objective, ROWS, Sink, Student, Tied, Within};

use crate::{Error, Result};

/// Refuses settings that cannot work: counts of zero, and rates outside 0 to 1.
fn check(counts: &[(&'static str, usize)], rates: &[(&'static str, f64)]) -> Result<()> {
    if let Some((key, found)) = counts.iter().find(|(_, count)| *count == 0) {
        return Err(Error::Setting { key, found: *found, wanted: "it is 1 or more".into() });
    }
    match rates.iter().find(|(_, rate)| !(0.0..=1.0).contains(rate)) {
        Some((key, found)) => Err(Error::Share { key, found: *found }),
        None => Ok(()),
    }
}
