//! From a fused graph in integers to a program of integer kernels.
//!
//! The blocks of a decoder become kernels, and so do the last norm and the head behind them where these are in integers. What
//! stands around (the embedding before; norm and head in float) stays with the host, and is not in the program. Codes are taken
//! as they are. A weight's scales become integers: one scale a row goes into the rescaling of its column; groups need scales that
//! are integer codes already (`int8`, `int6`, `int4` over a super scale a row), which multiply sums exactly.
//!
//! What the graph keeps in f32 between layers needs numbers of its own: the residual stream int16 in steps by channel that grow
//! with depth ([`Residual`]), queries, keys and values int8, gate codes of 10 bits. Their scales come from [`Ranges`], which
//! calibration text shows.

mod residual;
mod weights;

use std::collections::{BTreeMap, HashMap};

use attar_graph::{BlockId, Graph, Node, Op, Origin, Value, ValueId, op::Kind};
use attar_tensor::Source;
pub use residual::Residual;

use crate::{
    Data, Element, Error, Memory, Result,
    fixed::{LARGEST_GAIN, ROTARY_BITS, Rescale, stored_gain},
    program::{Attention, Epilogue, Kernel, Linear, Norm, Part, Program, Role, TensorId},
};

/// The largest magnitude in each channel of values, by their names in the graph before anything was fused.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranges(pub BTreeMap<String, Vec<f32>>);

/// What a program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Tokens of a run.
    pub rows: u64,
    /// Tokens that runs before have left in the state.
    pub past: u64,
    /// Tokens that states and tables of positions have room for, at least those of this run.
    pub capacity: u64,
    /// The first block, and the one behind the last: [`ALL_BLOCKS`], or `[0, 0]` for none.
    pub blocks: [usize; 2],
    /// Whether the last norm and the head follow the last block, or are all there is without blocks: for the last row.
    pub head: bool,
    /// Whether the numbers of weights and tables are read. Without ranges, constants of kernels are stand-ins, too.
    pub numbers: bool,
}

/// See [`Bind::blocks`].
pub const ALL_BLOCKS: [usize; 2] = [0, usize::MAX];

/// A program, its numbers, and what goes in and out.
#[derive(Clone, Debug, PartialEq)]
pub struct Converted {
    /// Kernels.
    pub program: Program,
    /// Numbers of weights and constants, if they were asked for; the rest is 0.
    pub memory: Option<Memory>,
    /// The residual stream before the first block, or without blocks behind the last: int16.
    pub input: TensorId,
    /// The residual stream behind the last block, or the logits.
    pub output: TensorId,
    /// What the codes of the residual stream mean at the input, and where it leaves.
    pub residual: [Residual; 2],
    /// What one step of the logits means, if there are such.
    pub logits: Option<f64>,
    /// Keys and values, for each block.
    pub states: Vec<TensorId>,
    /// Nodes that stay with the host.
    pub host: Vec<String>,
}

/// A value that a kernel makes, and what one step of it means.
#[derive(Clone, Copy, Debug)]
struct Made {
    tensor: TensorId,
    scale: f64,
}

/// Makes a program from a fused graph. `widths` are the weight codes, in bits, that the device multiplies with int8.
///
/// # Errors
/// What the device has no kernel for, by the name of its node.
pub fn convert(graph: &Graph, source: &dyn Source, ranges: &Ranges, bind: Bind, widths: &[u32]) -> Result<Converted> {
    let mut converter = Converter {
        graph,
        source,
        ranges,
        bind,
        widths,
        program: Program::default(),
        data: Vec::new(),
        made: HashMap::new(),
        packed: HashMap::new(),
        states: Vec::new(),
        steps: HashMap::new(),
        head: false,
        tables: HashMap::new(),
    };
    converter.run()
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
    /// Query and state of a packed value, with the scales of queries, keys and values.
    packed: HashMap<ValueId, Packed>,
    states: Vec<TensorId>,
    /// What codes mean at each point of the residual stream.
    steps: HashMap<ValueId, Residual>,
    /// Whether more than the residual stream comes out.
    head: bool,
    /// Rotary tables, by what they are made from.
    tables: HashMap<String, TensorId>,
}

