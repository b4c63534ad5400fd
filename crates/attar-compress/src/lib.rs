//! Changes the numbers of a model, and its shape ([`prune`]).
//!
//! Quantization of weights, with and without calibration, and of activations; what makes it lose less ([`Rotate`],
//! [`Smooth`]); what is learned afterwards ([`learn`]); budgets ([`allocate`]). A [`Quantizer`] picks codes; the grid and what
//! shares a scale are the caller's ([`attar_tensor::Scheme`]). Which weights are touched is decided by [`Quantize::assign`]
//! from patterns over canonical names, before anything is read.

mod activation;
pub mod allocate;
mod calibrate;
mod distribution;
mod error;
mod hessian;
pub mod learn;
mod lines;
mod losses;
mod pattern;
pub mod prune;
mod quantize;
mod random;
mod scale;
mod training;
mod transform;

pub use activation::{
    ActivationBits, ActivationBudget, ActivationCost, ActivationGranularity, ActivationMode, ActivationSensitivity,
    ActivationValues, Activations, Codes, Counts, Distribution, Feed, Known, KvCache, OBSERVERS, Observer, ObserverName,
    Site as ActivationSite, insert,
};
pub use calibrate::{Calibration, Packing, SourceKind, TextSource, Windows};
pub use error::{Error, Result};
pub(crate) use hessian::Factor;
pub use hessian::{Cross, Drift, Hessian};
pub use losses::{Became, Losses, Lost, RowLoss};
pub use pattern::{Pattern, Patterns};
pub use quantize::{
    Algorithm, Assignment, GridName, Grouping, LEAST_CODED, LostRule, MOST_CODED, Needs, Override, QUANTIZERS, Quantize,
    Quantizer, Rate, ScaleDtype, Seen, TailRule, WeightRows, kind, scheme,
};
pub use random::SplitMix64;
pub use scale::{Refusal, RowFits, ScaleSearch, Shared, row_fits};
pub use training::{HeldOut, TrainingText, TrainingWindows};
pub use transform::{
    Change, Choice, Gated, Layer, Method, Norm, Residual, Rewrite, Rotate, SMOOTHERS, Seeing, Site, Smooth, SmoothScales,
    Smoother, Spread, TableDtype, Values,
};
