//! LiteRT: models in FlatBuffers, with sub-graphs of fixed shapes for a part of the prompt and for one token.
//!
//! | file | what it does |
//! |---|---|
//! | [`flat`] | FlatBuffers, written and read by field numbers |
//! | [`schema`] | tensors, operators and signatures of a `.tflite` model |
//! | [`weight`] | how weights are stored |
//! | [`emit`], [`integer`] | from a graph to operators: on f32, and on integers |
//! | [`bundle`], [`metadata`] | what LiteRT-LM wants around a model |
//! | [`verify`] | reads it back |

mod build;
mod bundle;
mod emit;
mod flat;
pub(super) mod integer;
pub(super) mod lm;
mod metadata;
pub(super) mod plain;
mod schema;
pub(crate) mod verify;
mod weight;
