//! The ops: an enum, so that the compiler finds the places that a new op must handle, and a table of their behaviour, one
//! file per op.

mod activation;
mod attention;
mod cache;
mod concat;
mod context;
mod elementwise;
mod embedding;
mod fused;
mod gelu;
mod heads;
mod layer_norm;
mod linear;
mod mode;
mod moments;
mod pool;
mod products;
mod quantize;
mod rms_norm;
mod rope;
mod softcap;
mod split;

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::{Error, Fact, Graph, Node, Result, ValueId, error::Problem};

pub use attention::Attention;
pub use context::{Context, Operand};
pub use fused::{Fused, FusedKind, Projection, Roles};
pub use mode::{Mode, State};
pub use quantize::zero_dtype;
pub(crate) use rope::Tables;
pub use rope::{Rope, Scaling};

/// What a node does. `x` stands for activations `[batch, seq, width]` or, split, `[batch, heads, seq, head]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `tokens, table [vocabulary, width]`: the rows of the table at the tokens. Learned positions are a table of positions.
    Embedding,
    /// `x, weight [out, in]` and perhaps `bias [out]`: `x weight^T + bias`.
    Linear,
    /// `x, gain [width]`: `x / sqrt(mean(x^2) + epsilon) * gain` over the last dimension (Zhang & Sennrich 2019).
    RmsNorm {
        /// Keeps the root away from zero.
        epsilon: f64,
    },
    /// `x, gain [width]` and perhaps `bias [width]`: `(x - mean) / sqrt(variance + epsilon) * gain + bias` over the last
    /// dimension (Ba et al. 2016).
    LayerNorm {
        /// Keeps the root away from zero.
        epsilon: f64,
    },
    /// `x [batch, seq, heads * head]` to `[batch, heads, seq, head]`.
    SplitHeads {
        /// How many.
        heads: usize,
    },
    /// `x [batch, heads, seq, head]` to `[batch, seq, heads * head]`.
    MergeHeads,
    /// `x split, positions [batch, seq]`: rotary position embedding.
    Rope(Rope),
    /// `x split`: a cache. The values of earlier calls followed by `x`, along `seq`.
    Cache {
        /// Which state.
        name: String,
    },
    /// `query, key, value`, all split: attention, causal or full; a key head serves several query heads.
    Attention(Attention),
    /// `query, key`, both split: their products times `scale`, `[batch, heads, seq, past+seq]`.
    Scores {
        /// Multiplies the products.
        scale: f64,
    },
    /// `x [batch, heads, seq, past+seq]`: the softmax over the positions that a query sees, 0 elsewhere.
    Softmax {
        /// Whether a query sees no position after its own.
        causal: bool,
        /// A query sees the positions that are less than this away from its own; all, without a window.
        window: Option<usize>,
    },
    /// `shares [batch, heads, seq, past+seq], value` split: values, each as often as its share says.
    Mix,
    /// `x`: less its mean over the last dimension.
    Center,
    /// `x [.., width]` to `[.., 1]`: the mean of squares.
    MeanSquare,
    /// `1 / sqrt(x + epsilon)`.
    Rsqrt {
        /// Keeps the root away from zero.
        epsilon: f64,
    },
    /// `gate, up`: `silu(gate) * up` (Shazeer 2020).
    Swiglu,
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * (1 + erf(x / sqrt(2))) / 2` (Hendrycks & Gimpel 2016).
    Gelu,
    /// `x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2`: the approximation of [`Op::Gelu`].
    GeluTanh,
    /// The error function of `x`.
    Erf,
    /// The hyperbolic tangent of `x`.
    Tanh,
    /// `cap * tanh(x / cap)`.
    Softcap {
        /// The bound.
        cap: f64,
    },
    /// `x` times a constant.
    Scale {
        /// The constant.
        by: f64,
    },
    /// `x, other`: their product, element by element. `other` has the shape of `x`, or is 1 wide, or one vector for all rows.
    Mul,
    /// `x, other`: their sum, as [`Op::Mul`].
    Add,
    /// `x [batch, seq, width]` to `[batch, width]`: the mean over positions.
    MeanPool,
    /// `x [batch, seq, width]` to `[batch, width]`: the first position (`[CLS]` of BERT).
    FirstPool,
    /// `x / max(|x|, epsilon)`, where `|x|` is the Euclidean length of the last dimension.
    Normalize {
        /// Keeps the length away from zero.
        epsilon: f64,
    },
    /// `x [.., width]`, perhaps `scale [1]` or `[width]`, perhaps `zero` of the shape of `scale`: quantized to signed
    /// integers of `bits` bits and dequantized, `(code - zero) * scale`. Without a scale, every row of the last dimension
    /// is scaled by its largest magnitude.
    Quantize {
        /// 4, 8 or 16.
        bits: u32,
    },
    /// Values that differ in the last dimension only, concatenated along it.
    Concat,
    /// `x [.., width]`: a range of its last dimension.
    Slice {
        /// The first index.
        start: usize,
        /// How many.
        length: usize,
    },
    /// `x [.., width]`: its last dimension in consecutive pieces, one result each.
    Split {
        /// Their widths.
        widths: Vec<usize>,
    },
    /// The inputs of a body: several nodes that are computed as one.
    Fused(Fused),
}

/// Every op, in the order of the documentation.
pub static OPS: &[&OpDef] = &[
    &embedding::DEF,
    &linear::DEF,
    &rms_norm::DEF,
    &layer_norm::DEF,
    &heads::SPLIT,
    &heads::MERGE,
    &rope::DEF,
    &cache::DEF,
    &attention::DEF,
    &products::SCORES,
    &products::SOFTMAX,
    &products::MIX,
    &moments::CENTER,
    &moments::MEAN_SQUARE,
    &moments::RSQRT,
    &activation::SWIGLU,
    &activation::SILU,
    &gelu::GELU,
    &gelu::GELU_TANH,
    &gelu::ERF,
    &softcap::TANH,
    &softcap::SOFTCAP,
    &softcap::SCALE,
    &elementwise::MUL,
    &elementwise::ADD,
    &pool::MEAN,
    &pool::FIRST,
    &pool::NORMALIZE,
    &quantize::DEF,
    &concat::CONCAT,
    &concat::SLICE,
    &split::DEF,
    &fused::DEF,
];

/// The behaviour of an op.
pub struct OpDef {
    /// Its name in text form.
    pub name: &'static str,
    /// The operands that it takes, for messages.
    pub wants: &'static str,
    /// Parses the attributes of its text form.
    pub parse: fn(&mut Attributes) -> std::result::Result<Op, Problem>,
    /// The attributes of its text form.
    pub attributes: fn(&Op) -> Vec<(&'static str, Attribute)>,
    /// The fact of its result, if it can take such operands; of the first, if it has several.
    pub infer: fn(&Op, &[&Fact]) -> Option<Fact>,
    /// Computes its result; the first, if it has several.
    pub evaluate: fn(&Op, &[Operand<'_>], &mut Context<'_>) -> Result<Tensor>,
    /// Adds the same in simpler ops to a graph and returns its value.
    pub decompose: Option<Decompose>,
    /// Of an op with several results.
    pub several: Option<Several>,
    /// Multiply-accumulates, from the shapes of its operands.
    pub macs: fn(&Op, &[Vec<usize>]) -> u64,
}

/// Adds the nodes of a decomposition; the last of them has the given name.
pub type Decompose = fn(&mut Graph, &str, &Op, &[ValueId]) -> Result<ValueId>;

/// The behaviour of an op with several results.
pub struct Several {
    /// The facts of all results.
    pub infer: fn(&Op, &[&Fact]) -> Option<Vec<Fact>>,
    /// Computes all results.
    pub evaluate: fn(&Op, &[Operand<'_>], &mut Context<'_>) -> Result<Vec<Tensor>>,
    /// Adds the same in ops of one result to a graph, under the given names.
    pub decompose: DecomposeAll,
}

/// Adds the nodes of a decomposition; the given names are those of the results.
pub type DecomposeAll = fn(&mut Graph, &[&str], &Op, &[ValueId]) -> Result<Vec<ValueId>>;

impl Op {
    /// Its behaviour.
    pub fn def(&self) -> &'static OpDef {
        match self {
            Op::Embedding => &embedding::DEF,
            Op::Linear => &linear::DEF,
            Op::RmsNorm { .. } => &rms_norm::DEF,
            Op::LayerNorm { .. } => &layer_norm::DEF,
            Op::SplitHeads { .. } => &heads::SPLIT,
            Op::MergeHeads => &heads::MERGE,
            Op::Rope(_) => &rope::DEF,
            Op::Cache { .. } => &cache::DEF,
            Op::Attention(_) => &attention::DEF,
            Op::Scores { .. } => &products::SCORES,
            Op::Softmax { .. } => &products::SOFTMAX,
            Op::Mix => &products::MIX,
            Op::Center => &moments::CENTER,
            Op::MeanSquare => &moments::MEAN_SQUARE,
            Op::Rsqrt { .. } => &moments::RSQRT,
            Op::Swiglu => &activation::SWIGLU,
            Op::Silu => &activation::SILU,
            Op::Gelu => &gelu::GELU,
            Op::GeluTanh => &gelu::GELU_TANH,
            Op::Erf => &gelu::ERF,
            Op::Tanh => &softcap::TANH,
            Op::Softcap { .. } => &softcap::SOFTCAP,
            Op::Scale { .. } => &softcap::SCALE,
            Op::Mul => &elementwise::MUL,
            Op::Add => &elementwise::ADD,
            Op::MeanPool => &pool::MEAN,
            Op::FirstPool => &pool::FIRST,
            Op::Normalize { .. } => &pool::NORMALIZE,
            Op::Quantize { .. } => &quantize::DEF,
            Op::Concat => &concat::CONCAT,
            Op::Slice { .. } => &concat::SLICE,
            Op::Split { .. } => &split::DEF,
            Op::Fused(_) => &fused::DEF,
        }
    }

    /// The facts of its results.
    pub fn infer(&self, node: &str, facts: &[&Fact]) -> Result<Vec<Fact>> {
        let def = self.def();
        let found = match &def.several {
            Some(several) => (several.infer)(self, facts),
            None => (def.infer)(self, facts).map(|fact| vec![fact]),
        };
        found.ok_or_else(|| {
            let found = facts.iter().map(|f| f.to_string()).collect::<Vec<_>>().join(", ");
            Error::Operands { node: node.into(), op: def.name, wanted: def.wants, found }
        })
    }

    /// Kind and body, if it has one.
    pub fn fused(&self) -> Option<&Fused> {
        match self {
            Op::Fused(fused) => Some(fused),
            _ => None,
        }
    }

    /// Whether position `i` of its result depends on position `i` of its operands alone.
    pub fn is_pointwise(&self) -> bool {
        match self {
            Op::Fused(fused) => fused.body().nodes().iter().all(|node| node.op.is_pointwise()),
            Op::Attention(_) | Op::Cache { .. } | Op::SplitHeads { .. } | Op::MergeHeads | Op::Rope(_) => false,
            Op::Scores { .. } | Op::Softmax { .. } | Op::Mix => false,
            Op::MeanPool | Op::FirstPool => false,
            _ => true,
        }
    }

    /// Whether it is an activation of one number: what stands between the linear layers of an MLP.
    pub fn is_activation(&self) -> bool {
        matches!(self, Op::Silu | Op::Gelu | Op::GeluTanh)
    }

    /// Evaluates all its results and counts what it multiplies.
    pub(crate) fn perform(&self, operands: &[Operand<'_>], facts: &[&Fact], context: &mut Context<'_>) -> Result<Vec<Tensor>> {
        let def = self.def();
        // The nodes of a body are counted one by one: only they know how much a cache holds.
        if self.fused().is_none() {
            let dims: Vec<Vec<usize>> = operands.iter().zip(facts).map(|(operand, fact)| operand.dims(fact)).collect();
            *context.macs += (def.macs)(self, &dims);
        }
        match &def.several {
            Some(several) => (several.evaluate)(self, operands, context),
            None => (def.evaluate)(self, operands, context).map(|tensor| vec![tensor]),
        }
    }
}

/// Adds the replacement of a node with one result to the new graph, given the node, the name of its value and its operands
/// there.
pub type Rebuild<'f> = &'f mut dyn FnMut(&mut Graph, &Node, &str, &[ValueId]) -> Result<ValueId>;

impl Graph {
    /// A copy in which `rebuild` adds every node with one result. Inputs, weights, blocks and all other nodes are copied.
    pub fn rebuilt(&self, rebuild: Rebuild<'_>) -> Result<Graph> {
        self.rewrite(&mut |copy, node| {
            let [made] = node.outputs[..] else { return copy.keep(node) };
            let inputs = copy.values(&node.inputs)?;
            let output = rebuild(copy.graph(), node, &self.get(made).name, &inputs)?;
            copy.put(made, output);
            Ok(())
        })
    }

    /// The same function, with every node that `legal` rejects decomposed into simpler ops, repeatedly if need be. Fused
    /// nodes become the nodes of their bodies.
    pub fn legalize(&self, legal: &dyn Fn(&Op) -> bool) -> Result<Graph> {
        let simpler = |op: &Op| !legal(op) && (op.def().decompose.is_some() || op.def().several.is_some());
        let mut graph = self.rewrite(&mut |copy, node| {
            if !simpler(&node.op) {
                return copy.keep(node);
            }
            let (def, inputs) = (node.op.def(), copy.values(&node.inputs)?);
            let names: Vec<&str> = node.outputs.iter().map(|id| self.get(*id).name.as_str()).collect();
            let made = match (&def.several, def.decompose) {
                (Some(several), _) => (several.decompose)(copy.graph(), &names, &node.op, &inputs)?,
                (None, Some(decompose)) => vec![decompose(copy.graph(), names[0], &node.op, &inputs)?],
                (None, None) => unreachable!("checked above"),
            };
            node.outputs.iter().zip(made).for_each(|(there, here)| copy.put(*there, here));
            Ok(())
        })?;
        if self.nodes().iter().any(|node| node.op.fused().is_some() && !legal(&node.op)) {
            graph = graph.without_moves()?.0.without_dead()?.0;
        }
        match graph.nodes().iter().any(|node| simpler(&node.op)) {
            true => graph.legalize(legal),
            false => Ok(graph),
        }
    }
}

/// The value of an attribute in text form.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A number.
    Number(f64),
    /// A string.
    Text(String),
    /// `true` or `false`.
    Flag(bool),
    /// Whole numbers.
    Counts(Vec<usize>),
}

impl From<usize> for Attribute {
    fn from(n: usize) -> Attribute {
        Attribute::Number(n as f64)
    }
}

/// Attributes of a text form that were not read yet.
pub struct Attributes {
    op: &'static str,
    left: BTreeMap<String, Attribute>,
}

impl Attributes {
    pub(crate) fn new(op: &'static str, left: BTreeMap<String, Attribute>) -> Attributes {
        Attributes { op, left }
    }

    pub(crate) fn number(&mut self, name: &'static str) -> std::result::Result<f64, Problem> {
        match self.left.remove(name) {
            Some(Attribute::Number(n)) => Ok(n),
            Some(other) => Err(Problem::Syntax { found: other.to_string(), wanted: "a number" }),
            None => Err(Problem::MissingAttribute { op: self.op, name }),
        }
    }

    pub(crate) fn positive(&mut self, name: &'static str) -> std::result::Result<f64, Problem> {
        let number = self.number(name)?;
        let wanted = "a number above 0";
        if number > 0.0 && number.is_finite() { Ok(number) } else { Err(Problem::Syntax { found: number.to_string(), wanted }) }
    }

    pub(crate) fn positive_if_given(&mut self, name: &'static str) -> std::result::Result<Option<f64>, Problem> {
        self.left.contains_key(name).then(|| self.positive(name)).transpose()
    }

    pub(crate) fn flag(&mut self, name: &'static str) -> std::result::Result<Option<bool>, Problem> {
        match self.left.remove(name) {
            Some(Attribute::Flag(flag)) => Ok(Some(flag)),
            Some(other) => Err(Problem::Syntax { found: other.to_string(), wanted: "`true` or `false`" }),
            None => Ok(None),
        }
    }

    pub(crate) fn count_if_given(&mut self, name: &'static str) -> std::result::Result<Option<usize>, Problem> {
        self.left.contains_key(name).then(|| self.count(name)).transpose()
    }

    pub(crate) fn count(&mut self, name: &'static str) -> std::result::Result<usize, Problem> {
        let number = self.number(name)?;
        if number >= 1.0 && number.fract() == 0.0 && number < 1e15 {
            return Ok(number as usize);
        }
        Err(Problem::Syntax { found: number.to_string(), wanted: "a whole number of at least 1" })
    }

    pub(crate) fn counts(&mut self, name: &'static str) -> std::result::Result<Vec<usize>, Problem> {
        match self.left.remove(name) {
            Some(Attribute::Counts(counts)) => Ok(counts),
            Some(other) => {
                Err(Problem::Syntax { found: other.to_string(), wanted: "a list of whole numbers, such as `[64, 64]`" })
            }
            None => Err(Problem::MissingAttribute { op: self.op, name }),
        }
    }

    pub(crate) fn text(&mut self, name: &'static str) -> std::result::Result<Option<String>, Problem> {
        match self.left.remove(name) {
            Some(Attribute::Text(text)) => Ok(Some(text)),
            Some(other) => Err(Problem::Syntax { found: other.to_string(), wanted: "a string" }),
            None => Ok(None),
        }
    }

    pub(crate) fn finish(self) -> std::result::Result<(), Problem> {
        match self.left.into_keys().next() {
            Some(name) => Err(Problem::UnknownAttribute { op: self.op, name }),
            None => Ok(()),
        }
    }
}

/// The fact of a function of one value, element by element or within the last dimension.
fn unary(facts: &[&Fact]) -> Option<Fact> {
    match facts {
        [x] => Some(Fact::activation(x.dims.clone())),
        _ => None,
    }
}

fn no_attributes(_: &Op) -> Vec<(&'static str, Attribute)> {
    Vec::new()
}

fn no_macs(_: &Op, _: &[Vec<usize>]) -> u64 {
    0
}
