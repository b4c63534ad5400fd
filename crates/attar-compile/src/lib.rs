//! Compiles a quantized graph for a device: fuses ops, tiles for SRAM, plans memory, and proves the plan.

pub mod apart;
mod bound;
pub mod chain;
mod compile;
pub mod convert;
mod data;
pub mod device;
mod element;
mod error;
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
pub mod shapes;
pub mod simulate;
pub mod tile;

pub use bound::{attention_lower_bound, lower_bound};
pub use compile::{Compile, Compiled, MemoryImage, Phase, Progress, Proven, Watch};
pub use data::{Data, Memory};
pub use element::Element;
pub use error::{Error, Result};
pub use plan::Plan;
pub use products::{Tile, Tiled};
pub use program::{Kernel, Program, Tensor, TensorId};
