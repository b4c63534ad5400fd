//! Channel scaling: a layer's inputs are divided by a vector, channel by channel, and its weights multiplied by it.
//!
//! The division is folded into what makes the channels: the gain and bias of a norm, the rows of `up` before `down`, the rows
//! of `value` before `output`. In grouped-query attention, a value channel has one scale for all query heads that share it. A
//! [`Smoother`] picks the vector from the inputs of the layers on the calibration text. Scaling changes no activation but those
//! that it scales, so one pass over the float model observes all sites.

mod awq;
mod seeing;
mod smoothquant;

use std::borrow::Cow;

use attar_graph::{Axis, BlockId, Expr, Graph, Node, Op, ValueId};
use attar_tensor::{Scheme, nearest};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use seeing::Seeing;

use super::{
    Rewrite,
    structure::{Gated, Layer, Norm, Values},
};
use crate::{
    Error, GridName, Grouping, Result, ScaleDtype, ScaleSearch, TailRule,
    error::{HAS_NO, NEEDS},
    quantize::{registered, scheme},
};

/// A way to pick the scales of channels.
pub trait Smoother: Sync {
    /// Its name in recipes.
    fn name(&self) -> &'static str;

    /// Moves whenever the same input gives other scales: part of every cache key.
    fn version(&self) -> u32;

    /// Whether the settings are those of this method.
    fn check(&self, settings: &Smooth) -> Result<()>;

    /// Bytes of memory that the layers of a site take at most, `[rows, columns]` each.
    fn memory(&self, layers: &[[usize; 2]]) -> u64;

    /// Picks a scale for every channel of a site. `weights` are `[rows, columns]` each, of layers that read what was
    /// `seen`; `channel` says which channel each column is.
    fn scales(&self, settings: &Smooth, weights: &[(usize, Vec<f32>)], seen: &Seeing, channel: &[usize]) -> Result<Choice>;
}

/// Every way, in the order of the documentation.
pub static SMOOTHERS: &[&dyn Smoother] = &[&awq::Awq, &smoothquant::SmoothQuant];

registered!(
    /// A smoother by its name.
    Method, "method", &'static dyn Smoother, SMOOTHERS
);

/// Scale channels so that quantization loses less; outputs stay the same.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Smooth {
    /// How scales are chosen.
    pub method: Method,
    /// For `smoothquant`: migration strength, the share of the quantization difficulty that moves from activations to
    /// weights; 0.5 by default.
    #[serde(default)]
    pub alpha: Option<f64>,
    /// For `awq`: number format that the weights will be quantized to.
    #[serde(default)]
    pub grid: Option<GridName>,
    /// For `awq`: group size that the weights will be quantized with, as in `quantize`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Grouping>,
    /// For `awq`: what to do where the group size does not divide the row, as in `quantize`.
    #[serde(default)]
    pub tail: TailRule,
    /// For `awq`: whether the weights will have zero points.
    #[serde(default)]
    pub asymmetric: bool,
    /// For `awq`: whether the scales of the weights will all be positive.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub positive_scales: bool,
    /// For `awq`: how the scales of the weights will be chosen.
    #[serde(default)]
    pub scales: ScaleSearch,
    /// For `awq`: number format that the scales will have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<ScaleDtype>,
}

/// Scales for the channels of a site, and their error.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// One for each channel, positive and finite.
    pub scales: Vec<f32>,
    /// The exponent.
    pub alpha: f64,
    /// Error of the layers' outputs with these scales, relative to that without; 1 if it was not measured.
    pub error: f64,
}

/// The source of channels.
#[derive(Clone, Copy, Debug)]
enum Producer {
    /// A norm: its gain and bias.
    Norm(ValueId, Option<ValueId>),
    /// A layer: its rows and bias.
    Rows(Layer),
}

/// How channels map to the columns of a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// One to one.
    Even,
    /// By heads, each of which serves `group` neighbouring heads of the reader.
    Heads {
        /// Channels per head.
        head: usize,
        /// Heads of the reader per head.
        group: usize,
    },
}

/// A place where channels can be scaled.
#[derive(Clone, Debug)]
pub struct Site {
    /// The canonical name of the weight that makes the channels.
    pub name: String,
    /// The block of its readers.
    pub block: BlockId,
    /// Number of channels.
    pub channels: usize,
    /// How channels map to columns.
    pub spread: Spread,
    /// Layers that read the channels.
    pub readers: Vec<Layer>,
    producer: Producer,
}

/// The scales of a site as expressions: per channel, and per column of the readers.
#[derive(Clone, Debug)]
pub struct SmoothScales {
    /// `[channels]`.
    pub channels: Expr,
    /// `[columns]`.
    pub columns: Expr,
}

