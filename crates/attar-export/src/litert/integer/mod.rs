//! From a graph whose values are all rounded to fixed grids, to an integer-only sub-graph: what NPUs of microcontrollers take whole.
//!
//! An operator is one of LiteRT's own for int8 or int16, and what it makes has the grid that the graph says. Where an op takes several operators, those
//! between them have 16 bits.

mod attention;
mod lookup;
mod ops;

use std::{
    collections::HashMap,
    ops::{Deref, DerefMut},
};

use attar_graph::{Expr, Graph, Node, Op, Origin, ValueId};
use attar_tensor::Source;
pub use lookup::Lookups;
pub(super) use lookup::{Content, Lookup, TABLES, rotation};

use super::{
    build::{Builder, Call, needed},
    flat::Field,
    schema::{Element, Grid, Kind, QUANTIZE, Scales, Subgraph},
    weight::{Form, Stored},
};
use crate::{
    Error, Result,
    decoder::{CachePlaces, cache_places},
};

/// Adds the operators of an op; the result has the grid, if it is not the numbers of the operand elsewhere.
type Emit = fn(&mut Emission<'_>, &Node, &str, Option<Grid>) -> Result<i32>;

/// Every op that can be written as it is; all others are decomposed first.
static EMITTERS: &[(&str, Emit)] = &[
    ("embedding", lookup::embedding),
    ("linear", ops::linear),
    ("split_heads", ops::split_heads),
    ("merge_heads", ops::merge_heads),
    ("slice", ops::slice),
    ("concat", ops::concat),
    ("first_pool", ops::first_pool),
    ("rope", lookup::rope),
    ("cache", attention::cache),
    ("scores", attention::scores),
    ("softmax", attention::softmax),
    ("mix", attention::mix),
    ("center", ops::center),
    ("mean_square", ops::mean_square),
    ("rsqrt", ops::rsqrt),
    ("swiglu", ops::swiglu),
    ("silu", ops::silu),
    ("gelu", ops::gelu),
    ("gelu_tanh", ops::gelu_tanh),
    ("tanh", ops::tanh),
    ("scale", ops::scale),
    ("softcap", ops::softcap),
    ("mul", ops::mul),
    ("add", ops::add),
    ("mean_pool", ops::mean_pool),
    ("quantize", ops::quantize),
];

fn emitter(op: &Op) -> Option<Emit> {
    EMITTERS.iter().find(|(name, _)| *name == op.def().name).map(|(_, emit)| *emit)
}

/// Whether all that a model returns is rounded to fixed grids.
pub(super) fn is_integer(graph: &Graph) -> bool {
    let rounded =
        |id: &ValueId| graph.maker(*id).is_some_and(|node| matches!(node.op, Op::Quantize { .. }) && node.inputs.len() > 1);
    graph.outputs().iter().all(rounded)
}

/// A model whose ops can all be written, and where its weights lie.
pub(super) struct Model<'s> {
    target: &'static str,
    graph: Graph,
    /// None in a plan: all numbers are placeholders then.
    source: Option<&'s dyn Source>,
    lookups: Lookups,
    pub(super) stored: Vec<Stored>,
    /// Which stored weight a node reads as an operand.
    of: HashMap<(ValueId, usize), usize>,
    /// The grids of values, before and after they are rounded.
    grids: HashMap<ValueId, Grid>,
    caches: CachePlaces,
}

/// What a call needs.
pub(super) struct Called {
    pub(super) graph: Subgraph,
    /// The weights behind the FlatBuffer.
    pub(super) stored: Vec<Stored>,
    /// Their bytes.
    pub(super) bytes: u64,
    /// The tables that its caller reads.
    pub(super) tables: Vec<Lookup>,
}

