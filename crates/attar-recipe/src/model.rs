//! The model between two steps of a variant.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use attar_compile::device::Zeros;
use attar_compress::{Losses, TrainingText};
use attar_graph::{Expr, Graph};
use attar_model::Model;
use attar_tensor::{Damage, Encoding, Overlay, Source, TensorInfo};

use crate::{Error, Result, data::Data, described, extras::Folder, kept::Kept, report::Findings, shape};

/// Graph and weights as the steps so far left them.
#[derive(Clone)]
pub struct Working {
    /// For progress and messages.
    pub(crate) title: String,
    /// Name of the recipe, or the command that stands for one; empty while planning.
    pub(crate) recipe: String,
    /// What it computes.
    pub(crate) graph: Graph,
    /// Where its weights are.
    pub(crate) source: Arc<dyn Source>,
    /// What quantization did, by canonical name.
    pub(crate) damage: BTreeMap<String, Damage>,
    /// Of which rows, by canonical name.
    pub(crate) losses: BTreeMap<String, Losses>,
    /// Weights that may lose rows and groups, by canonical name.
    pub(crate) may_lose: BTreeSet<String>,
    /// Weights whose numbers that are exactly zero left by pruning, and stay zero; by canonical name.
    pub(crate) zeros: BTreeSet<String>,
    /// Weights that a step made for the coder of a device, by canonical name.
    pub(crate) coded: BTreeSet<String>,
    /// That device, and what its coder takes.
    pub(crate) coder: Option<(String, Zeros)>,
    /// While planning: what is no mistake, and may not be meant.
    pub(crate) notes: Vec<String>,
    /// The same without quantization: what the quantized one is held against.
    pub(crate) float: Float,
    /// The model as the recipe opened it: what a smaller one is held against and learns from.
    pub(crate) opened: Float,
    /// The most tokens it was made for, where the checkpoint says so.
    pub(crate) context: Option<usize>,
    /// Whether the recipe has a text to see activations on.
    pub(crate) calibrated: bool,
    /// Tokens of that text.
    pub(crate) tokens: u64,
    /// Tokens of one of its windows.
    pub(crate) window: usize,
    /// The text to train on, if it is one of its own.
    pub(crate) training: Option<TrainingText>,
    /// The checkpoint that the recipe opened, for its tokenizer.
    pub(crate) checkpoint: Arc<Model>,
    /// While planning: bytes that a walk of the step takes.
    pub(crate) walking: u64,
    /// While planning: whether one of these is proven.
    pub(crate) proves: bool,
    /// What the steps found.
    pub(crate) findings: Findings,
    /// What planning computed, for the run.
    pub(crate) kept: Kept,
    /// Extra files of the steps, in the order of the steps.
    pub(crate) folders: Vec<Folder>,
    /// While planning: whether the plans of the last step `compile` compute logits; none without such a step.
    pub(crate) compiled: Option<bool>,
    /// Low-rank adapters, if a step left such.
    pub(crate) adapters: Option<Adapters>,
    /// While planning: graphs whose every weight has a format that a budget may give it.
    pub(crate) possible: Vec<Graph>,
}

/// Which weights have low-rank adapters.
#[derive(Clone, Debug)]
pub(crate) struct Adapters {
    pub(crate) rank: usize,
    /// Canonical names, in running order.
    pub(crate) weights: Vec<String>,
}

/// A model as a perfect quantizer would store it: the checkpoint's weights, or those of the last transformation.
#[derive(Clone)]
pub(crate) struct Float {
    pub(crate) graph: Graph,
    pub(crate) source: Arc<dyn Source>,
}

impl Float {
    /// The weight of that name.
    pub(crate) fn weight(&self, name: &str) -> Option<(Encoding, &Expr)> {
        let found = self.graph.weights().find(|(_, value, _)| value.name == name);
        found.map(|(_, value, expr)| (value.fact.encoding, expr))
    }

    /// Rows of a weight; `false` if there is none of that name.
    pub(crate) fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> attar_graph::Result<bool> {
        let Some((_, expr)) = self.weight(name) else { return Ok(false) };
        expr.read(&*self.source, rows, out).map(|()| true)
    }
}

