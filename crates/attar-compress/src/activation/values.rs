//! Static scales for every value of a model: what integer-only runtimes need.
//!
//! Products of matrices (linear layers, and those of attention) read and make codes of the asked width. All other values have 16
//! bits, without a zero point: sums and norms keep the residual stream as exact as it can be. What only products read is rounded
//! once; what they read of others is rounded again for them. GELU is a table of codes in such runtimes, and counts as a product.

use attar_graph::{Graph, Node, Op, Result as GraphResult, ValueId};

use super::{Codes, Feed, Known, Site};
use crate::{Error, Pattern, Result};

/// Codes of values that are not for products alone.
const WIDE: Codes = Codes { bits: 16, asymmetric: false };

/// The same function with norms and attention in their parts.
pub(super) fn split(graph: &Graph) -> GraphResult<Graph> {
    let whole = |op: &Op| {
        !matches!(op, Op::RmsNorm { .. } | Op::LayerNorm { .. } | Op::Normalize { .. } | Op::Attention(_)) && op.fused().is_none()
    };
    graph.legalize(&whole)
}

/// What a mask hides is this much below the largest score at least: no share of int8 is left of it.
const SPREAD: f32 = 12.0;

fn is_softmax_of(graph: &Graph, value: ValueId) -> bool {
    graph.nodes().iter().any(|node| matches!(node.op, Op::Softmax { .. }) && node.inputs.contains(&value))
}

/// Every value of a graph in parts that an op computes, and what linear layers read of wide ones.
pub(super) fn sites(graph: &Graph, codes: Codes, wide: &[Pattern]) -> Result<Vec<Site>> {
    let is_wide = |node: &Node| weight_of(graph, node).is_some_and(|name| wide.iter().any(|pattern| pattern.matches(name)));
    let is_narrow = |node: &Node| is_product(&node.op) && !is_wide(node);
    let mut sites = Vec::new();
    for node in graph.nodes().iter().filter(|node| !moves(&node.op)) {
        let [made] = node.outputs[..] else { continue };
        if is_quantized(graph, made) {
            let value = graph.get(node.inputs[0]).name.clone();
            return Err(Error::AlreadyIntegers { key: "values", reader: "every reader".into(), value });
        }
        let returned = graph.outputs().contains(&made);
        let read = !returned && only_read_by(graph, made, &is_narrow);
        let narrow = !is_wide(node) && (is_product(&node.op) || is_softmax_of(graph, made) || read);
        sites.push(match node.op {
            // The shares of int8 have a zero point in every runtime.
            Op::Softmax { .. } => {
                Site { known: Known::Shares, ..site(graph, made, Codes { asymmetric: codes.bits <= 8, ..codes }) }
            }
            _ if is_softmax_of(graph, made) => Site { known: Known::Spread(SPREAD), ..site(graph, made, codes) },
            _ => site(graph, made, if narrow { codes } else { WIDE }),
        });
        if narrow || codes == WIDE {
            continue;
        }
        for (value, feeds) in linear_readers(graph, made, &is_narrow) {
            let value = graph.get(value);
            let width = value.fact.width().expect("what linear layers read has a width: checked by the graph");
            sites.push(Site {
                value: value.name.clone(),
                width,
                codes,
                scales: Some(1),
                feeds,
                returned: false,
                known: Known::Nothing,
            });
        }
    }
    Ok(sites)
}

/// The site of a value that all its readers see rounded.
pub(super) fn site(graph: &Graph, value: ValueId, codes: Codes) -> Site {
    let (found, returned) = (graph.get(value), graph.outputs().contains(&value));
    let width = found.fact.width().unwrap_or(1);
    Site { value: found.name.clone(), width, codes, scales: Some(1), feeds: vec![Feed::All], returned, known: Known::Nothing }
}

fn is_product(op: &Op) -> bool {
    matches!(op, Op::Linear | Op::Scores { .. } | Op::Mix | Op::Gelu | Op::GeluTanh)
}

/// Whether the results of an op are numbers of its operand, elsewhere.
fn moves(op: &Op) -> bool {
    matches!(op, Op::SplitHeads { .. } | Op::MergeHeads | Op::Cache { .. } | Op::Slice { .. } | Op::Split { .. } | Op::FirstPool)
}

fn only_read_by(graph: &Graph, value: ValueId, by: &dyn Fn(&Node) -> bool) -> bool {
    let mut readers = graph.nodes().iter().filter(|node| node.inputs.contains(&value));
    readers.all(|node| by(node) || (moves(&node.op) && node.outputs.iter().all(|output| only_read_by(graph, *output, by))))
}

/// What linear layers of a kind read of a value, and their weights.
fn linear_readers(graph: &Graph, value: ValueId, of_kind: &dyn Fn(&Node) -> bool) -> Vec<(ValueId, Vec<Feed>)> {
    let mut found = Vec::new();
    let feeds = |value: ValueId| {
        let linears = graph.nodes().iter().filter(move |node| node.inputs[0] == value && of_kind(node));
        linears.filter_map(|node| weight_of(graph, node)).map(|name| Feed::Linear(name.into())).collect::<Vec<Feed>>()
    };
    let mut values = vec![value];
    while let Some(value) = values.pop() {
        let here = feeds(value);
        if !here.is_empty() {
            found.push((value, here));
        }
        let moved = graph.nodes().iter().filter(|node| moves(&node.op) && node.inputs[0] == value);
        values.extend(moved.flat_map(|node| node.outputs.iter().copied()));
    }
    found
}

/// The canonical name of a linear layer's weight.
pub(super) fn weight_of<'g>(graph: &'g Graph, node: &Node) -> Option<&'g str> {
    (node.op == Op::Linear).then(|| graph.get(node.inputs[1]).name.as_str())
}

pub(super) fn is_quantized(graph: &Graph, value: ValueId) -> bool {
    graph.nodes().iter().any(|node| matches!(node.op, Op::Quantize { .. }) && node.outputs.contains(&value))
}
