//! Where units are: what makes them, what reads them.

use attar_graph::{BlockId, Graph, Node, Op, ValueId};

use crate::{
    Result,
    transform::structure::{Layer, activates, downs, maker, refuse, sole_reader},
};

/// Units that leave together with others of their kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A channel inside an MLP.
    Channel {
        /// How many there are.
        channels: usize,
    },
    /// A query head, or a key-value head with its query heads.
    Head {
        /// Query heads.
        heads: usize,
        /// Key-value heads; divides `heads`.
        key_heads: usize,
        /// Columns of a head.
        width: usize,
    },
}

/// A layer whose columns are units, and the layers that make them.
#[derive(Clone, Debug)]
pub struct UnitSite {
    /// The canonical name of the reader's weight.
    pub name: String,
    /// The block that it is in.
    pub block: BlockId,
    /// The layer whose columns they are: `down`, or the output of attention.
    pub reader: Layer,
    /// What the units are.
    pub unit: Unit,
    /// The residual stream around the reader, where its output is added as it is.
    pub stream: Option<Stream>,
    /// The layers whose rows they are, and the rows of each that a unit of theirs has.
    pub(super) makers: Vec<Maker>,
}

/// The residual stream around a layer: `after = before + layer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    /// What the layer's output is added to.
    pub before: ValueId,
    /// The sum.
    pub after: ValueId,
}

/// A layer whose rows are units.
#[derive(Clone, Debug)]
pub(super) struct Maker {
    pub(super) layer: Layer,
    /// The node that splits its output into heads.
    pub(super) split: Option<ValueId>,
    /// Rows of a unit, and how many of the site's units share them.
    pub(super) rows: usize,
    pub(super) shared_by: usize,
}

impl UnitSite {
    /// Every site of `graph`, in running order.
    ///
    /// # Errors
    /// If the graph does something else with what units are made of: no name of a weight matters.
    pub fn of(graph: &Graph) -> Result<Vec<UnitSite>> {
        let attentions = graph.nodes().iter().filter(|node| matches!(node.op, Op::Attention(_)));
        let mut sites = attentions.map(|node| UnitSite::of_attention(graph, node)).collect::<Result<Vec<_>>>()?;
        for down in downs(graph)? {
            sites.push(UnitSite::of_mlp(graph, down)?);
        }
        let place = |site: &UnitSite| graph.nodes().iter().position(|node| node.outputs.contains(&site.reader.output));
        sites.sort_by_key(place);
        Ok(sites)
    }

    /// How many units there are: channels, or query heads.
    pub fn units(&self) -> usize {
        match self.unit {
            Unit::Channel { channels } => channels,
            Unit::Head { heads, .. } => heads,
        }
    }

    /// Columns of the reader that a unit has.
    pub fn width(&self) -> usize {
        match self.unit {
            Unit::Channel { .. } => 1,
            Unit::Head { width, .. } => width,
        }
    }

    /// The reader's columns of some units.
    pub fn columns(&self, units: &[usize]) -> Vec<usize> {
        units.iter().flat_map(|unit| unit * self.width()..(unit + 1) * self.width()).collect()
    }

    fn of_mlp(graph: &Graph, reader: Layer) -> Result<UnitSite> {
        let channels = graph.fact(reader.input).width().unwrap_or(0);
        let makers = channel_makers(graph, reader.input)?.into_iter();
        let makers = makers.map(|layer| Maker { layer, split: None, rows: 1, shared_by: 1 }).collect();
        UnitSite::new(graph, reader, Unit::Channel { channels }, makers)
    }

    fn of_attention(graph: &Graph, attention: &Node) -> Result<UnitSite> {
        let merged = sole_reader(graph, attention.output())?;
        let Op::MergeHeads = merged.op else {
            return refuse(graph, attention.output(), "is read before the heads of the attention are merged");
        };
        let reader = Layer::of(graph, sole_reader(graph, merged.output())?)?;
        let width = graph.fact(attention.output()).width().unwrap_or(0).max(1);
        let [query, key, value] = [0, 1, 2].map(|operand| split(graph, attention.inputs[operand]));
        let [(heads, query), (key_heads, key), (value_heads, value)] = [query?, key?, value?];
        if key_heads != value_heads || key_heads == 0 || heads % key_heads != 0 {
            return refuse(graph, attention.output(), "has key heads and value heads in different numbers");
        }
        let maker = |split: ValueId, shared_by| -> Result<Maker> {
            let layer = Layer::making(graph, maker(graph, split)?.inputs[0])?;
            Ok(Maker { layer, split: Some(split), rows: width, shared_by })
        };
        let group = heads / key_heads;
        let makers = vec![maker(query, 1)?, maker(key, group)?, maker(value, group)?];
        UnitSite::new(graph, reader, Unit::Head { heads, key_heads, width }, makers)
    }

    fn new(graph: &Graph, reader: Layer, unit: Unit, makers: Vec<Maker>) -> Result<UnitSite> {
        let block = graph.maker(reader.output).expect("a node makes it").block;
        Ok(UnitSite {
            name: graph.get(reader.weight).name.clone(),
            block,
            reader,
            unit,
            stream: Stream::around(graph, &reader),
            makers,
        })
    }
}

impl Stream {
    /// The residual stream that the output of `layer` is added to.
    pub fn around(graph: &Graph, layer: &Layer) -> Option<Stream> {
        let sum = sole_reader(graph, layer.output).ok()?;
        let before = match (&sum.op, sum.inputs.as_slice()) {
            (Op::Add, [a, b]) if *b == layer.output && a != b => *a,
            (Op::Add, [a, b]) if *a == layer.output && a != b => *b,
            _ => return None,
        };
        Some(Stream { before, after: sum.output() })
    }
}

/// The layers whose outputs, row by row, are the channels of `id`.
fn channel_makers(graph: &Graph, id: ValueId) -> Result<Vec<Layer>> {
    let node = maker(graph, id)?;
    let through = |id: ValueId| match maker(graph, id)? {
        node if activates(node) => node.inputs[0].making(graph),
        _ => id.making(graph),
    };
    match node.op {
        Op::Swiglu => node.inputs.iter().map(|id| id.making(graph)).collect(),
        Op::Mul => node.inputs.iter().map(|id| through(*id)).collect(),
        _ if activates(node) => Ok(vec![node.inputs[0].making(graph)?]),
        _ => refuse(graph, id, "is not made of an activation function"),
    }
}

trait Making {
    /// The layer that makes a value that nothing else reads.
    fn making(self, graph: &Graph) -> Result<Layer>;
}

impl Making for ValueId {
    fn making(self, graph: &Graph) -> Result<Layer> {
        sole_reader(graph, self)?;
        Layer::making(graph, self)
    }
}

/// The split into heads that an operand of attention comes from, through what treats every head alike; and how many heads there are.
fn split(graph: &Graph, operand: ValueId) -> Result<(usize, ValueId)> {
    let mut id = operand;
    loop {
        let node = maker(graph, id)?;
        match node.op {
            Op::SplitHeads { heads } => return Ok((heads, id)),
            Op::Cache { .. } | Op::Rope(_) | Op::RmsNorm { .. } | Op::Scale { .. } | Op::Slice { .. } | Op::Concat => {
                id = node.inputs[0];
            }
            _ => return refuse(graph, id, "is no linear layer's output, split into heads"),
        }
    }
}