impl Working {
    /// The model as it was opened. The folder of an artifact that attar wrote says which weights have zeros that stay.
    pub(crate) fn new(title: &str, model: &Model, data: &Data) -> Result<Working> {
        let calibration = data.calibration.as_ref();
        let opened = Float { graph: model.graph.clone(), source: model.source.clone() };
        Ok(Working {
            title: title.into(),
            recipe: String::new(),
            graph: model.graph.clone(),
            source: model.source.clone(),
            damage: BTreeMap::new(),
            losses: BTreeMap::new(),
            may_lose: BTreeSet::new(),
            zeros: described::zeros_in(&model.path)?,
            coded: BTreeSet::new(),
            coder: None,
            notes: Vec::new(),
            float: opened.clone(),
            opened,
            context: model.config.context,
            calibrated: calibration.is_some(),
            tokens: calibration.map_or(0, |c| c.samples.saturating_mul(c.length(&model.config)) as u64),
            window: calibration.map_or(0, |c| c.length(&model.config)),
            training: data.train.clone(),
            checkpoint: Arc::new(model.with(model.graph.clone(), model.source.clone())),
            walking: 0,
            proves: false,
            findings: Findings::default(),
            kept: Kept::default(),
            folders: Vec::new(),
            compiled: None,
            adapters: None,
            possible: Vec::new(),
        })
    }

    /// Refuses a step that would fill zeros that must stay.
    pub(crate) fn check_no_zeros(&self, step: &str, hint: &str) -> Result<()> {
        let Some(weight) = self.zeros.first() else { return Ok(()) };
        let message = format!("`{weight}` is sparse, and `{step}` would fill its zeros");
        Err(Error::recipe(message).hint(hint.to_owned()))
    }

    /// True bits per weight: over all, and over the quantized ones.
    pub(crate) fn bits(&self) -> (f64, f64) {
        let (mut all, mut quantized) = ((0u64, 0u64), (0u64, 0u64));
        let mut seen = std::collections::HashSet::new();
        for (_, value, expr) in self.graph.weights() {
            if !seen.insert((expr.clone(), value.fact.encoding.to_string())) {
                continue;
            }
            let info = TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding };
            let (bits, count) = (info.true_bits(), info.elements() as u64);
            all = (all.0 + bits, all.1 + count);
            if matches!(info.encoding, Encoding::Quantized(_)) {
                quantized = (quantized.0 + bits, quantized.1 + count);
            }
        }
        let per = |(bits, count): (u64, u64)| bits as f64 / count.max(1) as f64;
        (per(all), per(quantized))
    }

    /// Bytes of the widest value inside a block, and of what waits between two blocks, for one token in f32.
    pub(crate) fn token_bytes(&self) -> [u64; 2] {
        [4 * shape::widest_inside(&self.graph), 4 * shape::residual_width(&self.graph)]
    }

    /// Whether the float model has the same values as this one, by number.
    pub(crate) fn matches_float(&self) -> bool {
        let names = |graph: &Graph| graph.values().map(|(_, value)| value.name.clone()).collect::<Vec<_>>();
        names(&self.graph) == names(&self.float.graph)
    }

    /// The same function over other weights: `changed` ones, some of which are in `top`.
    pub(crate) fn transform(&mut self, graph: Graph, changed: impl IntoIterator<Item = (String, Expr)>, top: Arc<dyn Source>) {
        let changed: BTreeMap<String, Expr> = changed.into_iter().collect();
        let mut float = graph.clone();
        for (id, value, _) in graph.weights().filter(|(_, value, _)| !changed.contains_key(&value.name)) {
            if let Some((encoding, expr)) = self.float.weight(&value.name) {
                float.replace_weight(id, encoding, expr.clone());
            }
        }
        self.float = Float { graph: float, source: Arc::new(Overlay::new(top.clone(), self.float.source.clone())) };
        self.source = Arc::new(Overlay::new(top, self.source.clone()));
        self.graph = graph;
    }
}
