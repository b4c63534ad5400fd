//! Compiles a quantized graph for a device: fuses ops, tiles for SRAM, plans memory, and proves the plan.

mod bound;
pub mod chain;
pub mod device;
mod element;
mod error;
pub mod tile;

pub use bound::{attention_lower_bound, lower_bound};
pub use element::Element;
pub use error::{Error, Result};