impl Site {
    /// Every site of `graph`, in running order: norms that only linear layers read, values, and the inner channels of gated
    /// MLPs. Other MLPs have none, since scaling does not commute with an activation function. A head that reads the last norm
    /// is no site: it is seldom quantized like the blocks, and has too many rows to search over.
    pub fn of(graph: &Graph) -> Result<Vec<Site>> {
        let mut sites = Vec::new();
        let is_head = |reader: &Layer| leads_out(graph, reader.output);
        for norm in Norm::of(graph).into_iter().filter(|norm| !norm.readers.iter().any(is_head)) {
            sites.push(Site::new(graph, Producer::Norm(norm.gain, norm.bias), norm.readers, Spread::Even));
        }
        for Values { value, output, heads, key_heads, head } in Values::of(graph)? {
            let spread = Spread::Heads { head, group: heads / key_heads.max(1) };
            sites.push(Site::new(graph, Producer::Rows(value), vec![output], spread));
        }
        for Gated { up, down } in Gated::of(graph)? {
            sites.push(Site::new(graph, Producer::Rows(up), vec![down], Spread::Even));
        }
        let order = |site: &Site| graph.nodes().iter().position(|node| node.outputs.contains(&site.readers[0].output));
        sites.sort_by_key(order);
        Ok(sites)
    }

    fn new(graph: &Graph, producer: Producer, readers: Vec<Layer>, spread: Spread) -> Site {
        let makes = match producer {
            Producer::Norm(gain, _) => gain,
            Producer::Rows(layer) => layer.weight,
        };
        let channels = graph.fact(makes).constant_dims().map_or(0, |dims| dims[0]);
        let first = graph.maker(readers[0].output).expect("a node makes it");
        Site { name: graph.get(makes).name.clone(), block: first.block, channels, spread, readers, producer }
    }

    /// The channel of each column of the readers.
    pub fn channel_of_columns(&self, columns: usize) -> Vec<usize> {
        let of = |column: usize| match self.spread {
            Spread::Even => column,
            Spread::Heads { head, group } => column / (head * group) * head + column % head,
        };
        (0..columns).map(of).collect()
    }
}

impl Smooth {
    /// How the weights will be quantized, for methods that depend on it.
    pub fn scheme(&self) -> Option<Scheme> {
        let scheme = scheme(self.grid?, self.group, self.scale_dtype, self.asymmetric, self.tail);
        Some(Scheme { positive: self.positive_scales, ..scheme })
    }

    /// The sites to scale, in running order. Reads no weight.
    pub fn sites(&self, graph: &Graph) -> Result<Vec<Site>> {
        self.method.0.check(self)?;
        let sites = Site::of(graph)?;
        if sites.is_empty() {
            return Err(Error::NothingToScale);
        }
        if let Some(scheme) = self.scheme() {
            sites.iter().flat_map(|site| &site.readers).try_for_each(|reader| fits(graph, reader, scheme))?;
        }
        Ok(sites)
    }

    /// The graph with the channels of each site scaled, which computes the same function. Reads no weight.
    pub fn rewrite(&self, graph: &Graph, sites: &[(Site, SmoothScales)]) -> Result<Rewrite> {
        let mut rewrite = Rewrite::new(graph);
        for (site, scales) in sites {
            let channels = || scales.channels.clone();
            match site.producer {
                Producer::Norm(gain, _) => rewrite.change(gain, |g| g.divided(Axis::Columns, channels()))?,
                Producer::Rows(Layer { weight, .. }) => rewrite.change(weight, |w| w.divided(Axis::Rows, channels()))?,
            }
            if let Producer::Norm(_, Some(bias)) | Producer::Rows(Layer { bias: Some(bias), .. }) = site.producer {
                rewrite.change(bias, |b| b.divided(Axis::Columns, channels()))?;
            }
            for reader in &site.readers {
                rewrite.change(reader.weight, |w| w.scaled(Axis::Columns, scales.columns.clone()))?;
            }
        }
        Ok(rewrite)
    }

    fn has_no(&self, key: &'static str, given: bool) -> Result<()> {
        let method = self.method.0.name();
        if given { Err(Error::Method { key, method, problem: HAS_NO }) } else { Ok(()) }
    }

    fn needs(&self, key: &'static str, given: bool) -> Result<()> {
        let method = self.method.0.name();
        if given { Ok(()) } else { Err(Error::Method { key, method, problem: NEEDS }) }
    }
}

/// Whether `id` is an output of the model, but for a bound or a factor.
fn leads_out(graph: &Graph, id: ValueId) -> bool {
    let bounded = |node: &&Node| node.inputs.contains(&id) && matches!(node.op, Op::Softcap { .. } | Op::Scale { .. });
    graph.outputs().contains(&id) || graph.nodes().iter().filter(bounded).any(|node| leads_out(graph, node.output()))
}

fn fits(graph: &Graph, reader: &Layer, scheme: Scheme) -> Result<()> {
    let weight = graph.get(reader.weight);
    let columns = weight.fact.width().unwrap_or(0);
    let (key, name) = ("group".to_owned(), weight.name.clone());
    scheme.fit(columns).map_err(|source| Error::DoesNotFit { key, weight: name, others: 0, scheme, source })
}
