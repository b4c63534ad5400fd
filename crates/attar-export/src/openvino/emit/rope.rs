//! Rotary position embedding.

use attar_graph::{Node, Op, op::Rope};

use super::{Element, Emission, Out, constant};
use crate::Result;

/// `x cos + rotated(x) sin`, where `rotated` exchanges the halves and negates the first.
pub(super) fn rope(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let x = e.value(node.inputs[0]);
    rotate(e, node, name, x)
}

/// Heads `x`, rotated as those of `node` are.
pub(super) fn rotate(e: &mut Emission<'_>, node: &Node, name: &str, x: Out) -> Result<Out> {
    let Op::Rope(rope) = &node.op else { unreachable!("the table is right") };
    let head = constant(&e.graph.fact(node.output()).dims[3]) as usize;
    let positions = e.value(node.inputs[1]);
    let [cos, sin] = e.angles(rope, head, positions);
    let (axis, halves, minus) = (e.int(3), e.ints(&[head as i64 / 2; 2]), e.float(-1.0));
    let halves = e.ir.layer(format!("{name}/halves"), ("VariadicSplit", 1), vec![], &[x, axis, halves], &[Element::F32; 2]);
    let negated = e.binary("Multiply", format!("{name}/negated"), halves[1], minus);
    let rotated = e.join(format!("{name}/rotated"), &[negated, halves[0]], -1);
    let straight = e.binary("Multiply", format!("{name}/straight"), x, cos);
    let crossed = e.binary("Multiply", format!("{name}/crossed"), rotated, sin);
    Ok(e.binary("Add", name, straight, crossed))
}

impl Emission<'_> {
    /// Cosines and sines, `[batch, 1, seq, head]`, once for each kind of rope.
    fn angles(&mut self, rope: &Rope, head: usize, positions: Out) -> [Out; 2] {
        let known = |e: &Self, what: &str| e.made.get(&format!("rope/{rope:?}/{head}/{what}")).copied();
        if let (Some(cos), Some(sin)) = (known(self, "cos"), known(self, "sin")) {
            return [cos, sin];
        }
        let name = format!("rope.{}", self.made.keys().filter(|key| key.starts_with("rope/") && key.ends_with("/cos")).count());
        let at = self.shared("positions/f32", |e, name| e.convert(name, positions, Element::F32));
        let frequencies = self.frequencies_of(rope, head, &name, at);
        let row = self.unsqueeze(format!("{name}/positions"), at, &[1]);
        let data = vec![("transpose_a", "false".to_owned()), ("transpose_b", "false".to_owned())];
        let turned = self.layer(format!("{name}/turned"), ("MatMul", 1), data, &[frequencies, row]);
        let half = self.transpose(format!("{name}/half"), turned, &[0, 2, 1]);
        let angles = self.join(format!("{name}/angles"), &[half, half], -1);
        [("Cos", "cos"), ("Sin", "sin")].map(|(op, what)| {
            let mut table = self.layer(format!("{name}/{what}/unit"), (op, 1), vec![], &[angles]);
            if rope.magnitude() != 1.0 {
                let magnitude = self.float(rope.magnitude());
                table = self.binary("Multiply", format!("{name}/{what}/scaled"), table, magnitude);
            }
            let table = self.unsqueeze(format!("{name}/{what}"), table, &[1]);
            self.made.insert(format!("rope/{rope:?}/{head}/{what}"), table);
            table
        })
    }

    /// Radians per position, `[1, pairs, 1]`. Of a long-rope, the largest of the positions decides which of two lists.
    fn frequencies_of(&mut self, rope: &Rope, head: usize, name: &str, at: Out) -> Out {
        let list = |e: &mut Self, what: &str, length: usize| {
            let bytes = rope.frequencies_of(head, length).iter().flat_map(|f| f.to_le_bytes()).collect();
            e.constant(&format!("{name}/{what}"), Element::F32, &[1, head / 2, 1], bytes)
        };
        let Some(longest) = rope.longest_short() else { return list(self, "frequencies", 0) };
        let (short, long) = (list(self, "short", longest), list(self, "long", longest + 1));
        let (axes, first_long) = (self.ints(&[0, 1]), self.float(longest as f32));
        let last = self.layer(format!("{name}/last"), ("ReduceMax", 1), vec![("keep_dims", "false".into())], &[at, axes]);
        let data = vec![("auto_broadcast", "numpy".to_owned())];
        let is_short = self.layer_of(format!("{name}/is_short"), ("Less", 1), data.clone(), &[last, first_long], Element::BOOL);
        self.layer(format!("{name}/frequencies"), ("Select", 1), data, &[is_short, short, long])
    }
}
