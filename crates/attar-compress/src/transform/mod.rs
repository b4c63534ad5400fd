//! Function-preserving transformations that make a model easier to quantize.
//!
//! A transformation rewrites weight expressions and reads no more than it must. [`Rotate`] rotates activations, [`Smooth`]
//! scales channels. Changed weights are f32 from then on and can be quantized like any other. What a graph's structure does not
//! allow is an error that names the node.

mod rotate;
mod smooth;
pub(crate) mod structure;

use std::collections::BTreeMap;

use attar_graph::{Expr, Graph, Origin, Value, ValueId};
use attar_tensor::{Dtype, Encoding};

pub use rotate::{Rotate, TableDtype};
pub use smooth::{Choice, Method, SMOOTHERS, Seeing, Site, Smooth, SmoothScales, Smoother, Spread};
pub use structure::{Gated, Layer, Norm, Residual, Values};

use crate::{Error, Result};

/// A graph whose constants become other expressions of the same shape.
#[derive(Clone, Debug)]
pub struct Rewrite {
    /// What it computes now.
    pub graph: Graph,
    /// The constants that changed, by canonical name: how they were stored, or nothing if they are new.
    changed: BTreeMap<String, Option<Encoding>>,
}

/// A constant that a transformation changed.
#[derive(Clone, Debug)]
pub struct Change {
    /// The constant in the new graph.
    pub id: ValueId,
    /// Its canonical name.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// How it was stored; `None` if it is new.
    pub from: Option<Encoding>,
    /// Its value.
    pub expr: Expr,
}

impl Rewrite {
    /// Nothing changed yet.
    fn new(graph: &Graph) -> Rewrite {
        Rewrite { graph: graph.clone(), changed: BTreeMap::new() }
    }

    /// The expression of a constant as far as it has changed.
    fn expr(&self, id: ValueId) -> &Expr {
        match &self.graph.get(id).origin {
            Origin::Weight(expr) => expr,
            _ => unreachable!("`structure` names constants only"),
        }
    }

    /// A constant becomes a function of itself.
    fn change(&mut self, id: ValueId, f: impl FnOnce(Expr) -> Expr) -> Result<()> {
        self.change_to(Dtype::F32, id, f)
    }

    /// A constant becomes a function of itself, rounded to `dtype`.
    fn change_to(&mut self, dtype: Dtype, id: ValueId, f: impl FnOnce(Expr) -> Expr) -> Result<()> {
        let encoding = self.graph.fact(id).encoding;
        let name = self.graph.get(id).name.clone();
        if let Encoding::Quantized(scheme) = encoding {
            return Err(Error::CodesStay { weight: name, scheme });
        }
        let expr = f(self.expr(id).clone()).rounded(dtype);
        self.graph.replace_weight(id, Encoding::Plain(dtype), expr);
        self.changed.entry(name).or_insert(Some(encoding));
        Ok(())
    }

    /// Another graph over the same constants, and perhaps more.
    fn replace_graph(&mut self, graph: Graph) {
        let new = graph.weights().map(|(_, value, _)| value.name.clone()).filter(|name| self.graph.find(name).is_none());
        self.changed.extend(new.map(|name| (name, None)));
        self.graph = graph;
    }

    /// What changed, in the graph's order.
    pub fn changes(&self) -> Vec<Change> {
        let change = |(id, value, expr): (ValueId, &Value, &Expr)| {
            let from = *self.changed.get(&value.name)?;
            let dims = value.fact.constant_dims().unwrap_or_default();
            Some(Change { id, name: value.name.clone(), dims, from, expr: expr.clone() })
        };
        self.graph.weights().filter_map(change).collect()
    }
}