#[derive(Clone, Copy)]
struct Packed {
    query: TensorId,
    state: TensorId,
    scales: [f64; 3],
    heads: [u64; 3],
}

/// The operands of a fused node: its body's parameters by id, as values of the graph around.
struct Body<'g> {
    node: &'g Node,
    body: &'g Graph,
    /// The body is the graph around: of a node that is not fused.
    itself: bool,
}

impl<'g> Body<'g> {
    /// Of a fused node.
    fn of(node: &'g Node) -> Option<Body<'g>> {
        node.op.fused().map(|fused| Body { node, body: fused.body(), itself: false })
    }

    /// Of one that is not.
    fn of_itself(node: &'g Node, graph: &'g Graph) -> Body<'g> {
        Body { node, body: graph, itself: true }
    }

    /// The value of the graph around that a parameter of the body stands for.
    fn outer(&self, id: ValueId) -> Option<ValueId> {
        if self.itself {
            return Some(id);
        }
        self.body.inputs().iter().position(|input| *input == id).map(|at| self.node.inputs[at])
    }

    fn nodes(&self, wanted: impl Fn(&Op) -> bool + 'g) -> impl Iterator<Item = &'g Node> {
        self.body.nodes().iter().filter(move |node| wanted(&node.op))
    }

    fn name(&self, id: ValueId) -> &'g str {
        &self.body.get(id).name
    }

    /// The node that makes a value of the body.
    fn maker(&self, id: ValueId) -> Option<&'g Node> {
        self.body.nodes().iter().find(|node| node.output == id)
    }
}

