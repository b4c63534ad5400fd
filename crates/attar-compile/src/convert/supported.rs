//! Which ops the kernels of a program can hold. Everything else is refused by name before anything is converted.

use attar_graph::{
    BlockId, Graph, Node, Op,
    op::{Attention, FusedKind},
};

use super::Converter;
use crate::{Error, Result};

impl Converter<'_> {
    /// # Errors
    /// The first op of the device's blocks that no kernel computes.
    pub(super) fn check_ops(&self, blocks: &[BlockId]) -> Result<()> {
        for node in blocks.iter().flat_map(|block| self.graph.nodes_of(*block)) {
            match &node.op {
                Op::Fused(fused) => {
                    let (body, kind) = (fused.body(), Some(fused.kind()));
                    body.nodes().iter().try_for_each(|node| check(body, kind, node))?;
                }
                _ => check(self.graph, None, node)?,
            }
        }
        Ok(())
    }
}

fn check(graph: &Graph, kind: Option<FusedKind>, node: &Node) -> Result<()> {
    match why_not(graph, kind, node) {
        None => Ok(()),
        Some(op) => Err(Error::NoKernel { op, node: graph.get(node.outputs[0]).name.clone() }),
    }
}

/// What a node does, in a fused node of that kind or on its own, that no kernel does.
fn why_not(graph: &Graph, kind: Option<FusedKind>, node: &Node) -> Option<String> {
    let name = node.op.def().name;
    match &node.op {
        // Queries and keys are normed where they are made, before they are rotated.
        Op::RmsNorm { .. } if graph.fact(node.inputs[0]).dims.len() > 3 => {
            (kind != Some(FusedKind::Qkv)).then(|| format!("{name} of each head"))
        }
        Op::Attention(Attention { causal: false, window: Some(window), .. }) => {
            Some(format!("{name} {{causal = false, window = {window}}}"))
        }
        Op::Rope(_) if graph.maker(node.inputs[0]).is_some_and(|maker| matches!(maker.op, Op::Slice { .. })) => {
            Some(format!("{name} of a part of each head"))
        }
        // Keys and values have one scale for all tokens in a program.
        Op::Cache { .. } if graph.maker(node.inputs[0]).is_some_and(|maker| matches!(maker.op, Op::Quantize { .. })) => {
            Some(format!("{name} of codes with scales of their own (kv of the step activations)"))
        }
        Op::Attention(attention) => attention.softcap.map(|cap| format!("{name} {{softcap = {cap}}}")),
        Op::Linear
        | Op::RmsNorm { .. }
        | Op::LayerNorm { .. }
        | Op::Add
        | Op::Mul
        | Op::Silu
        | Op::Gelu
        | Op::GeluTanh
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
