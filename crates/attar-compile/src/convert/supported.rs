//! Which ops the kernels of a program can hold. Everything else is refused by name before anything is converted.

use attar_graph::{BlockId, Graph, Node, Op};

use super::Converter;
use crate::{Error, Result};

impl Converter<'_> {
    /// # Errors
    /// The first op of the device's blocks that no kernel computes.
    pub(super) fn check_ops(&self, blocks: &[BlockId]) -> Result<()> {
        for node in blocks.iter().flat_map(|block| self.graph.nodes_of(*block)) {
            match &node.op {
                Op::Fused(fused) => fused.body().nodes().iter().try_for_each(|node| check(fused.body(), node))?,
                _ => check(self.graph, node)?,
            }
        }
        Ok(())
    }
}

fn check(graph: &Graph, node: &Node) -> Result<()> {
    match why_not(graph, node) {
        None => Ok(()),
        Some(op) => Err(Error::NoKernel { op, node: graph.get(node.outputs[0]).name.clone() }),
    }
}

/// What a node does that no kernel does.
fn why_not(graph: &Graph, node: &Node) -> Option<String> {
    let name = node.op.def().name;
    match &node.op {
        Op::RmsNorm { .. } => (graph.fact(node.inputs[0]).dims.len() > 3).then(|| format!("{name} of each head")),
        Op::Attention(attention) if !attention.causal => Some(format!("{name} {{causal = false}}")),
        Op::Attention(attention) => attention.softcap.map(|cap| format!("{name} {{softcap = {cap}}}")),
        Op::Linear
        | Op::Add
        | Op::Mul
        | Op::Silu
        | Op::Swiglu
        | Op::Quantize { .. }
        | Op::Rope(_)
        | Op::Cache { .. }
        | Op::SplitHeads { .. }
        | Op::MergeHeads
        | Op::Concat
        | Op::Slice { .. }
        | Op::Fused(_) => None,
        _ => Some(name.into()),
    }
}
