//! Removes pairs of moves that undo each other: heads that are split right after they were merged, a slice of a concatenation.
//!
//! A linear layer multiplies integers if its input is the direct result of `quantize`, and f32 values if a move comes
//! between the two. Moves after a `quantize` therefore stay: removing them would change bits.

use crate::{Graph, Node, Op, Result, ValueId};

/// What a move simplifies to.
enum Simpler {
    /// An existing value.
    Value(ValueId),
    /// Another move, of another value.
    Move(Op, ValueId),
}

impl Graph {
    /// The same function without moves that undo an earlier move, and the names of the values that they made. Nodes that
    /// only they read stay. So does a move whose value the graph returns: callers know it by name.
    pub fn without_moves(&self) -> Result<(Graph, Vec<String>)> {
        let mut gone = Vec::new();
        let graph = self.rewrite(&mut |copy, node| {
            let [made] = node.outputs[..] else { return copy.keep(node) };
            let name = &self.get(made).name;
            let (mut op, mut inputs) = (node.op.clone(), copy.values(&node.inputs)?);
            let (mut value, returned) = (None, self.outputs().contains(&made));
            while let Some(simpler) = copy.graph().simpler(&op, &inputs).filter(|_| !returned && value.is_none()) {
                match simpler {
                    Simpler::Value(same) => value = Some(same),
                    Simpler::Move(other, of) => (op, inputs) = (other, vec![of]),
                }
            }
            if value.is_some() || op != node.op {
                gone.push(name.clone());
            }
            let replacement = value.map_or_else(|| copy.graph().node(name, op, &inputs), Ok)?;
            copy.put(made, replacement);
            Ok(())
        })?;
        Ok((graph, gone))
    }

    /// What a move of `inputs` simplifies to; none, if it cannot be simplified.
    fn simpler(&self, op: &Op, inputs: &[ValueId]) -> Option<Simpler> {
        let simpler = self.undone(op, inputs)?;
        let rounded = matches!(simpler, Simpler::Value(value) if self.is_rounded(value));
        (!rounded).then_some(simpler)
    }

    /// Whether a value is the direct result of `quantize`.
    fn is_rounded(&self, id: ValueId) -> bool {
        let last = |node: &Node| node.op.fused().and_then(|fused| fused.body().nodes().last().map(|last| last.op.clone()));
        self.maker(id).is_some_and(|node| matches!(last(node).as_ref().unwrap_or(&node.op), Op::Quantize { .. }))
    }

    fn undone(&self, op: &Op, inputs: &[ValueId]) -> Option<Simpler> {
        let of = *inputs.first()?;
        let before = || self.maker(of);
        match op {
            Op::SplitHeads { heads } => {
                let merge = before().filter(|node| node.op == Op::MergeHeads)?;
                let split = merge.inputs[0];
                (self.fact(split).dims[1].constant() == Some(*heads)).then_some(Simpler::Value(split))
            }
            Op::MergeHeads => {
                let split = before().filter(|node| matches!(node.op, Op::SplitHeads { .. }))?;
                Some(Simpler::Value(split.inputs[0]))
            }
            Op::Slice { start, length } if *start == 0 && self.fact(of).width() == Some(*length) => Some(Simpler::Value(of)),
            Op::Slice { start, length } => self.simpler_slice(before()?, *start, *length),
            Op::Concat if inputs.len() == 1 => Some(Simpler::Value(of)),
            Op::Concat => self.simpler_concat(inputs),
            _ => None,
        }
    }

    fn simpler_slice(&self, before: &Node, start: usize, length: usize) -> Option<Simpler> {
        match before.op {
            Op::Slice { start: first, .. } => Some(Simpler::Move(Op::Slice { start: first + start, length }, before.inputs[0])),
            Op::Concat => {
                let mut first = 0;
                for part in &before.inputs {
                    let width = self.fact(*part).width()?;
                    match (start.checked_sub(first), length) {
                        (Some(0), length) if length == width => return Some(Simpler::Value(*part)),
                        (Some(start), length) if start + length <= width => {
                            return Some(Simpler::Move(Op::Slice { start, length }, *part));
                        }
                        _ => first += width,
                    }
                }
                None
            }
            _ => None,
        }
    }

    /// For adjacent slices of one value: the value itself, or one longer slice.
    fn simpler_concat(&self, inputs: &[ValueId]) -> Option<Simpler> {
        let slice = |id: &ValueId| match self.maker(*id) {
            Some(Node { op: Op::Slice { start, length }, inputs, .. }) => Some((inputs[0], *start, *length)),
            _ => None,
        };
        let slices: Vec<(ValueId, usize, usize)> = inputs.iter().map(slice).collect::<Option<_>>()?;
        let (of, start, _) = slices[0];
        let mut end = start;
        for (other, start, length) in slices {
            (other == of && start == end).then_some(())?;
            end += length;
        }
        match start == 0 && self.fact(of).width() == Some(end) {
            true => Some(Simpler::Value(of)),
            false => Some(Simpler::Move(Op::Slice { start, length: end - start }, of)),
        }
    }
}
