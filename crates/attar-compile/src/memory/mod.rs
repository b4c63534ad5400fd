//! Memory plans: the order of ops, the offset of each buffer during its lifetime, and which weights are read from flash.
//! Independent of the rest of the crate.
//!
//! ```
//! use attar_compile::memory::{Buffer, Effort, Outcome, Problem, solve, validate};
//!
//! let buffers = vec![Buffer::new(0, 3, 4), Buffer::new(3, 9, 4), Buffer::new(0, 9, 4)];
//! let problem = Problem { buffers, capacity: 8 };
//! let Outcome::Placed(placement, _) = solve(&problem, Effort::default())?.outcome else { panic!("it fits") };
//! assert_eq!((placement.height, validate(&problem, &placement)), (8, Ok(())));
//! # Ok::<(), attar_compile::Error>(())
//! ```

mod csv;
mod decide;
mod greedy;
mod infeasible;
mod order;
mod paging;
mod planned;
mod preorder;
mod problem;
mod search;
mod sections;
mod skyline;
mod solve;
#[cfg(test)]
mod tests;
mod validate;

pub use csv::{Entries, read_csv, write_csv};
pub use infeasible::Reason;
pub use order::{Op, Ops, OrderEffort, Schedule};
pub use paging::{Flash, Paging, Run};
pub use planned::{Answer, Planned};
pub use problem::{Buffer, MAX_ALIGN, MAX_BYTES, Peak, Placement, Problem};
pub use solve::{Effort, Heights, Method, Outcome, Solution, greedy, minimise, solve};
pub use validate::{Violation, validate};