impl<'s> Model<'s> {
    pub(super) fn new(
        graph: &Graph,
        target: &'static str,
        lookups: Lookups,
        source: Option<&'s dyn Source>,
    ) -> Result<Model<'s>> {
        let graph = graph.legalize(&|op| emitter(op).is_some())?;
        let caches = cache_places(&graph);
        let (stored, of, grids) = (Vec::new(), HashMap::new(), HashMap::new());
        let mut model = Model { target, graph, source, lookups, stored, of, grids, caches };
        model.find_grids()?;
        model.store()?;
        Ok(model)
    }

    fn refuse(&self, node: &Node, found: impl Into<String>, wanted: &'static str) -> Error {
        let name = self.graph.get(node.outputs[0]).name.clone();
        Error::Node { node: name, op: node.op.def().name, found: found.into(), target: self.target, wanted }
    }

    /// Grids of rounded values, and of what is rounded to them.
    fn find_grids(&mut self) -> Result<()> {
        let graph = self.graph.clone();
        for node in graph.nodes() {
            let Op::Quantize { bits } = node.op else { continue };
            let [x, scale, zero @ ..] = &node.inputs[..] else {
                return Err(self.refuse(node, "scales of tokens", "static scales"));
            };
            if graph.fact(*scale).dims != [attar_graph::Dim::Constant(1)] {
                return Err(self.refuse(node, "a scale for each channel", "one scale: set `granularity = \"tensor\"`"));
            }
            let zero = zero.first().map_or(Ok(0.0), |zero| self.numbers(*zero).map(|zero| zero[0]))?;
            let grid = Grid { bits, scale: self.numbers(*scale)?[0], zero: zero as i64 };
            if bits > 8 && grid.zero != 0 {
                return Err(self.refuse(node, "16 bits with a zero point", "16 bits without: set `asymmetric = false`"));
            }
            self.grids.insert(node.output(), grid);
            if !self.grids.contains_key(x) {
                self.grids.insert(*x, grid);
            }
        }
        Ok(())
    }

    /// The numbers of a small weight.
    fn numbers(&self, id: ValueId) -> Result<Vec<f32>> {
        let Origin::Weight(expr) = &self.graph.get(id).origin else { unreachable!("scales, gains and biases are weights") };
        let count = self.graph.fact(id).constant_dims().expect("weights have constant dimensions").iter().product();
        let mut numbers = vec![1.0; count];
        if let Some(source) = self.source {
            let [rows, _] = expr.info(source)?.matrix();
            expr.read(source, 0..rows, &mut numbers)?;
        }
        Ok(numbers)
    }

    /// Chooses how every weight is stored, and where.
    fn store(&mut self) -> Result<()> {
        let graph = self.graph.clone();
        let mut known: HashMap<(Expr, String), usize> = HashMap::new();
        for node in graph.nodes().iter().filter(|node| !matches!(node.op, Op::Quantize { .. })) {
            for (at, id) in node.inputs.iter().enumerate() {
                let Origin::Weight(expr) = &graph.get(*id).origin else { continue };
                let (key, stored) = self.stored_for(node, at, *id, expr)?;
                let place = *known.entry((expr.clone(), key)).or_insert(self.stored.len());
                self.of.insert((node.outputs[0], at), place);
                match self.stored.get_mut(place) {
                    None => self.stored.push(stored),
                    Some(known) => known.also_called(stored),
                }
            }
        }
        Ok(())
    }

    /// How a weight is stored for a node that reads it; the text tells forms of one weight apart.
    fn stored_for(&self, node: &Node, at: usize, id: ValueId, expr: &Expr) -> Result<(String, Stored)> {
        let fixed = |element, scales: Vec<f32>, what| {
            let key = format!("{element:?}{scales:?}");
            (key, Stored::fixed(&self.graph, id, expr, element, scales, what))
        };
        match (&node.op, at) {
            (Op::Linear, 1) => {
                let stored = Stored::in_bytes(&self.graph, self.target, node, id, expr)?;
                Ok(("codes".into(), stored))
            }
            (Op::Linear, 2) => {
                let (x, result) = (self.grid_read(node, 0)?, self.grids.get(&node.output()));
                let x = if result.is_some_and(|grid| grid.bits > 8) { x.widened() } else { x };
                let rows = self.row_scales(node.inputs[1])?;
                let element = if x.bits > 8 { Element::I64 } else { Element::I32 };
                Ok(fixed(element, rows.into_iter().map(|scale| scale * x.scale).collect(), ""))
            }
            (Op::Embedding, 1) => {
                let grid = self.grids.get(&node.output()).ok_or_else(|| self.refuse(node, "no grid", NEEDS))?;
                Ok(fixed(Element::I16, vec![grid.scale], lookup::ROWS))
            }
            (Op::Mul | Op::Add, 1) => {
                let largest = self.numbers(id)?.into_iter().fold(f32::MIN_POSITIVE * 1e6, |most, x| most.max(x.abs()));
                Ok(fixed(Element::I16, vec![largest / 32767.0], ""))
            }
            _ => Err(self.refuse(node, "a weight as an operand", "weights of linear layers, tables, gains and biases")),
        }
    }

    fn row_scales(&self, weight: ValueId) -> Result<Vec<f32>> {
        let Origin::Weight(expr) = &self.graph.get(weight).origin else { unreachable!("weights of linear layers are weights") };
        let Some(source) = self.source else {
            return Ok(vec![1.0; self.graph.fact(weight).dims[0].constant().unwrap_or(1)]);
        };
        Stored::scales_of_rows(expr, source)
    }

    /// The grid of what a node reads.
    fn grid_read(&self, node: &Node, at: usize) -> Result<Grid> {
        let mut id = node.inputs[at];
        loop {
            if let Some(grid) = self.grids.get(&id) {
                return Ok(*grid);
            }
            // A move has the grid of what it moves.
            let maker = self.graph.maker(id).filter(|maker| maker.inputs.len() == 1);
            id = maker.ok_or_else(|| self.refuse(node, "a value that is not rounded", NEEDS))?.inputs[0];
        }
    }

    /// The sub-graph of a call.
    pub(super) fn subgraph(&self, call: Call<'_>) -> Result<Called> {
        let mut e = Emission {
            model: self,
            placed: HashMap::new(),
            bytes: 0,
            call,
            build: Builder::new(call.signature),
            values: HashMap::new(),
            factors: HashMap::new(),
            slices: Vec::new(),
            tables: Vec::new(),
            ropes: Vec::new(),
        };
        e.declare_inputs();
        let needed = needed(&self.graph, &self.caches, call.outputs);
        for node in self.graph.nodes().iter().filter(|node| needed.contains(&node.outputs[0])) {
            let emit = emitter(&node.op).ok_or_else(|| self.refuse(node, "an op without a decomposition", "the ops it knows"))?;
            let id = node.outputs[0];
            let value = emit(&mut e, node, &self.graph.get(id).name, self.grids.get(&id).copied())?;
            e.values.insert(id, value);
        }
        e.declare_outputs();
        let mut stored: Vec<(usize, Stored)> = e.placed.into_iter().collect();
        stored.sort_by_key(|(_, weight)| weight.begin());
        Ok(Called {
            graph: e.build.sub,
            stored: stored.into_iter().map(|(_, weight)| weight).collect(),
            bytes: e.bytes,
            tables: e.tables,
        })
    }
}

