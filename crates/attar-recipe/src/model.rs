//! A model on its way through the steps of a variant.

use std::{collections::BTreeMap, sync::Arc};

use attar_graph::Graph;
use attar_model::Model;
use attar_tensor::{Damage, Source};

use crate::ActivationReport;

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
    /// Values that are in integers, in running order.
    pub(crate) activations: Vec<ActivationReport>,
    /// Whether the recipe has a text to see activations on.
    pub(crate) calibrated: bool,
}

impl Working {
    pub(crate) fn new(title: &str, model: &Model, calibrated: bool) -> Working {
        Working {
            title: title.into(),
            graph: model.graph.clone(),
            source: model.source.clone(),
            damage: BTreeMap::new(),
            activations: Vec::new(),
            calibrated,
        }
    }
}
