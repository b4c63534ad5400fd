//! Mixed precision under a budget: which weight gets which format.
//!
//! What a choice loses is predicted ([`Sensitivity`]), tensor by tensor; the predictions add up; [`solve`] finds the
//! choices of least sum that fit the budget. [`Backward`] and [`Outputs`] give the predictions their gradients.

mod budget;
mod divergence;
mod fisher;
mod forward;
mod knapsack;

pub use budget::{Budget, Choice, Sensitivity, default_choices};
pub use fisher::{Backward, Backwards, Outputs, Reads, Watched};
pub use forward::{Distance, Forward, cosine_distance, kl_divergence};
pub use knapsack::{Cost, Solution, least_bits, most_bits, solve};
