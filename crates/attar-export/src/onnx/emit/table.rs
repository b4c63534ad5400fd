//! Embeddings: rows of a table by token.

use attar_graph::Node;
use attar_tensor::{Dtype, Granularity, Scheme};

use super::{Element, Emission, Value, weight::blocks};
use crate::{
    Result,
    onnx::{
        form::{Form, stored_bits},
        proto::MICROSOFT,
        storage::{Role, blob_group},
    },
};

pub(super) fn embedding(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let tokens = e.value(node.inputs[0]);
    let Some(at) = e.weight(node.inputs[1]) else {
        let table = e.value(node.inputs[1]);
        return Ok(e.node("Gather", name, &[&table, &tokens], vec![]));
    };
    Ok(match e.weights.stored[at].form {
        Form::Plain(dtype) => {
            let part = &e.weights.stored[at].parts[0];
            let table = part.name.clone();
            match dtype {
                Dtype::F32 => e.node("Gather", name, &[&table, &tokens], vec![]),
                _ => {
                    let rows = e.node("Gather", format!("{name}/stored"), &[&table, &tokens], vec![]);
                    e.cast(name, &rows, Element::F32)
                }
            }
        }
        Form::Rows(scheme) => e.gather_rows(name, &tokens, at, scheme),
        Form::Columns(scheme, _) => e.gather_columns(name, &tokens, at, scheme),
        Form::Blobs(scheme) => e.gather_blobs(name, &tokens, at, scheme),
        Form::Table(scheme) => {
            let table = e.looked_up(at, scheme);
            e.node("Gather", name, &[&table, &tokens], vec![])
        }
    })
}