impl<'a> Converter<'a> {
    fn run(&mut self) -> Result<Converted> {
        let all: Vec<BlockId> = self.graph.blocks().filter(|block| self.is_device_block(*block)).collect();
        let [from, to] = self.bind.blocks.map(|block| block.min(all.len()));
        let blocks = &all[from..to];
        let (Some(first), Some(last)) = (blocks.first().or(all.first()), blocks.last().or(all.last())) else {
            return Err(Error::NothingToRun);
        };
        let (entering, leaving) = (self.stream(*first, true)?, self.stream(*last, false)?);
        let head = self.head(leaving).filter(|_| self.bind.head && (blocks.is_empty() || to == all.len()));
        if blocks.is_empty() && head.is_none() {
            return Err(Error::NothingToRun);
        }
        self.head = head.is_some();
        self.steps = self.stream_steps(&all)?;
        let input = if blocks.is_empty() { leaving } else { entering };
        let shape = [self.bind.rows, self.width(input)?];
        let x = self.program.tensor(&self.graph.get(input).name, shape, Element::INT16, Role::Input);
        self.made.insert(input, Made { tensor: x, scale: self.point(input)?.step });
        for block in blocks {
            let nodes: Vec<&Node> = self.graph.nodes_of(*block).collect();
            for node in nodes {
                self.node(node, leaving)?;
            }
        }
        let logits = head.map(|head| self.logits(head)).transpose()?;
        let on_device =
            |node: &&Node| blocks.contains(&node.block) || head.iter().flatten().any(|mine| mine.output == node.output);
        let host = self.graph.nodes().iter().filter(|node| !on_device(node));
        let host = host.map(|node| self.graph.get(node.output).name.clone()).collect();
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
            input: x,
            output: logits.unwrap_or(self.made[&leaving]).tensor,
            residual: [self.point(input)?, self.point(leaving)?],
            logits: logits.map(|logits| logits.scale),
            states: std::mem::take(&mut self.states),
            host,
        })
    }

    /// The last norm and the head, if nothing else is behind the blocks and both are in integers.
    fn head(&self, stream: ValueId) -> Option<[&'a Node; 2]> {
        let norm = self.graph.nodes().iter().find(|node| node.inputs.contains(&stream) && node.op.fused().is_some())?;
        let linear = self.graph.nodes().iter().find(|node| node.inputs.first() == Some(&norm.output) && node.op == Op::Linear)?;
        let alone = self.graph.nodes().iter().filter(|node| node.inputs.contains(&norm.output)).count() == 1;
        let last = self.graph.nodes().iter().all(|node| !node.inputs.contains(&linear.output));
        let (norm_body, linear_body) = (Body::of(norm)?, Body::of_itself(linear, self.graph));
        let integers = self.rounding(&norm_body).is_ok() && self.scheme(&linear_body, linear).is_ok();
        (alone && last && integers).then_some([norm, linear])
    }

    /// The logits of the last row.
    fn logits(&mut self, [norm, linear]: [&'a Node; 2]) -> Result<Made> {
        let norm_body = Body::of(norm).expect("it was found to be fused");
        self.norm(&norm_body, 1)?;
        let body = Body::of_itself(linear, self.graph);
        let x = self.input(&body, linear.inputs[0])?;
        let name = self.graph.get(linear.output).name.clone();
        let step = self.range(&name)? / 32767.0;
        let weight = self.stack(&body, &[linear], &name)?;
        let columns = self.columns(&body, &[linear], &name, |_, _| x.scale / step, |_| x.scale, |_| 0)?;
        let width = self.program.get(weight).rows;
        let tensor = self.program.tensor(&name, [1, width], Element::INT16, Role::Output);
        let out = vec![Part { tensor, row: 0 }];
        self.push(linear, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue: Epilogue::Rescale }));
        Ok(Made { tensor, scale: step })
    }

    /// Blocks with attention in them run on the device.
    fn is_device_block(&self, block: BlockId) -> bool {
        let attends = |op: &Op| match op {
            Op::Attention(_) => true,
            Op::Fused(fused) => fused.kind() == Kind::Attention,
            _ => false,
        };
        self.graph.nodes_of(block).any(|node| attends(&node.op))
    }

    /// The one value that enters or leaves a block.
    fn stream(&self, block: BlockId, entering: bool) -> Result<ValueId> {
        let all = if entering { self.graph.live_into(block) } else { self.graph.leaving(block) };
        let inner = |id: &ValueId| !matches!(self.graph.get(*id).origin, Origin::Input);
        match all.into_iter().filter(inner).collect::<Vec<_>>()[..] {
            [one] => Ok(one),
            _ => Err(Error::Unsupported {
                node: self.graph.block_name(block).into(),
                why: "hands on more than one value, or none".into(),
                hint: "only decoders with one residual stream are compiled",
            }),
        }
    }

    /// Rows of states and tables.
    fn positions(&self) -> u64 {
        self.bind.capacity.max(self.bind.past + self.bind.rows)
    }

    fn width(&self, id: ValueId) -> Result<u64> {
        let value = self.graph.get(id);
        value.fact.width().map(|width| width as u64).ok_or_else(|| Error::Unbound { value: value.name.clone() })
    }

    /// Steps of the residual stream at each of its points: what the largest of each channel up to there needs.
    fn stream_steps(&self, blocks: &[BlockId]) -> Result<HashMap<ValueId, Residual>> {
        let input = self.stream(blocks[0], true)?;
        let sums = blocks.iter().flat_map(|block| self.graph.nodes_of(*block)).filter(|node| self.adds(node));
        let points: Vec<ValueId> = std::iter::once(input).chain(sums.map(|node| node.output)).collect();
        let mut largest = vec![0.0f64; self.width(input)? as usize];
        let mut most = Vec::new();
        for id in &points {
            let seen = if self.shapes_only() { None } else { Some(self.seen(&self.graph.get(*id).name)?) };
            for (most, x) in largest.iter_mut().zip(seen.into_iter().flatten()) {
                *most = most.max(f64::from(*x));
            }
            most.push(largest.clone());
        }
        let step = Residual::step(largest.iter().copied().fold(0.0, f64::max));
        Ok(points.into_iter().zip(most).map(|(id, largest)| (id, Residual::of(&largest, step))).collect())
    }

    fn adds(&self, node: &Node) -> bool {
        match &node.op {
            Op::Add => true,
            Op::Fused(fused) => fused.kind() == Kind::LinearAdd,
            _ => false,
        }
    }

    /// Whether no numbers are wanted, nor known.
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
        Error::Unsupported { node: self.graph.get(node.output).name.clone(), why: why.into(), hint }
    }

    fn node(&mut self, node: &'a Node, output: ValueId) -> Result<()> {
        let Op::Fused(fused) = &node.op else {
            let why = format!("is a `{}` on its own, for which there is no kernel", node.op.def().name);
            return Err(self.unsupported(node, why, INTEGERS));
        };
        let body = Body { node, body: fused.body(), itself: false };
        match fused.kind() {
            Kind::Norm => self.norm(&body, self.bind.rows),
            Kind::Qkv => self.qkv(&body),
            Kind::Attention => self.attention(&body),
            Kind::Gated => self.gated(&body),
            Kind::LinearAdd => self.linear_add(&body, output),
            Kind::LinearAct => {
                Err(self.unsupported(node, "has an activation that is no gated unit", "only gated MLPs are compiled"))
            }
        }
    }

    fn input(&self, body: &Body<'_>, id: ValueId) -> Result<Made> {
        let outer = body.outer(id);
        outer.and_then(|outer| self.made.get(&outer).copied()).ok_or_else(|| {
            let name = body.name(id);
            self.unsupported(body.node, format!("reads `{name}`, which is not in integers"), INTEGERS)
        })
    }

    /// What codes mean at a point of the residual stream.
    fn point(&self, id: ValueId) -> Result<Residual> {
        self.steps.get(&id).cloned().ok_or_else(|| Error::Unsupported {
            node: self.graph.get(id).name.clone(),
            why: "stands where the residual stream should, and is no sum".into(),
            hint: "only pre-norm decoders are compiled",
        })
    }

    /// The same of what a body reads.
    fn point_of(&self, body: &Body<'_>, id: ValueId) -> Result<Residual> {
        self.point(body.outer(id).ok_or_else(|| self.unsupported(body.node, "reads what it makes itself", INTEGERS))?)
    }

    /// The static scale of the rounding that ends a body.
    fn rounding(&self, body: &Body<'a>) -> Result<f64> {
        let rounds = body.nodes(|op| matches!(op, Op::Quantize { .. })).last();
        let Some(rounds) = rounds else {
            return Err(self.unsupported(body.node, "makes a value that is not rounded to int8", INTEGERS));
        };
        let [_, scale] = rounds.inputs[..] else {
            return Err(self.unsupported(
                body.node,
                "rounds with scales that each token finds as it runs, or with a zero",
                STATIC,
            ));
        };
        if rounds.op != (Op::Quantize { bits: 8 }) {
            return Err(self.unsupported(body.node, "rounds to another width than int8", STATIC));
        }
        if self.shapes_only() {
            return Ok(1.0);
        }
        match self.plain(body, scale)?[..] {
            [scale] => Ok(f64::from(scale)),
            _ => Err(self.unsupported(body.node, "rounds with one scale a channel", STATIC)),
        }
    }

    /// The numbers of a plain weight.
    fn plain(&self, body: &Body<'_>, id: ValueId) -> Result<Vec<f32>> {
        let outer = body.outer(id).map(|outer| self.graph.get(outer));
        let Some(Value { origin: Origin::Weight(expr), .. }) = outer else {
            return Err(self.unsupported(body.node, format!("wants `{}` to be a constant", body.name(id)), INTEGERS));
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
        Rescale::new(factor)
            .ok_or_else(|| self.unsupported(node, format!("rescales by {factor}, which no multiplier holds"), INTEGERS))
    }

    /// The result of a body, a tensor of the program.
    fn make(&mut self, node: &Node, shape: [u64; 2], element: Element, role: Role, scale: f64) -> TensorId {
        let name = self.graph.get(node.output).name.clone();
        let tensor = self.program.tensor(name, shape, element, role);
        self.made.insert(node.output, Made { tensor, scale });
        tensor
    }

    fn push(&mut self, node: &Node, kernel: Kernel) {
        let name = self.graph.get(node.output).name.clone();
        self.program.kernel(name, kernel);
    }

    /// The last `rows` rows, normed.
    fn norm(&mut self, body: &Body<'a>, rows: u64) -> Result<()> {
        let Some(norm) = body.nodes(|op| matches!(op, Op::RmsNorm { .. })).next() else {
            return Err(self.unsupported(body.node, "is no root mean square norm", INTEGERS));
        };
        if body.nodes(|op| *op == Op::Add).next().is_some() {
            return Err(self.unsupported(body.node, "sums before it norms", "only pre-norm decoders are compiled"));
        }
        let Op::RmsNorm { epsilon } = norm.op else { unreachable!("it was looked for") };
        let (x, scale) = (self.input(body, norm.inputs[0])?, self.rounding(body)?);
        let stream = self.point_of(body, norm.inputs[0])?;
        let width = self.program.get(x.tensor).columns;
        let out = self.make(body.node, [rows, width], Element::INT8, Role::Scratch, scale);
        let name = format!("{}.gains", self.graph.get(body.node.output).name);
        let gains = self.program.tensor(name, [1, width], Element::INT32, Role::Constant);
        let mut gain_shift = 16;
        if !self.shapes_only() {
            let gain = self.plain(body, norm.inputs[1])?;
            let root = (width as f64).sqrt() / scale;
            let largest = gain.iter().fold(1e-9f64, |most, g| most.max(f64::from(g.abs()) * root));
            gain_shift = (LARGEST_GAIN.log2().floor() - largest.log2().ceil()).clamp(0.0, 40.0) as u32;
            let unit = root * 2f64.powi(gain_shift as i32);
            let stored = |(gain, exponent): (&f32, &u8)| stored_gain(f64::from(*gain) * unit, *exponent);
            let stored = gain.iter().zip(&stream.exponents).map(stored).collect();
            self.numbers(gains, |_| Ok(Data::Numbers(stored)))?;
        }
        let epsilon = (width as f64 * epsilon / (x.scale * x.scale)).round() as u64;
        let row = self.program.get(x.tensor).rows - rows;
        self.push(body.node, Kernel::Norm(Norm { x: x.tensor, row, gains, out, epsilon, gain_shift }));
        Ok(())
    }

    fn qkv(&mut self, body: &Body<'a>) -> Result<()> {
        let Some(concat) = body.nodes(|op| *op == Op::Concat).last() else {
            return Err(self.unsupported(body.node, "packs nothing", INTEGERS));
        };
        let mut parts = Vec::new();
        for id in &concat.inputs {
            parts.push(self.projection(body, *id)?);
        }
        let [query, key, value] = &parts[..] else {
            return Err(self.unsupported(body.node, "packs other than three projections", INTEGERS));
        };
        let x = self.input(body, query.linear.inputs[0])?;
        let name = self.graph.get(body.node.output).name.clone();
        let linears = [query.linear, key.linear, value.linear];
        let weights = self.stack(body, &linears, &name)?;
        let wide = [query, key, value].map(|part| part.range.max(part.wide) / 32767.0);
        let scales = [query, key, value].map(|part| part.range / 127.0);
        let ends = [query.columns, query.columns + key.columns, query.columns + key.columns + value.columns];
        let columns = self.columns(body, &linears, &name, |which, _| x.scale / wide[which], |_| x.scale, |_| 0)?;
        let mut ranges = Vec::new();
        for which in 0..3 {
            ranges.push((ends[which], self.rescale(body.node, wide[which] / scales[which])?));
        }
        let Some((rope, heads)) = query.rope else {
            return Err(self.unsupported(
                body.node,
                "does not turn its queries by position",
                "only rotary positions are compiled",
            ));
        };
        let head = query.columns / heads;
        let table = self.table(rope, head)?;
        let q = self.program.tensor(format!("{name}.query"), [self.bind.rows, query.columns], Element::INT8, Role::Scratch);
        let total = [self.positions(), key.columns + value.columns];
        let state = self.program.tensor(format!("{name}.state"), total, Element::INT8, Role::State);
        self.states.push(state);
        let out = vec![Part { tensor: q, row: 0 }, Part { tensor: state, row: self.bind.past }];
        let epilogue = Epilogue::Rotary { table, position: self.bind.past, head, turned: ends[1], ranges };
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight: weights, columns, out, epilogue }));
        let heads = [heads, key.columns / head, head];
        self.packed.insert(body.node.output, Packed { query: q, state, scales, heads });
        Ok(())
    }

    /// One of query, key and value: up from what is packed to the linear layer.
    fn projection(&self, body: &Body<'a>, packed: ValueId) -> Result<Projection<'a>> {
        let (mut at, mut rope, mut heads) = (packed, None, None);
        let range = |id: ValueId| self.range(body.name(id));
        let mut turned = None;
        loop {
            let Some(node) = body.maker(at) else {
                return Err(self.unsupported(body.node, "packs what no linear layer makes", INTEGERS));
            };
            match &node.op {
                Op::Linear => {
                    let columns = body.body.fact(node.output).width().unwrap_or(0) as u64;
                    let wide = range(node.output)?;
                    let rope = rope.zip(heads);
                    return Ok(Projection { linear: node, columns, range: turned.unwrap_or(wide), wide, rope });
                }
                Op::Rope(found) => {
                    rope = Some(found);
                    turned = Some(range(node.output)?);
                }
                Op::SplitHeads { heads: found } => heads = Some(*found as u64),
                Op::MergeHeads => {}
                other => {
                    let why = format!("has a `{}` between projection and attention", other.def().name);
                    return Err(self.unsupported(body.node, why, INTEGERS));
                }
            }
            at = node.inputs[0];
        }
    }

    /// Cosines and sines of all positions that a run sees.
    fn table(&mut self, rope: &attar_graph::op::Rope, head: u64) -> Result<TensorId> {
        let key = format!("{rope:?} {head}");
        if let Some(known) = self.tables.get(&key) {
            return Ok(*known);
        }
        let rows = self.positions();
        // By its contents: each part of a model finds the same table.
        let name = format!("rotary.{}", &attar_tensor::Digest::of(key.as_bytes()).to_string()[..8]);
        let id = self.program.tensor(name, [rows, head], Element::INT16, Role::Constant);
        self.tables.insert(key, id);
        let one = f64::from(1u32 << ROTARY_BITS) * f64::from(rope.magnitude());
        let frequencies = rope.frequencies_of(head as usize, rows as usize);
        self.numbers(id, |_| {
            let row = |position: u64| {
                let angle = |f: &f32| (position as f32 * f) as f64;
                let cosines: Vec<i32> = frequencies.iter().map(|f| (angle(f).cos() * one).round() as i32).collect();
                let sines: Vec<i32> = frequencies.iter().map(|f| (angle(f).sin() * one).round() as i32).collect();
                [cosines, sines].concat()
            };
            Ok(Data::Numbers((0..rows).flat_map(row).collect()))
        })?;
        Ok(id)
    }

    fn attention(&mut self, body: &Body<'a>) -> Result<()> {
        let Some(node) = body.nodes(|op| matches!(op, Op::Attention(_))).next() else {
            return Err(self.unsupported(body.node, "does not attend", INTEGERS));
        };
        let Op::Attention(attention) = &node.op else { unreachable!("it was looked for") };
        if !attention.causal || attention.softcap.is_some() {
            let why = "needs full attention or a soft cap, for which there is no kernel";
            return Err(self.unsupported(body.node, why, "only causal attention without a soft cap is compiled"));
        }
        let packed = body.node.inputs.iter().find_map(|id| self.packed.get(id).copied());
        let Some(Packed { query, state, scales, heads: [heads, key_heads, head] }) = packed else {
            return Err(self.unsupported(
                body.node,
                "reads queries, keys and values that are not packed",
                "run all passes of `fuse`",
            ));
        };
        let scale = self.rounding(body)?;
        let logits = scales[0] * scales[1] * attention.scale * std::f64::consts::LOG2_E * 256.0;
        let (logits, rescale) = (self.rescale(body.node, logits)?, self.rescale(body.node, scales[2] / scale)?);
        let out = self.make(body.node, [self.bind.rows, heads * head], Element::INT8, Role::Scratch, scale);
        let (past, window) = (self.bind.past, attention.window.map(|window| window as u64));
        let kernel = Attention { query, state, out, heads, key_heads, head, past, window, logits, rescale };
        self.push(body.node, Kernel::Attention(kernel));
        Ok(())
    }

    fn gated(&mut self, body: &Body<'a>) -> Result<()> {
        let Some(swiglu) = body.nodes(|op| *op == Op::Swiglu).next() else {
            return Err(self.unsupported(body.node, "gates without SwiGLU", "run all passes of `fuse`"));
        };
        let [gate, up] = [0, 1].map(|at| body.maker(swiglu.inputs[at]));
        let (Some(gate), Some(up)) = (gate, up) else {
            return Err(self.unsupported(body.node, "gates what no linear layer makes", INTEGERS));
        };
        let (x, scale) = (self.input(body, gate.inputs[0])?, self.rounding(body)?);
        let name = self.graph.get(body.node.output).name.clone();
        let steps = [self.range(body.name(gate.output))? / 511.0, self.range(body.name(up.output))? / 32767.0];
        let weight = self.interleave(body, [gate, up], &name)?;
        let columns = self.columns_of_pairs(body, [gate, up], &name, steps.map(|step| x.scale / step), x.scale)?;
        let silu = |code: i32| {
            let x = f64::from(code) * steps[0];
            x / (1.0 + (-x).exp())
        };
        let half = 1 << (Epilogue::GATE_BITS - 1);
        let largest = silu(half - 1).abs().max(0.3) / 32767.0;
        let table = (-half..half).map(|code| (silu(code) / largest).round() as i16).collect();
        let rescale = self.rescale(body.node, largest * steps[1] / scale)?;
        let width = self.program.get(weight).rows / 2;
        let out = self.make(body.node, [self.bind.rows, width], Element::INT8, Role::Scratch, scale);
        let out = vec![Part { tensor: out, row: 0 }];
        self.push(
            body.node,
            Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue: Epilogue::Gated { table, rescale } }),
        );
        Ok(())
    }

    fn linear_add(&mut self, body: &Body<'a>, output: ValueId) -> Result<()> {
        let linear = body.nodes(|op| *op == Op::Linear).next();
        let add = body.nodes(|op| *op == Op::Add).next();
        let (Some(linear), Some(add)) = (linear, add) else {
            return Err(self.unsupported(body.node, "is no linear layer with a sum", INTEGERS));
        };
        let residual = add.inputs.iter().find(|id| **id != linear.output).copied().unwrap_or(add.inputs[0]);
        let (from, to) = (self.point_of(body, residual)?, self.point(body.node.output)?);
        let (x, residual) = (self.input(body, linear.inputs[0])?, self.input(body, residual)?);
        let name = self.graph.get(body.node.output).name.clone();
        let weight = self.stack(body, &[linear], &name)?;
        let factor = |_, row| x.scale / to.channel(row);
        let coarser = |row: usize| to.exponents[row] - from.exponents[row];
        let columns = self.columns(body, &[linear], &name, factor, |_| x.scale, coarser)?;
        let role = if body.node.output == output && !self.head { Role::Output } else { Role::Scratch };
        let width = self.program.get(weight).rows;
        let out = self.make(body.node, [self.bind.rows, width], Element::INT16, role, to.step);
        let epilogue = Epilogue::Add { residual: residual.tensor };
        let out = vec![Part { tensor: out, row: 0 }];
        self.push(body.node, Kernel::Linear(Linear { x: x.tensor, weight, columns, out, epilogue }));
        Ok(())
    }
}

/// Query, key or value.
struct Projection<'g> {
    linear: &'g Node,
    columns: u64,
    /// The largest magnitude of what is packed, and of what the linear layer makes.
    range: f64,
    wide: f64,
    /// How it is turned, and into how many heads it is split for that.
    rope: Option<(&'g attar_graph::op::Rope, u64)>,
}

const INTEGERS: &str = "quantize the weights and, with `mode = \"static\"`, the activations of all blocks first";
const STATIC: &str = "use `mode = \"static\"`, `bits = 8` and one scale a tensor in the step `activations`";
