//! Weights as f32: values after a cast, codes after their scales.

use attar_graph::ValueId;
use attar_tensor::{Granularity, Levels, Scheme};

use super::{Attributes, Element, Emission, Value};
use crate::onnx::{
    form::Form,
    stored::{Part, Role},
};

impl Emission<'_> {
    pub(super) fn weight(&self, id: ValueId) -> Option<usize> {
        self.weights.of.get(&id).copied()
    }

    /// A value as f32: of a weight, after a cast that is exact and that runtimes do once.
    pub(super) fn value(&mut self, id: ValueId) -> String {
        let Some(at) = self.weight(id) else { return self.names[&id].clone() };
        let part = &self.weights.stored[at].parts[0];
        self.as_f32(part.name.clone(), part.element)
    }

    pub(super) fn as_f32(&mut self, name: String, element: Element) -> String {
        if element == Element::F32 {
            return name;
        }
        self.shared("Cast", &format!("{name}/f32"), &[&name], vec![("to", Value::Int(Element::F32.0.into()))])
    }

    /// The scales of a quantized weight as f32.
    pub(super) fn scale(&mut self, at: usize) -> String {
        let stored = &self.weights.stored[at];
        let (parts, axis) = (stored.parts.clone(), i64::from(matches!(stored.form, Form::Columns(..) | Form::Blocks(_))));
        if let Form::Blocks(_) = stored.form {
            return self.scale_of_blocks(&parts);
        }
        self.scale_of(&parts, axis)
    }

    /// The scales among `parts` as f32. Those that are codes are multiplied by their super scales, one for all or one for each place
    /// along `axis`.
    pub(super) fn scale_of(&mut self, parts: &[Part], axis: i64) -> String {
        let part = &parts[1];
        let Some(over) = parts.iter().find(|part| part.role == Role::Supers) else {
            return self.as_f32(part.name.clone(), part.element);
        };
        let attributes = if over.dims.is_empty() { vec![] } else { vec![("axis", Value::Int(axis))] };
        let over = self.as_f32(over.name.clone(), over.element);
        self.shared("DequantizeLinear", &format!("{}/f32", part.name), &[&part.name, &over], attributes)
    }

    /// The same of blocks for Hexagon, which leaves them to the CPU without zeros.
    fn scale_of_blocks(&mut self, parts: &[Part]) -> String {
        let [codes, over] = [Role::Scales, Role::Supers].map(|role| parts.iter().find(|part| part.role == role));
        let (codes, over) = (codes.expect("codes have scales"), over.expect("scales of blocks are codes"));
        let zero = self.zeros(codes.element, &over.dims);
        let inputs = [codes.name.as_str(), &over.name, &zero];
        self.shared("DequantizeLinear", &format!("{}/f32", codes.name), &inputs, vec![("axis", Value::Int(1))])
    }

    /// Zeros of integers.
    pub(super) fn zeros(&mut self, element: Element, dims: &[usize]) -> String {
        let bytes = vec![0; (dims.iter().product::<usize>() * element.bits() as usize).div_ceil(8)];
        self.constant(format!("zeros:{}:{dims:?}", element.0), element, dims, bytes)
    }

    pub(super) fn zero(&self, at: usize) -> Option<String> {
        self.weights.stored[at].part(Role::Zeros).map(|p| p.name.clone())
    }

    /// What codes of a [`Form::Table`] mean: `[rows, columns]`.
    pub(super) fn looked_up(&mut self, at: usize, scheme: Scheme) -> String {
        let stored = &self.weights.stored[at];
        let (name, [rows, columns]) = (stored.name.clone(), stored.matrix());
        let held = scheme.groups(columns) * scheme.group(columns);
        let to = vec![("to", Value::Int(Element::I32.0.into()))];
        let codes = self.shared("Cast", &format!("{name}/index"), &[&name], to);
        let values = self.values_of_codes(at, scheme, &format!("{name}/values"), &codes);
        let shape = self.ints(&[rows as i64, held as i64]);
        let whole = self.shared("Reshape", &format!("{name}/whole"), &[&values, &shape], vec![]);
        if held == columns {
            return whole;
        }
        let (start, end, axis) = (self.ints(&[0]), self.ints(&[columns as i64]), self.ints(&[-1]));
        self.shared("Slice", &format!("{name}/columns"), &[&whole, &start, &end, &axis], vec![])
    }

    fn values_of_codes(&mut self, at: usize, scheme: Scheme, name: &str, codes: &str) -> String {
        let scale = self.scale(at);
        match (scheme.grid.levels(), scheme.granularity) {
            (Levels::Table(levels), _) => {
                let table = self.table(scheme.grid.name(), levels);
                let levels = self.shared("Gather", &format!("{name}/levels"), &[&table, codes], vec![]);
                self.shared("Mul", name, &[&levels, &scale], vec![])
            }
            // Of a learned table, the entries are where scales are of others.
            (_, Granularity::Tensor) => self.shared("Gather", name, &[&scale, codes], vec![]),
            _ => self.shared("GatherElements", name, &[&scale, codes], vec![("axis", Value::Int(1))]),
        }
    }

    /// The values of a grid by code; 0 where a code means no number.
    fn table(&mut self, grid: &str, levels: &[f32]) -> String {
        let bytes = levels.iter().map(|v| if v.is_nan() { 0.0 } else { *v }).flat_map(f32::to_le_bytes).collect();
        self.constant(format!("levels:{grid}"), Element::F32, &[levels.len()], bytes)
    }

    /// What an embedding reads of part `part`: its view if it has one.
    pub(super) fn readable(&self, at: usize, part: usize) -> String {
        let stored = &self.weights.stored[at];
        let view = stored.views.iter().find(|(of, _)| *of == part).map(|(_, view)| view);
        view.unwrap_or(&stored.parts[part]).name.clone()
    }

    pub(super) fn dequantize(
        &mut self,
        name: &str,
        codes: &str,
        scale: &str,
        zero: Option<String>,
        attributes: Attributes,
    ) -> String {
        let mut inputs = vec![codes, scale];
        inputs.extend(zero.as_deref());
        self.node("DequantizeLinear", name, &inputs, attributes)
    }
}

/// Groups of `size` along `axis`.
pub(super) fn blocks(axis: i64, size: usize) -> Attributes {
    vec![("axis", Value::Int(axis)), ("block_size", Value::Int(size as i64))]
}