impl Emission<'_> {
    /// Codes, scales and zeros are `[vocabulary, ..]`, codes of less than 8 bits two per byte.
    fn gather_rows(&mut self, name: &str, tokens: &str, at: usize, scheme: Scheme) -> String {
        let columns = self.weights.stored[at].dims[1];
        let gather = |e: &mut Self, what: &str, part: usize| {
            let table = e.weights.stored[at].parts[part].name.clone();
            e.node("Gather", format!("{name}/{what}"), &[&table, tokens], vec![])
        };
        let mut codes = gather(self, "codes", 0);
        if stored_bits(&scheme) == 4 {
            codes = self.unpack(name, &codes, columns);
        }
        if scheme.granularity == Granularity::Tensor {
            let (scale, zero) = (self.scale(at), self.byte_zero(name, at, None));
            return self.dequantize(name, &codes, &scale, zero, vec![]);
        }
        let scale = match self.weights.stored[at].part(Role::Supers) {
            Some(_) => {
                let all = self.scale(at);
                self.node("Gather", format!("{name}/scale"), &[&all, tokens], vec![])
            }
            None => {
                let stored_scale = gather(self, "stored_scale", 1);
                self.cast(format!("{name}/scale"), &stored_scale, Element::F32)
            }
        };
        let zero = match scheme.is_symmetric() {
            true => self.byte_zero(name, at, Some(&scale)),
            false => Some(gather(self, "zero", 2)),
        };
        self.dequantize(name, &codes, &scale, zero, blocks(2, scheme.group(columns)))
    }

    /// Codes, scales and zeros are `[.., vocabulary]`: the table is shared with a linear layer.
    fn gather_columns(&mut self, name: &str, tokens: &str, at: usize, scheme: Scheme) -> String {
        let columns = self.weights.stored[at].dims[1];
        let codes = self.gather_shared(name, tokens, at, 0);
        let turned = format!("{name}/turned");
        if scheme.granularity == Granularity::Tensor {
            let (scale, zero) = (self.scale(at), self.byte_zero(name, at, None));
            self.dequantize(&turned, &codes, &scale, zero, vec![]);
        } else {
            let scale = match self.weights.stored[at].part(Role::Supers) {
                Some(_) => {
                    let all = self.scale(at);
                    self.node("Gather", format!("{name}/scale"), &[&all, tokens], vec![("axis", Value::Int(1))])
                }
                None => {
                    let stored_scale = self.gather_shared(name, tokens, at, 1);
                    self.cast(format!("{name}/scale"), &stored_scale, Element::F32)
                }
            };
            let zero = match self.zero(at) {
                None => self.byte_zero(name, at, Some(&scale)),
                Some(_) => Some(self.gather_shared(name, tokens, at, 2)),
            };
            self.dequantize(&turned, &codes, &scale, zero, blocks(0, scheme.group(columns)));
        }
        self.node("Transpose", name, &[&turned], vec![("perm", Value::Ints(vec![1, 2, 0]))])
    }

    /// Columns `tokens` of part `part`: `[k, batch, seq]`, 4-bit codes as bytes with their zero in the middle.
    fn gather_shared(&mut self, name: &str, tokens: &str, at: usize, part: usize) -> String {
        let name = format!("{name}/{}", ["codes", "stored_scale", "zero"][part]);
        let (table, dims) = (self.readable(at, part), self.weights.stored[at].parts[part].dims.len());
        if self.weights.stored[at].parts[part].element.bits() == 4 {
            return self.gather_nibbles(&name, tokens, &table, self.weights.stored[at].form.is_signed());
        }
        if dims == 2 {
            return self.node("Gather", name, &[&table, tokens], vec![("axis", Value::Int(1))]);
        }
        let flat = self.node("Gather", format!("{name}/flat"), &[&table, tokens], vec![]);
        let first = self.ints(&[0]);
        self.node("Unsqueeze", name, &[&flat, &first], vec![])
    }

    /// Nibbles `[.., tokens]` of bytes `[k, n / 2]`.
    fn gather_nibbles(&mut self, name: &str, tokens: &str, table: &str, signed: bool) -> String {
        let (two, fifteen, four) = (self.int(2), self.byte(15), self.byte(4));
        let at = self.node("Div", format!("{name}/at"), &[tokens, &two], vec![]);
        let odd = self.node("Mod", format!("{name}/parity"), &[tokens, &two], vec![]);
        let odd = self.cast(format!("{name}/odd"), &odd, Element::BOOL);
        let pairs = self.node("Gather", format!("{name}/pairs"), &[table, &at], vec![("axis", Value::Int(1))]);
        let low = self.node("BitwiseAnd", format!("{name}/low"), &[&pairs, &fifteen], vec![]);
        let high = self.node("BitShift", format!("{name}/high"), &[&pairs, &four], vec![("direction", Value::Text("RIGHT"))]);
        if !signed {
            return self.node("Where", name, &[&odd, &high, &low], vec![]);
        }
        let nibble = self.node("Where", format!("{name}/signed"), &[&odd, &high, &low], vec![]);
        let eight = self.byte(8);
        self.node("BitwiseXor", name, &[&nibble, &eight], vec![])
    }

    fn gather_blobs(&mut self, name: &str, tokens: &str, at: usize, scheme: Scheme) -> String {
        let (table, scale, zero) = (self.readable(at, 0), self.scale(at), self.zero(at));
        let columns = self.weights.stored[at].dims[1];
        let held = scheme.groups(columns) * blob_group(&scheme);
        let mut inputs = vec![table.as_str(), tokens, &scale];
        inputs.extend(zero.as_deref());
        let attributes = vec![
            ("bits", Value::Int(stored_bits(&scheme).into())),
            ("block_size", Value::Int(blob_group(&scheme) as i64)),
            ("gather_axis", Value::Int(0)),
            ("quantize_axis", Value::Int(1)),
        ];
        if held == columns {
            return self.node_of(MICROSOFT, "GatherBlockQuantized", name, &inputs, attributes);
        }
        let padded = self.node_of(MICROSOFT, "GatherBlockQuantized", format!("{name}/padded"), &inputs, attributes);
        self.cut(name, &padded, columns)
    }

    /// The first `columns` of the last dimension.
    fn cut(&mut self, name: &str, of: &str, columns: usize) -> String {
        let (start, end, axis) = (self.ints(&[0]), self.ints(&[columns as i64]), self.ints(&[-1]));
        self.node("Slice", name, &[of, &start, &end, &axis], vec![])
    }

    /// Bytes `[batch, seq, n]` to the nibbles in them, low ones first.
    fn unpack(&mut self, name: &str, bytes: &str, columns: usize) -> String {
        let (fifteen, four, last) = (self.byte(15), self.byte(4), self.ints(&[-1]));
        let low = self.node("BitwiseAnd", format!("{name}/low"), &[bytes, &fifteen], vec![]);
        let high = self.node("BitShift", format!("{name}/high"), &[bytes, &four], vec![("direction", Value::Text("RIGHT"))]);
        let low = self.node("Unsqueeze", format!("{name}/low_of_pair"), &[&low, &last], vec![]);
        let high = self.node("Unsqueeze", format!("{name}/high_of_pair"), &[&high, &last], vec![]);
        let pairs = self.node("Concat", format!("{name}/pairs"), &[&low, &high], vec![("axis", Value::Int(-1))]);
        let shape = self.ints(&[0, 0, columns.next_multiple_of(2) as i64]);
        let all = self.node("Reshape", format!("{name}/nibbles"), &[&pairs, &shape], vec![]);
        if columns.is_multiple_of(2) { all } else { self.cut(&format!("{name}/cut"), &all, columns) }
    }

    /// The zero points of codes that an embedding reads: none for two's complement, otherwise one per scale.
    fn byte_zero(&mut self, name: &str, at: usize, like: Option<&str>) -> Option<String> {
        let stored = &self.weights.stored[at];
        match (stored.part(Role::Zeros), stored.parts[0].element, like) {
            (Some(_), ..) => Some(self.readable(at, 2)),
            (_, Element::I8, _) => None,
            (.., None) => Some(self.byte(8)),
            (.., Some(scale)) => {
                let shape = self.node("Shape", format!("{name}/scales"), &[scale], vec![]);
                let eight = Value::Byte(8);
                Some(self.node("ConstantOfShape", format!("{name}/zero"), &[&shape], vec![("value", eight)]))
            }
        }
    }
}
