//! One binary, so that all of it links once.

mod activations;
mod architectures;
mod distill;
mod gaussian;
mod prune;
mod registry;
mod settings;
mod sparse;
mod transform;
