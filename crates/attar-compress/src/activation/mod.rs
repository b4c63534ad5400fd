//! Which activations become integers, and what range their scales cover.
//!
//! A [`Site`] is a value that gets an op `quantize` after it: the input of linear layers, once for all that read it, or the
//! input of a cache. Scales are dynamic (one per row, computed at inference) or static; static scales are chosen by an
//! [`Observer`] from the distribution of values on calibration text.

mod budget;
mod config;
mod distribution;
mod minmax;
mod mse;
mod percentile;
mod values;

use attar_graph::{
    Dim, Expr, Fact, Graph, Op, Origin, Result as GraphResult, ValueId,
    integer::{Rounding, SMALLEST_RANGE},
    op::zero_dtype,
};
use attar_tensor::{Dtype, Encoding};

pub use budget::{ActivationBudget, ActivationCost, ActivationSensitivity};
pub use config::{ActivationBits, ActivationGranularity, ActivationMode, ActivationValues, Activations, KvCache, ObserverName};
pub use distribution::{Counts, Distribution};

/// Chooses the range of values that codes reach; what lies beyond is clipped.
pub trait Observer: Sync {
    /// Its name in recipes.
    fn name(&self) -> &'static str;

    /// Raised whenever the same values give another range: part of every cache key.
    fn version(&self) -> u32;

    /// Least and greatest value, neither beyond what was seen. `number` is that of the observer's own setting.
    fn range(&self, seen: &Distribution, codes: Codes, number: f64) -> [f32; 2];

    /// The number of its own setting when none is given; `None`: it has no such setting.
    fn default_number(&self) -> Option<f64>;
}

/// Every observer, in the order of the documentation.
pub static OBSERVERS: &[&dyn Observer] = &[&minmax::MinMax, &percentile::Percentile, &mse::Mse];

/// Signed integers with or without a zero point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Codes {
    /// Bits per code: 4, 8 or 16.
    pub bits: u32,
    /// Whether they have a zero point.
    pub asymmetric: bool,
}

impl Codes {
    /// The scale and zero that cover a range. The zero is 0 when symmetric.
    pub fn cover(self, [low, high]: [f32; 2]) -> (f32, f32) {
        let half = (1i64 << (self.bits - 1)) as f32;
        if !self.asymmetric {
            return (high.max(-low).max(SMALLEST_RANGE) / (half - 1.0), 0.0);
        }
        let (low, high) = (low.min(0.0), high.max(0.0));
        let scale = (high - low).max(SMALLEST_RANGE) / (2.0 * half - 1.0);
        (scale, (-half - low / scale).round_ties_even().clamp(-half, half - 1.0))
    }

    /// Rounding by the scale that covers a range.
    pub fn rounding(self, range: [f32; 2]) -> Rounding {
        let (scale, zero) = self.cover(range);
        Rounding::fixed(self.bits, vec![scale], if self.asymmetric { vec![zero] } else { vec![] })
    }
}

/// A value that becomes integers.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The value's name.
    pub value: String,
    /// Size of its last dimension.
    pub width: usize,
    /// What it is rounded to.
    pub codes: Codes,
    /// Number of static scales, 1 or `width`; `None` if scales are dynamic.
    pub scales: Option<usize>,
    /// Its readers: linear layers or a cache, or all.
    pub feeds: Vec<Feed>,
    /// Whether the model returns it: the rounded value has its name then.
    pub returned: bool,
    /// What is known of its values before any is seen.
    pub known: Known,
}

/// What is known of a value before any text is read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Known {
    /// Nothing.
    #[default]
    Nothing,
    /// Shares from 0 to 1: the grid of all runtimes, `2^-8` from -128 on or `2^-15`.
    Shares,
    /// Scores, whose codes must tell what a mask hides: they are spread over this much at least.
    Spread(f32),
}

impl Known {
    /// Scale and zero for values of a range.
    pub fn cover(self, codes: Codes, [low, high]: [f32; 2]) -> (f32, f32) {
        match self {
            Known::Nothing => codes.cover([low, high]),
            Known::Shares if codes.bits > 8 => (1.0 / 32768.0, 0.0),
            Known::Shares => (1.0 / 256.0, -128.0),
            Known::Spread(least) if codes.asymmetric => codes.cover([low.min(high.max(0.0) - least), high]),
            Known::Spread(least) => codes.cover([low.min(-least / 2.0), high]),
        }
    }
}

/// The reader of a quantized value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// A linear layer, by the canonical name of its weight.
    Linear(String),
    /// A cache, by its state.
    Cache(String),
    /// Whoever reads it.
    All,
}

impl std::fmt::Display for Feed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Feed::Linear(weight) => f.write_str(weight),
            Feed::Cache(state) => write!(f, "cache of {state}"),
            Feed::All => f.write_str("every reader"),
        }
    }
}

