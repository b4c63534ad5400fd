//! Quantized weights that learn by gradients: what `autoround` and `recover` share.
//!
//! A [`Learned`] weight is rounded on the way forward and takes the gradient of its rounded value on the way back
//! (straight-through, Bengio et al. 2013). Its scales learn too (LSQ, Esser et al. 2020). Where gradients come from, a
//! block or a whole model, is the caller's.

mod adam;
mod autoround;
mod gradients;
mod quantized;
mod recover;

pub use adam::{Adam, Rate};
pub use autoround::{AutoRound, Lesson, Task, stride, tensors};
pub use gradients::{Differentiable, Gradients, relative_error};
pub use quantized::Learned;
pub use recover::{Method, Recover, Student, Teacher};
