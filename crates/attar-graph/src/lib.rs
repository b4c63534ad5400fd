//! Graphs of models: values with facts, ops, blocks; and the reference implementation of each op.
//!
//! An architecture builds a [`Graph`]; everything else reads it. A graph is small (a few thousand nodes for a 70B model),
//! prints as text and parses back ([`Graph::parse`]), and is checked by [`Graph::verify`]. Its constants are weight
//! expressions ([`Expr`]) over the names of a [`attar_tensor::Source`], never numbers.
//!
//! [`Run`] evaluates a graph over candle tensors, block by block, and reads weights on demand. It is not a server: it does
//! not batch across requests and does not sample. Where a linear layer reads the result of [`Op::Quantize`] and its weight is
//! stored as integers, the product is one of integers ([`integer`]); all others are products of f32.
//!
//! ```
//! let text = r#"
//! graph mlp(x: [batch, seq, 64] f32) {
//!   g = linear x, weight("gate": [176, 64] bf16)
//!   u = linear x, weight("up": [176, 64] int4/g64)
//!   y = swiglu g, u
//!   return y
//! }
//! "#;
//! let graph = attar_graph::Graph::parse(text).unwrap();
//! assert_eq!(graph.fact(graph.outputs()[0]).to_string(), "[batch, seq, 176] f32");
//! ```

mod block;
mod dim;
mod error;
mod expr;
mod fact;
pub mod gradient;
mod graph;
mod inputs;
pub mod integer;
pub mod kernel;
mod moves;
pub mod op;
mod rewrite;
mod rotation;
mod run;
mod runs;
mod stream;
mod text;
mod verify;
mod weights;

pub use block::Values;
pub use dim::{Dim, Polynomial};
pub use error::{Error, Result};
pub use expr::{Axis, Expr};
pub use fact::Fact;
pub use graph::{BlockId, Graph, Node, NodeId, Origin, Value, ValueId};
pub use inputs::{Inputs, POSITIONS, TOKEN_TYPES, TOKENS};
pub use op::{Mode, OPS, Op, State};
pub use rewrite::Rewriting;
pub use rotation::Rotation;
pub use run::{Run, Tap};
pub use runs::Runs;
pub use stream::Stream;
pub use weights::{Cached, SourceWeights, TensorWeights, Weights};
