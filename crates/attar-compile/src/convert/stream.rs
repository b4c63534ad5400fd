//! The residual stream of a model: where it enters and leaves blocks, and in what steps its codes are at each of its points.

use std::collections::HashMap;

use attar_graph::{
    BlockId, Graph, Node, Op, Origin, ValueId,
    op::{FusedKind, Roles},
};

use super::{Body, Converter, INTEGERS, Residual, norms::made_by_norm};
use crate::{Error, Result};

/// Blocks with attention in them run on the device.
pub(super) fn is_device_block(graph: &Graph, block: BlockId) -> bool {
    let attends = |op: &Op| match op {
        Op::Attention(_) => true,
        Op::Fused(fused) => matches!(fused.roles(), Some(Roles::Attention { .. })),
        _ => false,
    };
    graph.nodes_of(block).any(|node| attends(&node.op))
}

impl<'a> Converter<'a> {
    /// The one value that enters or leaves a block.
    pub(super) fn stream(&self, block: BlockId, entering: bool) -> Result<ValueId> {
        let all = if entering { self.graph.live_into(block) } else { self.graph.leaving(block) };
        let inner = |id: &ValueId| !matches!(self.graph.get(*id).origin, Origin::Input);
        let values: Vec<ValueId> = all.into_iter().filter(inner).collect();
        match values[..] {
            [one] => Ok(one),
            _ => Err(Error::Unsupported {
                node: self.graph.block_name(block).into(),
                why: format!("passes on {} values; expected one, the residual stream", values.len()),
                hint: "only models with one residual stream can be compiled for a device",
            }),
        }
    }

    /// A point of the stream as the sum that it is, and the norm that makes it of that, if it is the result of one.
    pub(super) fn before_norm(&self, id: ValueId) -> (ValueId, Option<&'a Node>) {
        match made_by_norm(self.graph, id) {
            Some(norm) => (norm.inputs[0], Some(norm)),
            None => (id, None),
        }
    }

    /// Steps of the residual stream at each of its points: those that the largest value of each channel needs, up to there from the
    /// last norm of the stream on.
    pub(super) fn stream_steps(&self, blocks: &[BlockId]) -> Result<HashMap<ValueId, Residual>> {
        let input = self.stream(blocks[0], true)?;
        let (before, norm) = self.before_norm(input);
        let nodes = blocks.iter().flat_map(|block| self.graph.nodes_of(*block));
        let inner = nodes.filter(|node| adds(node) || matches!(node.op, Op::LayerNorm { .. })).map(|node| node.output());
        let points: Vec<ValueId> = [before].into_iter().chain(norm.map(|norm| norm.output())).chain(inner).collect();
        let mut largest = vec![0.0f64; self.width(input)? as usize];
        let (mut most, mut top) = (Vec::new(), 0.0f64);
        for id in &points {
            if made_by_norm(self.graph, *id).is_some() {
                largest.fill(0.0);
            }
            let seen = if self.shapes_only() { None } else { Some(self.seen(&self.graph.get(*id).name)?) };
            for (most, x) in largest.iter_mut().zip(seen.into_iter().flatten()) {
                *most = most.max(f64::from(*x));
            }
            top = largest.iter().copied().fold(top, f64::max);
            most.push(largest.clone());
        }
        let step = Residual::step(top);
        Ok(points.into_iter().zip(most).map(|(id, largest)| (id, Residual::of(&largest, step))).collect())
    }

    /// Steps of the codes at a point of the residual stream.
    pub(super) fn point(&self, id: ValueId) -> Result<Residual> {
        self.steps.get(&id).cloned().ok_or_else(|| Error::Unsupported {
            node: self.graph.get(id).name.clone(),
            why: "is not the output of an `add`; expected the residual stream here".into(),
            hint: "only models with one residual stream can be compiled for a device",
        })
    }

    /// The same of an operand of a body.
    pub(super) fn point_of(&self, body: &Body<'_>, id: ValueId) -> Result<Residual> {
        self.point(body.outer(id).ok_or_else(|| self.unsupported(body.node, "reads a value of its own", INTEGERS))?)
    }
}

/// Whether a node adds to the residual stream.
fn adds(node: &Node) -> bool {
    match &node.op {
        Op::Add => true,
        Op::Fused(fused) => fused.kind() == FusedKind::LinearAdd,
        _ => false,
    }
}