/// What an integer-only model must have.
const NEEDS: &str = "values in integers: add the step `activations` with `mode = \"static\"` and `values = \"all\"`";

struct Emission<'m> {
    model: &'m Model<'m>,
    /// The weights that were read so far, at their places.
    placed: HashMap<usize, Stored>,
    bytes: u64,
    call: Call<'m>,
    build: Builder,
    values: HashMap<ValueId, i32>,
    /// What the numbers of a tensor are multiplied by where they are read, if not by 1.
    factors: HashMap<i32, f32>,
    /// New keys and values, by their names for callers.
    slices: Vec<(String, i32)>,
    /// What callers look up.
    tables: Vec<Lookup>,
    /// Kinds of rotation.
    ropes: Vec<String>,
}

impl Deref for Emission<'_> {
    type Target = Builder;

    fn deref(&self) -> &Builder {
        &self.build
    }
}

impl DerefMut for Emission<'_> {
    fn deref_mut(&mut self) -> &mut Builder {
        &mut self.build
    }
}

impl Grid {
    /// Of 16 bits without a zero point.
    fn wide(scale: f32) -> Grid {
        Grid { bits: 16, scale, zero: 0 }
    }

    /// One of 16 bits that has all values of this one.
    fn widened(self) -> Grid {
        if self.bits > 8 { self } else { Grid::wide(self.scale / 128.0) }
    }

