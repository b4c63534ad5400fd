//! Rotary position embedding.

use attar_graph::{Node, Op, op::Rope};

use super::{Element, Emission, Value, constant};
use crate::{
    Result, kit,
    onnx::{Style, proto},
};

/// `x cos + swap(x) sin`, where `swap` exchanges the halves and the first half of `sin` is negated.
pub(super) fn rope(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Rope(rope) = &node.op else { unreachable!("the table is right") };
    let head = constant(&e.graph.fact(node.output()).dims[3]) as usize;
    let x = e.value(node.inputs[0]);
    if e.options.style == Style::Standard {
        return Ok(e.rotate(name, &x, (rope, node.inputs[1]), head, vec![]));
    }
    let positions = e.value(node.inputs[1]);
    let angles = e.angles(rope, head, &positions);
    let halves = e.ints(&[head as i64 / 2; 2]);
    let mut split = proto::node("", "Split", &format!("{name}/first"), &[&x, &halves], vec![("axis", Value::Int(-1))]);
    split.output.push(format!("{name}/second"));
    e.nodes.push(split);
    let (first, second) = (format!("{name}/first"), format!("{name}/second"));
    let swapped = e.node("Concat", format!("{name}/swapped"), &[&second, &first], vec![("axis", Value::Int(-1))]);
    let straight = e.node("Mul", format!("{name}/straight"), &[&x, &format!("{angles}/cos")], vec![]);
    let crossed = e.node("Mul", format!("{name}/crossed"), &[&swapped, &format!("{angles}/sin")], vec![]);
    Ok(e.node("Add", name, &[&straight, &crossed], vec![]))
}