impl Site {
    /// Name of the quantized value.
    pub fn quantized(&self) -> String {
        if self.returned { self.value.clone() } else { format!("{}.int{}", self.value, self.codes.bits) }
    }

    fn is_for_all(&self) -> bool {
        self.feeds == [Feed::All]
    }

    /// Canonical names of the constants for static scales and zeros.
    pub fn constants(&self) -> [String; 2] {
        let of = if self.is_for_all() { self.quantized() } else { self.value.clone() };
        [format!("{of}.scale"), format!("{of}.zero")]
    }

    /// In words: `int8/token`, `int8/tensor/asymmetric`, `int16/channel`.
    pub fn encoding(&self) -> String {
        let shared = match self.scales {
            None => "token",
            Some(1) => "tensor",
            Some(_) => "channel",
        };
        let zero = if self.codes.asymmetric { "/asymmetric" } else { "" };
        format!("int{}/{shared}{zero}", self.codes.bits)
    }

    /// Whether a node reads the quantized value here.
    fn is_read_by(&self, graph: &Graph, op: &Op, inputs: &[ValueId]) -> bool {
        let weight = || inputs.get(1).map(|id| graph.get(*id).name.as_str());
        graph.get(inputs[0]).name == self.value
            && self.feeds.iter().any(|feed| match (feed, op) {
                (Feed::Linear(name), Op::Linear) => weight() == Some(name),
                (Feed::Cache(state), Op::Cache { name }) => state == name,
                _ => false,
            })
    }

    /// Adds the op after `value`.
    fn add(&self, graph: &mut Graph, value: ValueId) -> GraphResult<ValueId> {
        let mut inputs = vec![value];
        if let Some(count) = self.scales {
            let [scale, zero] = self.constants();
            let mut constant = |name: &str, dtype| {
                let fact = Fact { dims: vec![Dim::Constant(count)], encoding: Encoding::Plain(dtype) };
                graph.weight(name, fact, Expr::tensor(name))
            };
            inputs.push(constant(&scale, Dtype::F32)?);
            if self.codes.asymmetric {
                inputs.push(constant(&zero, zero_dtype(self.codes.bits))?);
            }
        }
        graph.node(&self.quantized(), Op::Quantize { bits: self.codes.bits }, &inputs)
    }
}

/// The same graph with every site quantized, each once: after it is made, or before the first of its readers that are named.
pub fn insert(graph: &Graph, sites: &[Site]) -> GraphResult<Graph> {
    let mut copy = Copy { from: graph, to: Graph::new(graph.name()), ids: Default::default() };
    for id in graph.inputs() {
        let value = graph.get(*id);
        let input = copy.to.input(&value.name, value.fact.clone())?;
        copy.ids.insert(*id, input);
    }
    for block in graph.blocks() {
        copy.to.block(graph.block_name(block));
        for node in graph.nodes_of(block) {
            let mut inputs = node.inputs.iter().map(|id| copy.value(*id)).collect::<GraphResult<Vec<ValueId>>>()?;
            if let Some(site) = sites.iter().find(|site| site.is_read_by(graph, &node.op, &node.inputs)) {
                inputs[0] = match copy.to.find(&site.quantized()) {
                    Some(made) => made,
                    None => site.add(&mut copy.to, inputs[0])?,
                };
            }
            let mut names: Vec<String> = node.outputs.iter().map(|id| graph.get(*id).name.clone()).collect();
            let rounded = sites.iter().find(|site| site.is_for_all() && names == [site.value.as_str()]);
            if rounded.is_some_and(|site| site.returned) {
                names[0].push_str(".exact");
            }
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut outputs = copy.to.node_of(&names, node.op.clone(), &inputs)?;
            if let Some(site) = rounded {
                outputs[0] = site.add(&mut copy.to, outputs[0])?;
            }
            copy.ids.extend(node.outputs.iter().copied().zip(outputs));
        }
    }
    for id in graph.outputs() {
        let output = copy.value(*id)?;
        copy.to.output(output);
    }
    copy.to.verify()?;
    Ok(copy.to)
}

struct Copy<'g> {
    from: &'g Graph,
    to: Graph,
    ids: std::collections::HashMap<ValueId, ValueId>,
}

impl Copy<'_> {
    /// The value there that `id` is here; a weight is made when it is first read.
    fn value(&mut self, id: ValueId) -> GraphResult<ValueId> {
        if let Some(known) = self.ids.get(&id) {
            return Ok(*known);
        }
        let value = self.from.get(id);
        let Origin::Weight(expr) = &value.origin else { unreachable!("inputs and outputs of nodes are there already") };
        let made = self.to.weight(&value.name, value.fact.clone(), expr.clone())?;
        self.ids.insert(id, made);
        Ok(made)
    }
}
