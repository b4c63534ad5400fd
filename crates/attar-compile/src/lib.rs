//! Compiles a quantized graph for a device: fuses ops, tiles for SRAM, plans memory, and proves the plan.

mod element;
mod error;
pub mod pass;

pub use element::Element;
pub use error::{Error, Result};
