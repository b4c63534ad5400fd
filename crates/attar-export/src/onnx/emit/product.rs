//! Linear layers: products with weights.

use attar_graph::{Node, Op, ValueId};
use attar_tensor::{Granularity, Scheme};

use super::{Emission, Value, weight::blocks};
use crate::{
    Result,
    onnx::{
        Logits,
        form::{Form, block, stored_bits},
        proto::MICROSOFT,
        storage::blob_group,
        stored::{Part, Role},
    },
};

/// What decoders return.
const LOGITS: &str = "logits";

pub(super) fn linear(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let x = e.value(node.inputs[0]);
    let x = if e.is_last_only(node) { e.last_token(&x, name) } else { x };
    let Some(bias) = node.inputs.get(2) else { return Ok(product(e, node, &x, name)) };
    let y = product(e, node, &x, &format!("{name}/product"));
    let bias = e.value(*bias);
    Ok(e.node("Add", name, &[&y, &bias], vec![]))
}

fn product(e: &mut Emission<'_>, node: &Node, x: &str, name: &str) -> String {
    let id = node.inputs[1];
    let form = e.weight(id).map(|at| (at, e.weights.stored[at].form));
    let weight = match form {
        Some((at, Form::Blobs(scheme, _))) => {
            let parts = e.weights.stored[at].parts.clone();
            return e.multiply_blobs(name, x, &parts, e.weights.stored[at].dims[1], scheme);
        }
        Some((at, Form::Columns(scheme, _) | Form::Blocks(scheme))) => {
            let attributes = match scheme.granularity {
                Granularity::Row if matches!(e.weights.stored[at].form, Form::Blocks(_)) => {
                    blocks(0, block(&scheme, e.weights.stored[at].dims[1]))
                }
                Granularity::Tensor => vec![],
                Granularity::Row => vec![("axis", Value::Int(1))],
                Granularity::Group(size) => blocks(0, size),
            };
            let (codes, scale) = (e.weights.stored[at].name.clone(), e.scale(at));
            let zero = e.zero(at).or_else(|| e.zeros_of_columns(at));
            e.dequantize(&format!("{name}/weight"), &codes, &scale, zero, attributes)
        }
        Some((at, Form::Table(scheme))) => {
            let weight = e.looked_up(at, scheme);
            e.shared("Transpose", &format!("{weight}/transposed"), &[&weight], vec![("perm", Value::Ints(vec![1, 0]))])
        }
        _ => {
            let weight = e.value(id);
            e.shared("Transpose", &format!("{weight}/transposed"), &[&weight], vec![("perm", Value::Ints(vec![1, 0]))])
        }
    };
    e.node("MatMul", name, &[x, &weight], vec![])
}

impl Emission<'_> {
    /// Whether a layer computes logits of which only those of the last token are wanted: the head, which may be scaled and capped before the
    /// logits are what is returned.
    fn is_last_only(&self, node: &Node) -> bool {
        let logits = self.last_only();
        let mut made = logits.and_then(|id| self.graph.maker(id));
        while let Some(maker) = made.filter(|maker| maker.op != Op::Linear) {
            made = match maker.op {
                Op::Softcap { .. } | Op::Scale { .. } => self.graph.maker(maker.inputs[0]),
                _ => None,
            };
        }
        made.is_some_and(|head| head.output() == node.output())
    }

    /// For Hexagon, which without zeros takes codes of 4 bits for others, and says nothing.
    fn zeros_of_columns(&mut self, at: usize) -> Option<String> {
        self.purpose.fixed?;
        let stored = &self.weights.stored[at];
        let (element, dims) = (stored.parts[0].element, stored.parts[1].dims.clone());
        Some(self.zeros(element, &dims))
    }

    /// The logits, if only those of the last token are wanted.
    pub(super) fn last_only(&self) -> Option<ValueId> {
        let is_logits = |id: &&ValueId| self.graph.get(**id).name == LOGITS;
        self.graph.outputs().iter().find(is_logits).filter(|_| self.options.logits == Logits::Last).copied()
    }

    fn last_token(&mut self, x: &str, name: &str) -> String {
        let (start, end, axis) = (self.ints(&[-1]), self.ints(&[i64::MAX]), self.ints(&[1]));
        self.node("Slice", format!("{name}/last"), &[x, &start, &end, &axis], vec![])
    }

    /// The product with the weight `[out, columns]` that `parts` hold as blobs.
    pub(super) fn multiply_blobs(&mut self, name: &str, x: &str, parts: &[Part], columns: usize, scheme: Scheme) -> String {
        let rows = parts[0].dims[0];
        let scale = self.scale_of(parts, 0);
        let mut inputs = vec![x, parts[0].name.as_str(), &scale];
        inputs.extend(parts.iter().find(|part| part.role == Role::Zeros).map(|part| part.name.as_str()));
        let attributes = vec![
            ("K", Value::Int(columns as i64)),
            ("N", Value::Int(rows as i64)),
            ("accuracy_level", Value::Int(u8::from(self.options.accuracy_level).into())),
            ("bits", Value::Int(stored_bits(&scheme).into())),
            ("block_size", Value::Int(blob_group(&scheme) as i64)),
        ];
        self.node_of(MICROSOFT, "MatMulNBits", name, &inputs, attributes)
    }
}
