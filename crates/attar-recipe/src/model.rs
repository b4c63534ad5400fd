//! A model on its way through the steps of a variant.

use std::{collections::BTreeMap, sync::Arc};

use attar_graph::Graph;
use attar_model::Model;
use attar_tensor::{Damage, Source};

use crate::AllocationReport;

/// A model before quantization.
#[derive(Clone)]
pub(crate) struct Float {
    pub(crate) graph: Graph,
    pub(crate) source: Arc<dyn Source>,
}

/// Graph and weights as the steps so far left them.
#[derive(Clone)]
pub struct Working {
    /// For progress and messages.
    pub(crate) title: String,
    /// What it computes.
    pub(crate) graph: Graph,
    /// Where its weights are.
    pub(crate) source: Arc<dyn Source>,
    /// What quantization did, by canonical name.
    pub(crate) damage: BTreeMap<String, Damage>,
    /// The model that quantization started from, once it has: what the quantized one is held against.
    pub(crate) float: Option<Float>,
    /// Whether the recipe has a text to see activations on.
    pub(crate) calibrated: bool,
    /// How budgets were spent, in the order of the steps.
    pub(crate) allocations: Vec<AllocationReport>,
    /// While planning: graphs whose every weight has a format that a budget may give it.
    pub(crate) possible: Vec<Graph>,
}

impl Working {
    pub(crate) fn new(title: &str, model: &Model, calibrated: bool) -> Working {
        Working {
            title: title.into(),
            graph: model.graph.clone(),
            source: model.source.clone(),
            damage: BTreeMap::new(),
            float: None,
            calibrated,
            allocations: Vec::new(),
            possible: Vec::new(),
        }
    }
}
