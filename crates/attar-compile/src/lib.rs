//! Compiles a quantized graph for a device: fuses ops, tiles for SRAM, plans memory, and proves the plan.
//!
//! A model passes through five forms, each in a module of its own:
//!
//! - a [`Program`] is the model as integer kernels over matrices, made by [`convert`](mod@convert) from a graph that
//!   [`pass`] has fused;
//! - a [`Schedule`](schedule::Schedule) says in which order the kernels run, which are joined, how each is tiled, and which
//!   tensors stay on the chip;
//! - [`Lowered`](lower::Lowered) is the code of one kernel with these tiles: loops over loads, arithmetic and stores;
//! - a [`Plan`] is all code of a run with an address for every tensor and every buffer;
//! - a [`Proof`](plan::Proof) is the plan with numbers, run by [`simulate`] and compared bit by bit with [`reference`](mod@reference).
//!
//! [`Compile`] goes the whole way. The word `gated` names the same thing on all of it: gate and up projections with their
//! activation are the pass and the fused kind `gated`, then the epilogue [`Gated`](program::Epilogue::Gated); joined with the
//! down projection they are a [`GatedMlp`](program::GatedMlp).

mod bound;
mod compile;
pub mod convert;
mod data;
pub mod device;
mod element;
mod error;
mod fast;
pub mod fixed;
mod front;
pub mod lower;
pub mod memory;
pub mod pass;
pub mod plan;
mod products;
pub mod program;
mod rates;
pub mod reference;
pub mod report;
pub mod schedule;
pub mod simulate;
pub mod tile;

pub use bound::{attention_lower_bound, lower_bound};
pub use compile::{
    Compile, Compiled, Embedding, Entry, Index, Manifest, MemoryImage, Phase, Planned, Pooled, Pooling, Progress, Proven,
    Quality, Table, Watch,
};
pub use data::{Data, Memory};
pub use element::Element;
pub use error::{Error, Result};
pub use plan::Plan;
pub use products::{Tile, Tiled};
pub use program::{Kernel, Program, Tensor, TensorId};
