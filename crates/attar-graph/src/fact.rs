//! What is known about a value before anything runs: its shape and encoding.

use std::fmt;

use attar_tensor::{Dtype, Encoding};

use crate::Dim;

/// Shape and encoding of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Outermost first.
    pub dims: Vec<Dim>,
    /// The encoding of its numbers.
    pub encoding: Encoding,
}

impl Fact {
    /// Activations: f32.
    pub fn activation(dims: Vec<Dim>) -> Fact {
        Fact { dims, encoding: Encoding::Plain(Dtype::F32) }
    }

    /// The dimensions, if all are known.
    pub fn constant_dims(&self) -> Option<Vec<usize>> {
        self.dims.iter().map(Dim::constant).collect()
    }

    /// The last dimension, if it is known.
    pub fn width(&self) -> Option<usize> {
        self.dims.last().and_then(Dim::constant)
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.dims.iter().map(Dim::to_string).collect();
        write!(f, "[{}] {}", dims.join(", "), self.encoding)
    }
}
