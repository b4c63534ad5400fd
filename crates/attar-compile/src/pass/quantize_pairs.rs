//! Rounding what is rounded already: with the same bits and the same static scale and zero, the second time changes no bit.
//!
//! Only where both are in one block: a value that comes from another one brings no scales for products of integers. A
//! dynamic scale is found anew from rounded values, one rounding away from the first; it stays. The same rounding of one
//! value twice is a common subexpression.

use attar_graph::{Graph, Op};

use super::{Changes, Pass, view::View};
use crate::{Error, Result};

pub(super) struct QuantizePairs;

impl Pass for QuantizePairs {
    fn name(&self) -> &'static str {
        "quantize_pairs"
    }

    fn about(&self) -> &'static str {
        "Round to the same static scale once"
    }

    fn run(&self, graph: &Graph) -> Result<(Graph, Changes)> {
        let view = View::new(graph);
        let mut changes = Changes::new();
        let after = graph.rewrite(&mut |copy, node| {
            let [made] = node.outputs[..] else { return copy.keep(node) };
            if is_rounded_already(&view, made) {
                let value = copy.value(node.inputs[0])?;
                copy.put(made, value);
                changes.push(graph.get(made).name.clone());
                return Ok(());
            }
            copy.keep(node)
        });
        Ok((after.map_err(|source| Error::Pass { pass: self.name(), source })?, changes))
    }
}

fn is_rounded_already(view: &View<'_>, id: attar_graph::ValueId) -> bool {
    let Some(node) = view.maker(id).map(|at| view.node(at)) else { return false };
    let Some(before) = view.maker(node.inputs[0]).map(|at| view.node(at)) else { return false };
    let constants = || before.inputs[1..].iter().zip(&node.inputs[1..]).all(|(a, b)| view.same(*a, *b));
    let is_static = node.inputs.len() > 1 && node.inputs.len() == before.inputs.len();
    matches!(node.op, Op::Quantize { .. })
        && node.op == before.op
        && is_static
        && node.block == before.block
        && constants()
        && !view.is_returned(id)
}