impl Emission<'_> {
    /// Makes `NAME/cos` and `NAME/sin`, once for each kind of rope; returns the name. They are `[batch, 1, seq, head]`, or
    /// `[batch, seq, head / 2]` for `RotaryEmbedding`.
    pub(super) fn angles(&mut self, rope: &Rope, head: usize, positions: &str) -> String {
        if let Some((.., name)) = self.ropes.iter().find(|(r, h, p, _)| r == rope && *h == head && p == positions) {
            return name.clone();
        }
        let name = format!("/rope.{}", self.ropes.len());
        self.ropes.push((rope.clone(), head, positions.into(), name.clone()));
        if let Some(fixed) = self.purpose.fixed {
            self.rows_of_angles(rope, head, &name, positions, fixed.past + fixed.tokens);
            return name;
        }
        let constant = || format!("{name}/frequencies");
        let same = rope.longest_short().is_none().then(|| self.frequencies(rope, head, constant(), 0));
        let axes = self.ints(&[1, 3]);
        let at = self.cast(format!("{name}/positions"), positions, Element::F32);
        let frequencies = same.unwrap_or_else(|| self.frequencies_by_length(rope, head, &name, &at));
        let at = self.node("Unsqueeze", format!("{name}/at"), &[&at, &axes], vec![]);
        let angles = self.node("Mul", format!("{name}/angles"), &[&at, &frequencies], vec![]);
        if self.options.style == Style::Standard {
            let one = self.ints(&[1]);
            let angles = self.node("Squeeze", format!("{name}/of_tokens"), &[&angles, &one], vec![]);
            self.cosines_and_sines(&name, &angles, rope.magnitude());
            return name;
        }
        let magnitude = self.float(rope.magnitude());
        for (op, axis) in [("Cos", "cos"), ("Sin", "sin")] {
            let plain = self.node(op, format!("{name}/plain_{axis}"), &[&angles], vec![]);
            let half = self.node("Mul", format!("{name}/half_{axis}"), &[&plain, &magnitude], vec![]);
            let first = match axis {
                "sin" => self.node("Neg", format!("{name}/negative_sin"), &[&half], vec![]),
                _ => half.clone(),
            };
            self.node("Concat", format!("{name}/{axis}"), &[&first, &half], vec![("axis", Value::Int(-1))]);
        }
        name
    }

    /// `NAME/cos` and `NAME/sin` as rows of tables for all positions of a context: products of positions and frequencies are too coarse in f16.
    fn rows_of_angles(&mut self, rope: &Rope, head: usize, name: &str, positions: &str, context: usize) {
        let one = self.ints(&[1]);
        let longest = rope.longest_short().filter(|longest| context > *longest);
        let last = longest.map(|longest| {
            let axis = self.ints(&[-1]);
            let at = self.cast(format!("{name}/positions"), positions, Element::F32);
            let last = self.node("ReduceMax", format!("{name}/last"), &[&at, &axis], vec![("keepdims", Value::Int(1))]);
            let first_long = self.float(longest as f32);
            self.node("Less", format!("{name}/is_short"), &[&last, &first_long], vec![])
        });
        for (what, of, sign) in [("cos", f32::cos as fn(f32) -> f32, 1.0), ("sin", f32::sin, -1.0)] {
            let rows = |e: &mut Self, list: &str, length: usize| {
                let table = e.table_of_angles(rope, [head, context, length], &format!("{name}/{what}{list}/table"), of, sign);
                e.node("Gather", format!("{name}/{what}{list}/rows"), &[&table, positions], vec![])
            };
            let rows = match (&last, longest) {
                (Some(is_short), Some(longest)) => {
                    let [short, long] =
                        [(".short", longest), (".long", longest + 1)].map(|(list, length)| rows(self, list, length));
                    self.node("Where", format!("{name}/{what}/rows"), &[is_short, &short, &long], vec![])
                }
                _ => rows(self, "", 0),
            };
            self.node("Unsqueeze", format!("{name}/{what}"), &[&rows, &one], vec![]);
        }
    }

    /// Rows of a function of angles for both halves of a head, `[context, head]`, the first half times `sign`.
    fn table_of_angles(
        &mut self,
        rope: &Rope,
        [head, context, length]: [usize; 3],
        name: &str,
        of: fn(f32) -> f32,
        sign: f32,
    ) -> String {
        let frequencies = rope.frequencies_of(head, length);
        let row = |at: usize| {
            let half: Vec<f32> = frequencies.iter().map(|f| of(at as f32 * f) * rope.magnitude()).collect();
            half.iter().map(|value| sign * value).chain(half.clone()).collect::<Vec<f32>>()
        };
        let mut values: Vec<f32> = (0..context).flat_map(row).collect();
        kit::without_negative_zeros(&mut values);
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name.into(), Element::F32, &[context, head], bytes)
    }

    /// `NAME/cos` and `NAME/sin` of angles, times a magnitude.
    pub(super) fn cosines_and_sines(&mut self, name: &str, angles: &str, magnitude: f32) {
        for (op, table) in [("Cos", "cos"), ("Sin", "sin")] {
            let unit = if magnitude == 1.0 { format!("{name}/{table}") } else { format!("{name}/{table}/unit") };
            let unit = self.node(op, unit, &[angles], vec![]);
            if magnitude != 1.0 {
                let magnitude = self.float(magnitude);
                self.node("Mul", format!("{name}/{table}"), &[&unit, &magnitude], vec![]);
            }
        }
    }

    /// Radians per position, `[1, 1, 1, pairs]`, in a text of `length` tokens.
    pub(super) fn frequencies(&mut self, rope: &Rope, head: usize, name: String, length: usize) -> String {
        let bytes = rope.frequencies_of(head, length).iter().flat_map(|f| f.to_le_bytes()).collect();
        self.constant(name, Element::F32, &[1, 1, 1, head / 2], bytes)
    }

    /// Those of a long-rope: which of two lists, the largest of the positions `at` decides.
    fn frequencies_by_length(&mut self, rope: &Rope, head: usize, name: &str, at: &str) -> String {
        let longest = rope.longest_short().unwrap_or(0);
        let short = self.frequencies(rope, head, format!("{name}/short"), longest);
        let long = self.frequencies(rope, head, format!("{name}/long"), longest + 1);
        let last = self.node("ReduceMax", format!("{name}/last"), &[at], vec![("keepdims", Value::Int(0))]);
        let first_long = self.float(longest as f32);
        let is_short = self.node("Less", format!("{name}/is_short"), &[&last, &first_long], vec![]);
        self.node("Where", format!("{name}/frequencies"), &[&is_short, &short, &long], vec![])
    }
}
