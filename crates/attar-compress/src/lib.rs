//! Changes the numbers of a model, never its shape.
//!
//! Now: quantization of weights, with and without calibration, and of activations. A [`Quantizer`] picks codes; the grid and what shares a scale are
//! the caller's ([`attar_tensor::Scheme`]). Which weights are touched is decided by [`Quantize::assign`] from patterns
//! over canonical names, before anything is read.

mod activation;
mod calibrate;
mod error;
mod pattern;
mod quantize;
mod scale;

pub use activation::{
    ActivationBits, ActivationGranularity, ActivationMode, Activations, Codes, Counts, Distribution, Feed, KvCache, OBSERVERS,
    Observer, ObserverName, Site, insert,
};
pub use calibrate::{Calibration, Hessian};
pub use error::{Error, Result};
pub use pattern::{Pattern, Patterns};
pub use quantize::{
    Algorithm, Assignment, GridName, Grouping, Needs, Override, QUANTIZERS, Quantize, Quantizer, ScaleDtype, Seen, TailRule,
    WeightRows, kind,
};
pub use scale::ScaleSearch;
