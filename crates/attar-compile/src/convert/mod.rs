//! From a fused graph in integers to a program of integer kernels.
//!
//! The blocks of a model become kernels, and so do the last norm and the head if they are in integers. Everything else (the
//! embedding; a norm and head in float; the pooling of an encoder) stays on the host and is not part of the program. Where the residual
//! stream is the result of a norm, blocks are cut before that: a block begins with the norm of what the one before it has added up. Codes are taken as they are. A
//! weight's scales become integers: one scale per row goes into the rescaling of its column; groups need scales that are
//! integer codes already (`int8`, `int6`, `int4` with a super scale per row), which multiply sums exactly.
//!
//! Values that are f32 in the graph get integer formats: the residual stream int16 with one step per channel that grows with
//! depth ([`Residual`]), queries, keys and values int8, gates int16. Their scales come from [`Ranges`], observed on
//! calibration text.
//!
//! Nodes are converted by the roles that fused nodes know of themselves, never by names. Ops that no kernel computes are
//! refused by name before anything is converted.

mod body;
mod kernels;
mod norms;
mod residual;
mod stream;
mod supported;
mod weights;

use std::collections::{BTreeMap, HashMap};

use attar_graph::{BlockId, Graph, Node, Op, Origin, Value, ValueId};
use attar_tensor::Source;
use body::Body;
pub use residual::Residual;

use crate::{
    Data, Element, Error, Memory, Result,
    fixed::Rescale,
    program::{Kernel, Program, Role, TensorId},
};

/// The largest magnitude in each channel of every value, by its name in the unfused graph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges(pub BTreeMap<String, Vec<f32>>);

/// The run that a program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Sequences side by side: see [`Program`].
    pub batch: u64,
    /// Tokens of each in a run.
    pub rows: u64,
    /// Tokens of each in the cache from earlier runs.
    pub past: u64,
    /// Tokens that the caches and the rotary tables have room for, at least those of this run.
    pub capacity: u64,
    /// The first block and one past the last: [`ALL_BLOCKS`], or `[0, 0]` for none.
    pub blocks: [usize; 2],
    /// Whether to compute the logits of the last row by the last norm and the head, after the blocks or without any.
    pub head: bool,
    /// Whether to compute those of every row.
    pub every_row: bool,
    /// Whether to read the numbers of weights and tables. Without ranges, constants of kernels are placeholders, too.
    pub numbers: bool,
}

/// See [`Bind::blocks`].
pub const ALL_BLOCKS: [usize; 2] = [0, usize::MAX];

/// A program with its numbers, inputs and outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Kernels.
    pub program: Program,
    /// Numbers of weights and constants, if they were requested; everything else is 0.
    pub memory: Option<Memory>,
    /// The residual stream before the first block, or after the last if no blocks are converted: int16, and not normed.
    pub input: TensorId,
    /// The residual stream after the last block, or what the head makes of it: logits, or an encoder's normed rows.
    pub output: TensorId,
    /// Steps of the residual stream at the input and at the output.
    pub residual: [Residual; 2],
    /// The step of what the head makes, if it is computed.
    pub logits: Option<f64>,
    /// Keys and values of each block, where they are kept between runs.
    pub states: Vec<TensorId>,
    /// Names of the nodes that stay on the host.
    pub host: Vec<String>,
}

/// A value that a kernel makes, with its step.
#[derive(Clone, Copy, Debug)]
struct Made {
    tensor: TensorId,
    scale: f64,
}

/// Converts a fused graph to a program. `widths` are the widths of weight codes, in bits, that the device multiplies with int8.
///
/// # Errors
/// A node that no kernel computes, by name.
pub fn convert(graph: &Graph, source: &dyn Source, ranges: &Ranges, bind: Bind, widths: &[u32]) -> Result<Converted> {
    let mut converter = Converter {
        graph,
        source,
        ranges,
        bind,
        widths,
        program: Program { batch: bind.batch, ..Program::default() },
        data: Vec::new(),
        made: HashMap::new(),
        packed: HashMap::new(),
        states: Vec::new(),
        steps: HashMap::new(),
        output: None,
        encoder: is_encoder(graph),
        tables: HashMap::new(),
    };
    converter.run()
}

/// Blocks that a device runs.
pub(crate) fn block_count(graph: &Graph) -> usize {
    graph.blocks().filter(|block| stream::is_device_block(graph, *block)).count()
}

/// Whether a model reads all of its tokens at once, so that there is nothing to keep between runs.
pub(crate) fn is_encoder(graph: &Graph) -> bool {
    let sees_all = |op: &Op| matches!(op, Op::Attention(attention) if !attention.causal);
    graph.nodes().iter().any(|node| match &node.op {
        Op::Fused(fused) => fused.body().nodes().iter().any(|node| sees_all(&node.op)),
        op => sees_all(op),
    })
}