    /// The largest magnitude of 16-bit codes.
    fn reach(self) -> f32 {
        self.widened().scale * 32767.0
    }

    fn element(self) -> Element {
        if self.bits > 8 { Element::I16 } else { Element::I8 }
    }
}

impl Emission<'_> {
    fn refuse(&self, node: &Node, found: impl Into<String>, wanted: &'static str) -> Error {
        self.model.refuse(node, found, wanted)
    }

    fn declare_outputs(&mut self) {
        let outputs = if self.call.outputs { self.model.graph.outputs() } else { &[] };
        let slices = std::mem::take(&mut self.slices);
        self.sub.outputs.extend(slices);
        for id in outputs {
            let (name, tensor) = (self.model.graph.get(*id).name.clone(), self.values[id]);
            self.sub.outputs.push((name, tensor));
        }
    }

    /// The codes of an operand that is no weight.
    fn value(&self, node: &Node, at: usize) -> Result<i32> {
        self.values.get(&node.inputs[at]).copied().ok_or_else(|| self.refuse(node, "a weight as an operand", "values"))
    }

    fn grid(&self, tensor: i32) -> Grid {
        match self.get(tensor).scales {
            Some(Scales::One(grid)) => grid,
            _ => unreachable!("codes have a grid"),
        }
    }

    /// The grid of a result, which every op has that computes.
    fn wanted(&self, node: &Node, grid: Option<Grid>) -> Result<Grid> {
        grid.ok_or_else(|| self.refuse(node, "a result that is not rounded", NEEDS))
    }

    /// An operator whose result is codes.
    fn codes(
        &mut self,
        name: impl Into<String>,
        kind: Kind,
        inputs: &[i32],
        options: Vec<(u16, Field)>,
        dims: &[usize],
        grid: Grid,
    ) -> i32 {
        let output = self.op_of(name, kind, inputs, options, dims, grid.element());
        self.scale(output, Some(Scales::One(grid)));
        output
    }

    /// The same values in another grid.
    fn to(&mut self, name: impl Into<String>, x: i32, grid: Grid) -> i32 {
        if self.grid(x) == grid {
            return x;
        }
        let dims = self.dims(x);
        self.codes(name, QUANTIZE, &[x], vec![], &dims, grid)
    }

    /// The same values in 16 bits.
    fn wide(&mut self, x: i32) -> i32 {
        let (grid, name) = (self.grid(x).widened(), format!("{}/wide", self.get(x).name));
        self.to(name, x, grid)
    }

    /// A constant of codes.
    fn constant_codes(&mut self, name: &str, dims: &[usize], codes: &[i16], scale: f32) -> i32 {
        let bytes = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
        let made = self.constant(name, Element::I16, dims, bytes);
        self.scale(made, Some(Scales::One(Grid::wide(scale))));
        made
    }

    /// One number, which is not 0.
    fn number(&mut self, value: f32) -> i32 {
        let code = if value < 0.0 { -32767 } else { 32767 };
        self.constant_codes(&format!("number:{value:e}"), &[1], &[code], value.abs() / 32767.0)
    }

    /// A stored weight as an operand of a node.
    fn stored(&mut self, node: &Node, at: usize) -> Result<i32> {
        let model = self.model;
        let number = model.of[&(node.outputs[0], at)];
        let mut weight = model.stored[number].clone();
        let name = weight.name.clone();
        if let Some(made) = self.made.get(&name) {
            return Ok(*made);
        }
        weight.place(&mut self.bytes);
        let scales = match (&weight.form, weight.fixed.as_slice()) {
            (Form::Rows(..), _) => {
                let rows = weight.dims[0];
                Scales::Rows(model.source.map_or_else(|| Ok(vec![1.0; rows]), |source| weight.row_scales(source))?)
            }
            (_, [scale]) => Scales::One(Grid::wide(*scale)),
            (_, scales) => Scales::Rows(scales.to_vec()),
        };
        let made = self.tensor(name.clone(), weight.element(), &weight.dims, weight.data());
        self.scale(made, Some(scales));
        self.made.insert(name, made);
        self.placed.insert(number, weight);
        Ok(made)
    }
}
