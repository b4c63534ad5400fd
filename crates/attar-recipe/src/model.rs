//! A model on its way through the steps of a variant.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use attar_graph::{Expr, Graph};
use attar_model::Model;
use attar_tensor::{Damage, Overlay, Source};

use crate::report::TransformReport;

/// Graph and weights as the steps so far left them.
pub struct Working {
    /// For progress and messages.
    pub(crate) title: String,
    /// What it computes.
    pub(crate) graph: Graph,
    /// Where its weights are.
    pub(crate) source: Arc<dyn Source>,
    /// What quantization did, by canonical name.
    pub(crate) damage: BTreeMap<String, Damage>,
    /// What every weight is before quantization.
    pub(crate) original: Original,
    /// What transformations did, in order.
    pub(crate) transforms: Vec<TransformReport>,
    /// Whether the recipe has a text to see activations on.
    pub(crate) calibrated: bool,
}

/// The weights of a model as a perfect quantizer would store them: those of the checkpoint, or of the last transformation.
pub(crate) struct Original {
    exprs: BTreeMap<String, Expr>,
    source: Arc<dyn Source>,
}

impl Original {
    fn new(model: &Model) -> Original {
        let exprs = model.graph.weights().map(|(_, value, expr)| (value.name.clone(), expr.clone())).collect();
        Original { exprs, source: model.source.clone() }
    }

    /// Rows of a weight; `false` if there is none of that name.
    pub(crate) fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> attar_graph::Result<bool> {
        let Some(expr) = self.exprs.get(name) else { return Ok(false) };
        expr.read(&*self.source, rows, out).map(|()| true)
    }
}

impl Working {
    pub(crate) fn new(title: &str, model: &Model, calibrated: bool) -> Working {
        Working {
            title: title.into(),
            graph: model.graph.clone(),
            source: model.source.clone(),
            damage: BTreeMap::new(),
            original: Original::new(model),
            transforms: Vec::new(),
            calibrated,
        }
    }

    /// The same function over other weights: `changed` ones, some of which lie in `top`.
    pub(crate) fn transform(&mut self, graph: Graph, changed: impl IntoIterator<Item = (String, Expr)>, top: Arc<dyn Source>) {
        self.original.exprs.extend(changed);
        self.original.source = Arc::new(Overlay::new(top.clone(), self.original.source.clone()));
        self.source = Arc::new(Overlay::new(top, self.source.clone()));
        self.graph = graph;
    }
}
