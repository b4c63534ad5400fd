//! What is known of a value before anything runs.

use std::fmt;

use attar_tensor::{Dtype, Encoding};

/// One dimension.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Known now.
    Constant(usize),
    /// The sum of symbols that are bound when the graph runs, sorted: `past+seq`.
    Symbol(Vec<String>),
}

impl Dim {
    /// The sum of symbols, if each is a name: `seq+past`.
    pub fn parse(text: &str) -> Option<Dim> {
        let mut names: Vec<String> = text.split('+').map(Into::into).collect();
        names.sort();
        let named = names.iter().all(|name| name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_'));
        named.then_some(Dim::Symbol(names))
    }

    /// One symbol.
    pub fn symbol(name: &str) -> Dim {
        Dim::Symbol(vec![name.into()])
    }

    /// Its value, if it is known now.
    pub fn constant(&self) -> Option<usize> {
        match self {
            Dim::Constant(n) => Some(*n),
            Dim::Symbol(_) => None,
        }
    }

    /// Whether it is at least `other` whatever the symbols are.
    pub(crate) fn reaches(&self, other: &Dim) -> bool {
        match (self, other) {
            (Dim::Constant(all), Dim::Constant(some)) => all >= some,
            (Dim::Symbol(all), Dim::Symbol(some)) => some.iter().all(|name| all.contains(name)),
            _ => false,
        }
    }

    /// `self + symbol`, for a symbolic dimension.
    pub fn plus(&self, symbol: &str) -> Dim {
        match self {
            Dim::Constant(n) => Dim::Constant(*n),
            Dim::Symbol(names) => {
                let mut names = names.clone();
                names.push(symbol.into());
                names.sort();
                Dim::Symbol(names)
            }
        }
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Constant(n) => n.fmt(f),
            Dim::Symbol(names) => f.write_str(&names.join("+")),
        }
    }
}

/// Shape and encoding of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Outermost first.
    pub dims: Vec<Dim>,
    /// How its numbers are stored.
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