struct Converter<'a> {
    graph: &'a Graph,
    source: &'a dyn Source,
    ranges: &'a Ranges,
    bind: Bind,
    widths: &'a [u32],
    program: Program,
    data: Vec<(TensorId, Data)>,
    made: HashMap<ValueId, Made>,
    /// Query and state of the value of a `qkv` node, with the scales of queries, keys and values.
    packed: HashMap<ValueId, Packed>,
    states: Vec<TensorId>,
    /// Steps of the codes at each point of the residual stream.
    steps: HashMap<ValueId, Residual>,
    /// The value that the program returns, if no head follows it.
    output: Option<ValueId>,
    encoder: bool,
    /// Rotary tables, by the settings that they are made from.
    tables: HashMap<String, TensorId>,
}

#[derive(Clone, Copy)]
struct Packed {
    query: TensorId,
    state: TensorId,
    scales: [f64; 3],
    heads: [u64; 3],
}

/// The part of a graph that is converted.
struct Part<'g> {
    /// In running order, without the head.
    nodes: Vec<&'g Node>,
    /// The residual stream where it enters and leaves.
    input: ValueId,
    output: ValueId,
    head: Option<Head<'g>>,
}

/// What follows the last block.
#[derive(Clone, Copy)]
enum Head<'g> {
    /// A norm of the last row, and the logits.
    Logits([&'g Node; 2]),
    /// The norm of every row that ends an encoder.
    Norm(&'g Node),
}

impl<'a> Converter<'a> {
    fn run(&mut self) -> Result<Converted> {
        let all: Vec<BlockId> = self.graph.blocks().filter(|block| stream::is_device_block(self.graph, *block)).collect();
        self.check_ops(&all)?;
        if self.encoder {
            self.bind = Bind { past: 0, capacity: self.bind.rows, ..self.bind };
        }
        let part = self.part(&all)?;
        self.output = part.head.is_none().then_some(part.output);
        self.steps = self.stream_steps(&all)?;
        let shape = [self.rows(), self.width(part.input)?];
        let input = self.program.tensor(&self.graph.get(part.input).name, shape, Element::INT16, Role::Input);
        self.made.insert(part.input, Made { tensor: input, scale: self.point(part.input)?.step });
        for node in &part.nodes {
            self.node(node)?;
        }
        let made = match part.head {
            None => None,
            Some(Head::Logits(head)) => Some(self.logits(head)?),
            Some(Head::Norm(norm)) => Some(self.last_norm(norm)?),
        };
        self.finish(&part, input, made)
    }

    /// What is converted of a graph with these device blocks.
    fn part(&self, all: &[BlockId]) -> Result<Part<'a>> {
        let [from, to] = self.bind.blocks.map(|block| block.min(all.len()));
        let blocks = all[from..to].to_vec();
        let (Some(first), Some(last)) = (blocks.first().or(all.first()), blocks.last().or(all.last())) else {
            return Err(Error::NothingToRun);
        };
        let (entering, leaving) = (self.stream(*first, true)?, self.stream(*last, false)?);
        let [(before, first_norm), (output, last_norm)] = [entering, leaving].map(|id| self.before_norm(id));
        let head = match last_norm {
            Some(norm) => Some(Head::Norm(norm)),
            None => self.head(output).map(Head::Logits),
        };
        let head = head.filter(|_| self.bind.head && (blocks.is_empty() || to == all.len()));
        if blocks.is_empty() && head.is_none() {
            return Err(Error::NothingToRun);
        }
        if blocks.is_empty() {
            return Ok(Part { nodes: Vec::new(), input: output, output, head });
        }
        let inner = blocks.iter().flat_map(|block| self.graph.nodes_of(*block));
        let nodes = first_norm.into_iter().chain(inner.filter(|node| last_norm.is_none_or(|last| last.outputs != node.outputs)));
        Ok(Part { nodes: nodes.collect(), input: before, output, head })
    }

    /// The program with its numbers, checked.
    fn finish(&mut self, part: &Part<'_>, input: TensorId, logits: Option<Made>) -> Result<Converted> {
        let program = std::mem::take(&mut self.program);
        program.check()?;
        let memory = self.bind.numbers.then(|| {
            let mut memory = Memory::new(&program);
            std::mem::take(&mut self.data).into_iter().for_each(|(id, data)| memory.set(id, data));
            memory
        });
        Ok(Converted {
            program,
            memory,
            input,
            output: logits.unwrap_or(self.made[&part.output]).tensor,
            residual: [self.point(part.input)?, self.point(part.output)?],
            logits: logits.map(|logits| logits.scale),
            states: std::mem::take(&mut self.states),
            host: self.host(part),
        })
    }

    /// Names of the nodes that stay with the host.
    fn host(&self, part: &Part<'_>) -> Vec<String> {
        let head = match &part.head {
            None => &[][..],
            Some(Head::Logits(nodes)) => nodes,
            Some(Head::Norm(node)) => std::slice::from_ref(node),
        };
        let device = part.nodes.iter().chain(head);
        let host = self.graph.nodes().iter().filter(|node| !device.clone().any(|mine| mine.outputs == node.outputs));
        host.flat_map(|node| &node.outputs).map(|id| self.graph.get(*id).name.clone()).collect()
    }

    /// Rows of a run.
    fn rows(&self) -> u64 {
        self.bind.rows * self.bind.batch
    }

    /// Tokens of a sequence that states and tables have rows for.
    fn positions(&self) -> u64 {
        self.bind.capacity.max(self.bind.past + self.bind.rows)
    }

    fn width(&self, id: ValueId) -> Result<u64> {
        let value = self.graph.get(id);
        value.fact.width().map(|width| width as u64).ok_or_else(|| Error::Unbound { value: value.name.clone() })
    }

    /// Whether only shapes are needed: no numbers are requested, and no ranges are known.
    fn shapes_only(&self) -> bool {
        !self.bind.numbers && self.ranges.0.is_empty()
    }

    /// The largest magnitudes of a value's channels.
    fn seen(&self, name: &str) -> Result<&'a [f32]> {
        self.ranges.0.get(name).map(Vec::as_slice).ok_or_else(|| Error::NoRange { value: name.into() })
    }

    /// The largest magnitude of a value, never 0.
    fn range(&self, name: &str) -> Result<f64> {
        if self.shapes_only() {
            return Ok(1.0);
        }
        Ok(self.seen(name)?.iter().fold(1e-6, |most, x| most.max(f64::from(*x))))
    }

    fn unsupported(&self, node: &Node, why: impl Into<String>, hint: &'static str) -> Error {
        Error::Unsupported { node: self.graph.get(node.outputs[0]).name.clone(), why: why.into(), hint }
    }

    fn input(&self, body: &Body<'_>, id: ValueId) -> Result<Made> {
        let outer = body.outer(id);
        outer.and_then(|outer| self.made.get(&outer).copied()).ok_or_else(|| {
            let name = body.name(id);
            self.unsupported(body.node, format!("reads `{name}`, which is not in integers"), INTEGERS)
        })
    }

    /// The numbers of a plain weight.
    fn plain(&self, body: &Body<'_>, id: ValueId) -> Result<Vec<f32>> {
        let outer = body.outer(id).map(|outer| self.graph.get(outer));
        let Some(Value { origin: Origin::Weight(expr), .. }) = outer else {
            return Err(self.unsupported(body.node, format!("needs `{}` to be a constant", body.name(id)), INTEGERS));
        };
        let info = expr.info(self.source)?;
        let mut values = vec![0.0; info.elements()];
        expr.read(self.source, 0..info.matrix()[0], &mut values)?;
        Ok(values)
    }

    fn numbers(&mut self, id: TensorId, make: impl FnOnce(&mut Self) -> Result<Data>) -> Result<()> {
        if self.bind.numbers {
            let data = make(self)?;
            self.data.push((id, data));
        }
        Ok(())
    }

    fn rescale(&self, node: &Node, factor: f64) -> Result<Rescale> {
        Rescale::new(factor).ok_or_else(|| {
            self.unsupported(node, format!("rescales by {factor}, which is out of the multiplier's range"), INTEGERS)
        })
    }

    /// The result of a body, a tensor of the program.
    fn make(&mut self, node: &Node, shape: [u64; 2], element: Element, role: Role, scale: f64) -> TensorId {
        let name = self.graph.get(node.output()).name.clone();
        let tensor = self.program.tensor(name, shape, element, role);
        self.made.insert(node.output(), Made { tensor, scale });
        tensor
    }

    fn push(&mut self, node: &Node, kernel: Kernel) {
        let name = self.graph.get(node.output()).name.clone();
        self.program.kernel(name, kernel);
    }
}

const INTEGERS: &str = "quantize the weights and, with `mode = \"static\"`, the activations of all blocks first";
const PASSES: &str = "run all passes of `fuse`";
const STATIC: &str = "use `mode = \"static\"`, `bits = 8` or 16 and one scale per tensor in the step `activations`";
