//! Rotary position embedding.

use attar_graph::{Node, Op, op::Rope};

use super::{Element, Emission, Field};
use crate::{
    Result,
    litert::schema::{ADD, CAST, COS, LESS, MUL, REDUCE_MAX, SELECT, SIN},
};

/// `x cos + exchanged(x) sin`, where `exchanged` exchanges the halves; the sine of the first one is negative.
pub(super) fn rope(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::Rope(rope) = &node.op else { unreachable!("the table is right") };
    let head = e.constant_dim(node.output(), 3);
    let x = e.value(node.inputs[0]);
    let [cos, sin] = e.angles(rope, head);
    let [low, high] = [0, head / 2].map(|start| e.part(format!("{name}/half.{start}"), x, start, head / 2));
    let exchanged = e.join(format!("{name}/exchanged"), &[high, low]);
    let straight = e.binary(MUL, format!("{name}/straight"), x, cos);
    let crossed = e.binary(MUL, format!("{name}/crossed"), exchanged, sin);
    Ok(e.binary(ADD, name, straight, crossed))
}

impl Emission<'_> {
    /// Positions as f32, `[1, 1, tokens, 1]`.
    pub(super) fn positions(&mut self) -> i32 {
        self.shared("positions", |e, name| {
            let (given, tokens) = (e.made["input_pos"], e.call.tokens);
            let codes = [Element::I32, Element::F32].map(|element| Field::I8(element.0));
            let numbers = e.op("positions/f32", CAST, &[given], vec![(0, codes[0]), (1, codes[1])], &[tokens]);
            e.reshape(name, numbers, &[1, 1, tokens, 1])
        })
    }

    /// Cosines, and sines whose first half is negative, `[1, 1, tokens, head]`, once for each kind of rope.
    fn angles(&mut self, rope: &Rope, head: usize) -> [i32; 2] {
        let key = |what: &str| format!("rope/{rope:?}/{head}/{what}");
        if let (Some(cos), Some(sin)) = (self.made.get(&key("cos")), self.made.get(&key("sin"))) {
            return [*cos, *sin];
        }
        let known = self.made.keys().filter(|key| key.starts_with("rope/") && key.ends_with("/cos")).count();
        let name = format!("rope.{known}");
        let positions = self.positions();
        let frequencies = self.frequencies(rope, head, &name);
        let angles = self.binary(MUL, format!("{name}/angles"), positions, frequencies);
        let both = [(COS, "cos", 1.0), (SIN, "sin", -1.0)].map(|(kind, what, sign)| {
            let mut half = self.unary(kind, format!("{name}/{what}/half"), angles);
            if rope.magnitude() != 1.0 {
                let magnitude = self.float(rope.magnitude());
                half = self.binary(MUL, format!("{name}/{what}/scaled"), half, magnitude);
            }
            let sign = self.float(sign);
            let first = self.binary(MUL, format!("{name}/{what}/first"), half, sign);
            self.join(format!("{name}/{what}"), &[first, half])
        });
        for (what, tensor) in ["cos", "sin"].into_iter().zip(both) {
            self.made.insert(key(what), tensor);
        }
        both
    }

    /// Radians per position, `[1, 1, 1, head / 2]`. Of a long-rope, the largest of the positions decides which of two lists.
    fn frequencies(&mut self, rope: &Rope, head: usize, name: &str) -> i32 {
        let dims = [1, 1, 1, head / 2];
        let list = |e: &mut Self, what: &str, length: usize| {
            e.floats(&format!("{name}/{what}"), &dims, &rope.frequencies_of(head, length))
        };
        let Some(longest) = rope.longest_short() else { return list(self, "frequencies", 0) };
        let (short, long) = (list(self, "short", longest), list(self, "long", longest + 1));
        let positions = self.positions();
        let tokens = self.call.tokens;
        let row = self.reshape(format!("{name}/row"), positions, &[1, 1, 1, tokens]);
        let last = self.reduce(REDUCE_MAX, format!("{name}/last"), row);
        let first_long = self.float(longest as f32);
        let is_short = self.op_of(format!("{name}/is_short"), LESS, &[last, first_long], vec![], &[1; 4], Element::BOOL);
        self.op(format!("{name}/frequencies"), SELECT, &[is_short, short, long], vec![], &dims)
    }
}
