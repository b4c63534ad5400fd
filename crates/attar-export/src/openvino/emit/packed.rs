//! Linear layers that read the same value, as one product, and query and key rotated together.
//!
//! OpenVINO's passes and its calls take time by the node: SmolLM2-135M has 2,600 layers in place of 3,260, loads in three quarters of the time and
//! decodes in nine tenths, to the same bits.

use std::collections::HashMap;

use attar_graph::{Node, Op, ValueId};

use super::{Element, Emission, Out, constant};
use crate::{Result, family::families, openvino::weight::Pack};

/// Where query, key and value come out of one product.
struct Heads<'g> {
    /// Of query and key.
    ropes: [&'g Node; 2],
    /// What splits the value into heads.
    value: &'g Node,
    /// How many of query, and of key and value.
    heads: [i64; 2],
    head: i64,
}

impl<'g> Emission<'g> {
    /// Gives all weights their places; those that one product can read side by side.
    pub(super) fn place(&mut self) {
        let mut readers: HashMap<ValueId, usize> = HashMap::new();
        for id in self.graph.nodes().iter().flat_map(|node| &node.inputs) {
            *readers.entry(*id).or_default() += 1;
        }
        let alone = |id: &ValueId| readers[id] == 1;
        let mut families: HashMap<usize, Vec<usize>> = HashMap::new();
        for family in families_of(self, alone) {
            families.insert(family[0], family);
        }
        let mut end = 0;
        let mut placed = vec![false; self.stored.len()];
        for at in 0..self.stored.len() {
            let pack = families.get(&at).and_then(|members| Pack::place(members, &mut self.stored, &mut end));
            if let Some(pack) = pack {
                pack.members.iter().for_each(|at| placed[*at] = true);
                self.packs.push(pack);
            }
            if !placed[at] {
                self.stored[at].place(&mut end);
            }
        }
    }

    /// The result of a linear layer that is a part of a packed product. What comes out with it is a value from here on.
    pub(super) fn packed_product(&mut self, node: &Node) -> Result<Option<Out>> {
        let of = |e: &Self, node: &Node| e.of.get(&node.inputs[1]).copied();
        let Some(at) = of(self, node) else { return Ok(None) };
        let Some(pack) = self.packs.iter().position(|pack| pack.members.contains(&at)) else { return Ok(None) };
        let Pack { name, form, dims, parts, members } = &self.packs[pack];
        let (name, form, dims, parts, members) = (name.clone(), *form, dims.clone(), parts.clone(), members.clone());
        let graph = self.graph;
        let layers: Vec<&Node> = members
            .iter()
            .map(|member| graph.nodes().iter().find(|node| node.op == Op::Linear && of(self, node) == Some(*member)))
            .map(|found| found.expect("a member is a linear layer's weight"))
            .collect();
        let (x, weight) = (self.value(node.inputs[0]), self.number(&name, form, &dims, &parts));
        let data = vec![("transpose_a", "false".to_owned()), ("transpose_b", "true".to_owned())];
        let product = self.layer(format!("{name}/product"), ("MatMul", 1), data, &[x, weight]);
        if let Some(heads) = self.heads(&layers) {
            self.rotate_together(&name, product, &heads)?;
            // Nobody else reads what lies between.
            self.values.extend(layers.iter().map(|layer| (layer.output(), product)));
            return Ok(Some(product));
        }
        let widths: Vec<i64> = members.iter().map(|at| self.stored[*at].dims[0] as i64).collect();
        let apart = self.split(format!("{name}/apart"), product, -1, &widths);
        for (layer, part) in layers.iter().zip(apart) {
            let value = match layer.inputs.get(2) {
                None => part,
                Some(bias) => {
                    let bias = self.value(*bias);
                    self.binary("Add", graph.get(layer.output()).name.clone(), part, bias)
                }
            };
            self.values.insert(layer.output(), value);
        }
        Ok(Some(self.values[&node.output()]))
    }

    fn split(&mut self, name: String, of: Out, axis: i64, widths: &[i64]) -> Vec<Out> {
        let (axis, lengths) = (self.int(axis), self.ints(widths));
        self.ir.layer(name, ("VariadicSplit", 1), vec![], &[of, axis, lengths], &vec![Element::F32; widths.len()])
    }

    /// Whether these are query, key and value of an attention whose query and key are rotated alike, and nothing else is done to them.
    fn heads(&self, layers: &[&'g Node]) -> Option<Heads<'g>> {
        let [query, key, value] = layers[..] else { return None };
        if layers.iter().any(|layer| layer.inputs.len() > 2) {
            return None;
        }
        let split = |layer: &Node| self.only_reader(layer.output()).filter(|node| matches!(node.op, Op::SplitHeads { .. }));
        let rope = |layer: &Node| self.only_reader(split(layer)?.output()).filter(|node| matches!(node.op, Op::Rope(_)));
        let (query, key, value) = (rope(query)?, rope(key)?, split(value)?);
        let dims = [query, key, value].map(|node| &self.graph.fact(node.output()).dims);
        let [heads, head] = [1, 3].map(|axis| dims.map(|dims| constant(&dims[axis])));
        let alike = query.op == key.op && query.inputs[1] == key.inputs[1] && head == [head[0]; 3] && heads[1] == heads[2];
        alike.then(|| Heads { ropes: [query, key], value, heads: [heads[0], heads[1]], head: head[0] })
    }

    fn only_reader(&self, id: ValueId) -> Option<&'g Node> {
        let mut readers = self.graph.nodes().iter().filter(|node| node.inputs.contains(&id));
        let first = readers.next()?;
        (readers.next().is_none() && !self.graph.outputs().contains(&id)).then_some(first)
    }

    fn rotate_together(&mut self, name: &str, product: Out, of: &Heads<'_>) -> Result<()> {
        let [heads, key_heads] = of.heads;
        let apart = self.reshape(format!("{name}/heads"), product, &[0, 0, heads + 2 * key_heads, of.head], true);
        let turned = self.transpose(format!("{name}/turned"), apart, &[0, 2, 1, 3]);
        let [both, value] = self.split(format!("{name}/rotated+value"), turned, 1, &[heads + key_heads, key_heads])[..] else {
            unreachable!("two were asked for")
        };
        let rotated = super::rope::rotate(self, of.ropes[0], &format!("{name}/rotated"), both)?;
        let rotated = self.split(format!("{name}/query+key"), rotated, 1, &[heads, key_heads]);
        let ropes = of.ropes.map(Node::output);
        self.values.extend(ropes.into_iter().zip(rotated));
        self.values.insert(of.value.output(), value);
        // The nodes between are made by none.
        for rope in of.ropes {
            self.values.insert(rope.inputs[0], product);
        }
        Ok(())
    }
}

/// The weights of linear layers that read one value, where no other node reads any of them.
fn families_of(e: &Emission<'_>, alone: impl Fn(&ValueId) -> bool) -> Vec<Vec<usize>> {
    let biased = |node: &Node| node.inputs.len() > 2;
    let of =
        |node: &&Node| e.of.get(&node.inputs[1]).copied().filter(|at| e.stored[*at].also.is_empty() && alone(&node.inputs[1]));
    let fit = families(e.graph).into_iter().filter(|family| family.iter().all(|node| biased(node) == biased(family[0])));
    fit.filter_map(|family| family.iter().map(of).collect::<Option<Vec<usize>>>()).filter(|family| family.len() > 1).collect()
}
