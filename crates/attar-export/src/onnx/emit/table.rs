//! Embeddings: rows of a table by token.

use attar_graph::Node;
use attar_tensor::{Dtype, Granularity, Scheme};

use super::{Element, Emission, Value};
use crate::{
    Result,
    onnx::{
        form::{Form, stored_bits},
        proto::MICROSOFT,
        storage::blob_group,
        stored::Role,
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
        Form::Blocks(_) => return Err(e.refuse(node, "codes for products", "a table of its own")),
        Form::Columns(scheme, _) => e.gather_columns(name, &tokens, at, scheme),
        Form::Blobs(scheme, _) => e.gather_blobs(name, &tokens, at, scheme),
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
            return self.decode(name, &codes, at, scheme, None);
        }
        let scale = match self.scale_is_float(at) {
            true => {
                let all = self.scale(at);
                self.node("Gather", format!("{name}/scale"), &[&all, tokens], vec![])
            }
            false => {
                let scale = gather(self, "stored_scale", 1);
                self.gathered_scale(name, tokens, at, &scale)
            }
        };
        let zero = self.zero(at).map(|_| gather(self, "zero", 2));
        self.decode(name, &codes, at, scheme, Some((scale, zero)))
    }

    /// Codes are `[width, vocabulary]`, scales and zeros `[groups, vocabulary]`, as a linear layer reads them.
    fn gather_columns(&mut self, name: &str, tokens: &str, at: usize, scheme: Scheme) -> String {
        let turned = |e: &mut Self, of: &str| {
            e.node("Transpose", format!("{of}/turned"), &[of], vec![("perm", Value::Ints(vec![1, 2, 0]))])
        };
        let codes = self.gather_shared(name, tokens, at, 0);
        let codes = turned(self, &codes);
        if scheme.granularity == Granularity::Tensor {
            return self.decode(name, &codes, at, scheme, None);
        }
        let scale = match self.scale_is_float(at) {
            true => {
                let all = self.scale(at);
                let scale = self.node("Gather", format!("{name}/scale"), &[&all, tokens], vec![("axis", Value::Int(1))]);
                turned(self, &scale)
            }
            false => {
                let scale = self.gather_shared(name, tokens, at, 1);
                let scale = turned(self, &scale);
                self.gathered_scale(name, tokens, at, &scale)
            }
        };
        let zero = self.zero(at).map(|_| {
            let zero = self.gather_shared(name, tokens, at, 2);
            turned(self, &zero)
        });
        self.decode(name, &codes, at, scheme, Some((scale, zero)))
    }

    /// Whether scales are floats of 8 bits, which ONNX Runtime gathers only once they are f32.
    fn scale_is_float(&self, at: usize) -> bool {
        self.weights.stored[at].part(Role::Scales).is_some_and(|part| part.element == Element::F8_E4M3)
    }

    /// Gathered scales `[batch, seq, groups]` as f32, times their super scales if they have such.
    fn gathered_scale(&mut self, name: &str, tokens: &str, at: usize, stored: &str) -> String {
        let Some(over) = self.weights.stored[at].part(Role::Supers).cloned() else {
            return self.cast(format!("{name}/scale"), stored, Element::F32);
        };
        let (steps, last) = (self.cast(format!("{name}/steps"), stored, Element::F32), self.ints(&[-1]));
        let mut factor = self.as_f32(over.name, over.element);
        if !over.dims.is_empty() {
            let each = self.node("Gather", format!("{name}/super"), &[&factor, tokens], vec![]);
            factor = self.node("Unsqueeze", format!("{name}/super_of_groups"), &[&each, &last], vec![]);
        }
        self.node("Mul", format!("{name}/scale"), &[&steps, &factor], vec![])
    }

    /// `(codes - zero) * scale` for codes `[batch, seq, width]`, by plain operators: OpenVINO has no `DequantizeLinear` of what was gathered.
    /// Scales and zeros are `[batch, seq, groups]`, or those of the whole table.
    fn decode(&mut self, name: &str, codes: &str, at: usize, scheme: Scheme, shared: Option<(String, Option<String>)>) -> String {
        let (columns, whole) = (self.weights.stored[at].dims[1], shared.is_none());
        let (scale, zero) = match shared {
            Some(shared) => shared,
            None => (self.scale(at), self.zero(at).map(|_| self.readable(at, 2))),
        };
        let mut values = self.cast(format!("{name}/numbers"), codes, Element::F32);
        let zero = match zero {
            Some(zero) => {
                let zero = self.cast(format!("{name}/zero_number"), &zero, Element::F32);
                Some(if whole { zero } else { self.spread(&zero, scheme, columns) })
            }
            None if self.weights.stored[at].parts[0].element == Element::I8 => None,
            None => Some(self.float(8.0)),
        };
        if let Some(zero) = zero {
            values = self.node("Sub", format!("{name}/distances"), &[&values, &zero], vec![]);
        }
        let scale = if whole { scale } else { self.spread(&scale, scheme, columns) };
        self.node("Mul", name, &[&values, &scale], vec![])
    }

    /// What groups share, `[batch, seq, groups]`, for each of their columns.
    fn spread(&mut self, shared: &str, scheme: Scheme, columns: usize) -> String {
        let group = scheme.group(columns);
        if scheme.groups(columns) == 1 {
            return shared.to_owned();
        }
        let (last, size, flat) = (self.ints(&[-1]), self.ints(&[1, 1, 1, group as i64]), self.ints(&[0, 0, -1]));
        let one = self.node("Unsqueeze", format!("{shared}/of_groups"), &[shared, &last], vec![]);
        let each = self.node("Expand", format!("{shared}/in_groups"), &[&one, &size], vec![]);
        let all = self.node("Reshape", format!("{shared}/of_columns"), &[&each, &flat], vec![]);
        match columns.is_multiple_of(group) {
            true => all,
            false => self.cut(&format!("{shared}/cut"), &all, columns),
        }
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
        let two = self.int(2);
        let at = self.node("Div", format!("{name}/at"), &[tokens, &two], vec![]);
        let odd = self.node("Mod", format!("{name}/parity"), &[tokens, &two], vec![]);
        let odd = self.cast(format!("{name}/odd"), &odd, Element::BOOL);
        let pairs = self.node("Gather", format!("{name}/pairs"), &[table, &at], vec![("axis", Value::Int(1))]);
        let [low, high] = self.halves(name, &pairs);
        if !signed {
            return self.node("Where", name, &[&odd, &high, &low], vec![]);
        }
        let nibble = self.node("Where", format!("{name}/signed"), &[&odd, &high, &low], vec![]);
        let eight = self.int32(8);
        self.node("BitwiseXor", name, &[&nibble, &eight], vec![])
    }

    /// Low and high nibbles of bytes, as 32-bit integers: OpenVINO (2026.4) shifts bytes by dividing and rounding to nearest.
    fn halves(&mut self, name: &str, bytes: &str) -> [String; 2] {
        let sixteen = self.int32(16);
        let wide = self.cast(format!("{name}/wide"), bytes, Element::I32);
        let low = self.node("Mod", format!("{name}/low"), &[&wide, &sixteen], vec![]);
        [low, self.node("Div", format!("{name}/high"), &[&wide, &sixteen], vec![])]
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
        let last = self.ints(&[-1]);
        let [low, high] = self.halves(name, bytes);
        let low = self.node("Unsqueeze", format!("{name}/low_of_pair"), &[&low, &last], vec![]);
        let high = self.node("Unsqueeze", format!("{name}/high_of_pair"), &[&high, &last], vec![]);
        let pairs = self.node("Concat", format!("{name}/pairs"), &[&low, &high], vec![("axis", Value::Int(-1))]);
        let shape = self.ints(&[0, 0, columns.next_multiple_of(2) as i64]);
        let all = self.node("Reshape", format!("{name}/nibbles"), &[&pairs, &shape], vec![]);
        if columns.is_multiple_of(2) { all } else { self.cut(&format!("{name}/cut"), &all, columns) }
    }
}
