//! What a model *is*: values with facts, ops, blocks; and what each op means.
//!
//! An architecture builds one [`Graph`]; everything else reads it. A graph is small (a 70B model is a few thousand
//! nodes), prints as text and parses back ([`Graph::parse`]), and is checked by [`Graph::verify`]. Its constants are
//! weight expressions ([`Expr`]) over the names of a [`attar_tensor::Source`], never numbers.
//!
//! [`Run`] is the reference meaning: it evaluates a graph over candle tensors, block by block, reading weights as it
//! goes. It is no server: no batching across requests, no sampling. Where a linear layer reads a value of [`Op::Quantize`]
//! and its weight is in integers, the product is the one of [`integer`]; all others are products of f32.
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
mod error;
mod expr;
mod fact;
pub mod gradient;
mod graph;
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

pub use block::Values;
pub use error::{Error, Result};
pub use expr::{Axis, Expr};
pub use fact::{Dim, Fact};
pub use graph::{BlockId, Graph, Node, NodeId, Origin, Value, ValueId};
pub use op::{OPS, Op};
pub use rewrite::Rewriting;
pub use rotation::Rotation;
pub use run::{Cached, Inputs, Mode, Run, SourceWeights, State, Tap, TensorWeights, Weights};
pub use runs::Runs;
pub use stream::Stream;
