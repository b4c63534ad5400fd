//! What a recipe can do to a model, one file a kind.

mod activations;
mod adapted;
mod allocate;
mod autoround;
mod calibrated;
mod codes;
mod compile;
mod device;
mod distill;
mod fuse;
pub(crate) mod kind;
mod lessons;
mod local;
mod memory_plan;
mod plain;
mod preserved;
mod prune;
mod quantize;
mod recover;
mod renewed;
mod rotate;
mod simulate;
mod smooth;
mod student;
mod tile;
mod trainable;
mod transformed;

use crate::walker::Walker;

pub use device::refused_by_device;
pub use kind::{PlannedTensor, Step, StepError, StepKind};
pub use tile::cut_products;

/// Every kind of step, in the order of the documentation.
pub static STEPS: &[&StepKind] = &[
    &prune::PRUNE,
    &distill::DISTILL,
    &rotate::ROTATE,
    &smooth::SMOOTH,
    &quantize::QUANTIZE,
    &autoround::AUTOROUND,
    &recover::RECOVER,
    &activations::ACTIVATIONS,
    &fuse::FUSE,
    &tile::TILE,
    &compile::COMPILE,
    &simulate::SIMULATE,
    &memory_plan::MEMORY_PLAN,
];

/// Everything that walks through the blocks of a model.
pub static WALKERS: &[&Walker] = &[
    &prune::WALKER,
    &prune::CHANNELS_WALKER,
    &prune::HIDDEN_WALKER,
    &prune::ZEROS_WALKER,
    &lessons::WALKER,
    &local::WALKER,
    &preserved::WALKER,
    &smooth::WALKER,
    &calibrated::WALKER,
    &autoround::WALKER,
    &recover::WALKER,
    &activations::WALKER,
];
