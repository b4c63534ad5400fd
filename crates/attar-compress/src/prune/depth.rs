//! Whole blocks, attentions or MLPs that leave: what they add to the residual stream is not added.

use std::collections::BTreeMap;

use attar_graph::{BlockId, Graph, Node, Op, Origin, ValueId};

use super::site::Stream;
use crate::{Error, Result, transform::structure::downs};

/// What a block adds to the residual stream in one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sublayer {
    /// The block.
    pub block: BlockId,
    /// Whether it is an attention; else it is an MLP.
    pub is_attention: bool,
    /// The residual stream around it.
    pub stream: Stream,
}

impl Sublayer {
    /// Every sublayer of `graph`, in running order.
    ///
    /// # Errors
    /// If the residual stream is normalized as it goes, so that a sublayer that adds nothing is still no identity.
    pub fn of(graph: &Graph) -> Result<Vec<Sublayer>> {
        let mlps: Vec<ValueId> = downs(graph)?.iter().map(|down| down.output).collect();
        let mut stream: Vec<ValueId> = Vec::new();
        let mut found = Vec::new();
        for node in graph.nodes() {
            match (&node.op, node.inputs.as_slice()) {
                (Op::Embedding, _) | (Op::Scale { .. }, _)
                    if stream.is_empty() || node.inputs.iter().any(|id| stream.contains(id)) =>
                {
                    stream.push(node.output());
                }
                (Op::Add, [a, b]) if stream.contains(a) != stream.contains(b) => {
                    let (before, added) = if stream.contains(a) { (*a, *b) } else { (*b, *a) };
                    let makers = made_of(graph, added, node.block);
                    let is_attention = makers.iter().any(|node| matches!(node.op, Op::Attention(_)));
                    let is_mlp = makers.iter().any(|node| node.outputs.iter().any(|id| mlps.contains(id)));
                    if is_attention != is_mlp {
                        let stream = Stream { before, after: node.output() };
                        found.push(Sublayer { block: node.block, is_attention, stream });
                    }
                    stream.push(node.output());
                }
                _ => {}
            }
        }
        match found.is_empty() {
            true => Err(Error::NoSublayers),
            false => Ok(found),
        }
    }
}

/// The nodes of `block` that `id` is computed by, up to the residual stream.
fn made_of(graph: &Graph, id: ValueId, block: BlockId) -> Vec<&Node> {
    let (mut open, mut found) = (vec![id], Vec::new());
    while let Some(id) = open.pop() {
        let Some(node) = graph.maker(id).filter(|node| node.block == block && node.op != Op::Add) else { continue };
        if !found.contains(&node) {
            found.push(node);
            open.extend(&node.inputs);
        }
    }
    found
}

/// `graph` with some sums of its residual stream replaced by what went into them. Blocks keep their places and names, those of which
/// nothing is left too.
pub fn without(graph: &Graph, sublayers: &[Sublayer]) -> Result<Graph> {
    let skipped: BTreeMap<ValueId, ValueId> = sublayers.iter().map(|gone| (gone.stream.after, gone.stream.before)).collect();
    let short = graph.rewrite(&mut |copy, node| match node.outputs.first().and_then(|id| skipped.get(id)) {
        Some(before) => {
            let before = copy.value(*before)?;
            copy.put(node.output(), before);
            Ok(())
        }
        None => copy.keep(node),
    })?;
    let (short, _) = short.without_dead()?;
    short.verify()?;
    Ok(short)
}

/// `graph` without blocks that have no nodes, and the others numbered through: `blocks.3` and all names in it become those of the
/// block's new place.
pub fn renumbered(graph: &Graph) -> Result<Graph> {
    let full: Vec<BlockId> = graph.blocks().filter(|block| graph.nodes_of(*block).next().is_some()).collect();
    let number = |block: BlockId| graph.block_name(block).strip_prefix("blocks.")?.parse::<usize>().ok();
    let old: Vec<usize> = full.iter().filter_map(|block| number(*block)).collect();
    let place: BTreeMap<usize, usize> = old.iter().enumerate().map(|(new, old)| (*old, new)).collect();
    let renamed = |name: &str| -> String {
        for prefix in ["blocks.", "b"] {
            let parts = name.strip_prefix(prefix).and_then(|rest| rest.split_once('.'));
            let Some((digits, rest)) = parts else { continue };
            if let Some(new) = digits.parse::<usize>().ok().and_then(|old| place.get(&old)) {
                return format!("{prefix}{new}.{rest}");
            }
        }
        name.to_owned()
    };
    let mut small = Graph::new(graph.name());
    let mut ids: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for id in graph.inputs() {
        let value = graph.get(*id);
        ids.insert(*id, small.input(&value.name, value.fact.clone())?);
    }
    for block in full {
        let name = number(block).and_then(|old| place.get(&old)).map(|new| format!("blocks.{new}"));
        small.block(name.unwrap_or_else(|| graph.block_name(block).into()));
        for node in graph.nodes_of(block) {
            for id in &node.inputs {
                if let (Origin::Weight(expr), false) = (&graph.get(*id).origin, ids.contains_key(id)) {
                    let value = graph.get(*id);
                    ids.insert(*id, small.weight(&renamed(&value.name), value.fact.clone(), expr.clone())?);
                }
            }
            let inputs: Vec<ValueId> = node.inputs.iter().map(|id| ids[id]).collect();
            let names: Vec<String> = node.outputs.iter().map(|id| renamed(&graph.get(*id).name)).collect();
            let op = match &node.op {
                Op::Cache { name } => Op::Cache { name: renamed(name) },
                op => op.clone(),
            };
            let made = small.node_of(&names.iter().map(String::as_str).collect::<Vec<_>>(), op, &inputs)?;
            ids.extend(node.outputs.iter().copied().zip(made));
        }
    }
    graph.outputs().iter().for_each(|id| small.output(ids[id]));
    small.verify()?;
    Ok(small)
}
