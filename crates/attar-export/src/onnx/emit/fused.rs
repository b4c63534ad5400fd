//! Operators that do the work of several nodes: [`Fusions`] finds where they fit, [`Emission::fused`] writes them: those of ONNX Runtime here, those
//! of the standard in [`super::standard`].
//!
//! `GroupQueryAttention` counts tokens in the cache, which rotary embeddings allow: they see differences of positions only. Padding on the left is
//! hidden by its `attention_bias`.

use std::collections::{HashMap, HashSet};

use attar_graph::{
    Graph, Node, Op, Origin, ValueId,
    op::{Attention, Rope},
};

use super::{
    Element, Emission, MASK, Value,
    attention::{Queries, is_held},
    constant, emitter,
};
use crate::{
    Result,
    decoder::CachePlaces,
    onnx::{Padding, Style, form::Form, proto::MICROSOFT},
};

/// What `GroupQueryAttention` asks of the width of a head, and what its rotary embedding asks.
const HEAD_MULTIPLE: [i64; 2] = [8, 16];

/// Added to a score that padding must not have.
const HIDDEN: f32 = -1e30;

/// Where fused operators stand for nodes of a graph.
#[derive(Default)]
pub(super) struct Fusions {
    /// By the result of an addition: the norm that reads it.
    norms: HashMap<ValueId, ValueId>,
    /// By the result of a `merge_heads`.
    attentions: HashMap<ValueId, GroupQuery>,
    /// Results of nodes that are not written.
    absorbed: HashSet<ValueId>,
}

/// An attention with all that is around it.
#[derive(Clone)]
pub(super) struct GroupQuery {
    pub(super) attention: Attention,
    /// The layer of its caches, if it has some.
    pub(super) layer: Option<usize>,
    /// Those of queries, and those of keys and values.
    pub(super) heads: [i64; 2],
    /// The width of one.
    pub(super) head: i64,
    pub(super) query: Side,
    pub(super) key: Side,
    pub(super) value: ValueId,
}

/// How query or key come from a product.
#[derive(Clone)]
pub(super) struct Side {
    /// The product, `[batch, seq, heads * head]`.
    product: ValueId,
    /// A norm of each head: its gain and its epsilon.
    norm: Option<(ValueId, f64)>,
    pub(super) rope: Option<(Rope, ValueId)>,
    /// How many columns of each head are rotated, if not all.
    pub(super) part: Option<usize>,
    /// The last value, `[batch, heads, seq, head]`.
    pub(super) last: ValueId,
    /// All values between the product and the attention.
    values: Vec<ValueId>,
}

impl Fusions {
    pub(super) fn find(graph: &Graph, caches: &CachePlaces, style: Style) -> Fusions {
        let mut fusions = Fusions::default();
        let readers = Readers::of(graph);
        for node in graph.nodes() {
            match &node.op {
                Op::RmsNorm { .. } if style == Style::Fused => fusions.add_norm(graph, node),
                Op::MergeHeads => {
                    let found = group_query(graph, caches, &readers, node).filter(|(group, _)| group.is_held(style));
                    fusions.add_attention(node, found);
                }
                _ => (),
            }
        }
        fusions
    }

    fn add_norm(&mut self, graph: &Graph, norm: &Node) {
        let Some(add) = graph.maker(norm.inputs[0]).filter(|node| node.op == Op::Add) else { return };
        let [a, b] = [0, 1].map(|i| graph.get(add.inputs[i]));
        let computed = [a, b].iter().all(|value| !matches!(value.origin, Origin::Weight(_)));
        if computed && a.fact.dims == b.fact.dims && a.fact.dims.len() == 3 && !self.norms.contains_key(&add.output()) {
            self.norms.insert(add.output(), norm.output());
            self.absorbed.insert(norm.output());
        }
    }

    fn add_attention(&mut self, merge: &Node, found: Option<(GroupQuery, Vec<ValueId>)>) {
        if let Some((group, values)) = found {
            self.absorbed.extend(values);
            self.attentions.insert(merge.output(), group);
        }
    }
}

impl GroupQuery {
    /// Whether the operator of a style computes it.
    fn is_held(&self, style: Style) -> bool {
        match style {
            Style::Fused if self.query.part.is_some() => false,
            Style::Fused => self.attention.causal && self.layer.is_some() && self.head % HEAD_MULTIPLE[0] == 0,
            Style::Standard => is_held(&self.attention),
            Style::Plain => false,
        }
    }
}

/// How often each value is read.
struct Readers(HashMap<ValueId, usize>);

impl Readers {
    fn of(graph: &Graph) -> Readers {
        let mut counts = HashMap::new();
        let read = graph.nodes().iter().flat_map(|node| &node.inputs).chain(graph.outputs());
        read.for_each(|id| *counts.entry(*id).or_insert(0) += 1);
        Readers(counts)
    }

    fn count(&self, id: ValueId) -> usize {
        self.0.get(&id).copied().unwrap_or(0)
    }
}

/// The attention before `merge`, if all between it and the products is read by nothing else, and the values between.
fn group_query(graph: &Graph, caches: &CachePlaces, readers: &Readers, merge: &Node) -> Option<(GroupQuery, Vec<ValueId>)> {
    let node = made_once(graph, readers, merge.inputs[0])?;
    let Op::Attention(attention) = &node.op else { return None };
    let layer = caches.get(&node.inputs[1]).map(|(layer, _)| *layer);
    if [1, 2].map(|i| caches.contains_key(&node.inputs[i])) != [!caches.is_empty(); 2] {
        return None;
    }
    let [key, value] = [1, 2].map(|i| cached(graph, readers, caches, node.inputs[i]));
    let (query, key, value) = (side(graph, readers, node.inputs[0])?, side(graph, readers, key?)?, side(graph, readers, value?)?);
    let dims = [query.last, key.last].map(|id| &graph.fact(id).dims);
    let (heads, head) = (dims.map(|dims| constant(&dims[1])), constant(&dims[0][3]));
    let rotation = |side: &Side| (side.rope.as_ref().map(|(rope, _)| rope.clone()), side.part);
    let alike = rotation(&query) == rotation(&key);
    if !alike || value.rope.is_some() || value.norm.is_some() {
        return None;
    }
    let mut values = vec![merge.inputs[0], node.inputs[1], node.inputs[2]];
    [&query, &key, &value].iter().for_each(|side| values.extend(&side.values));
    let value = value.product;
    Some((GroupQuery { attention: attention.clone(), layer, heads, head, query, key, value }, values))
}

fn made_once<'g>(graph: &'g Graph, readers: &Readers, id: ValueId) -> Option<&'g Node> {
    graph.maker(id).filter(|_| readers.count(id) == 1)
}

/// What a cache keeps, or the value itself where there are no caches.
fn cached(graph: &Graph, readers: &Readers, caches: &CachePlaces, id: ValueId) -> Option<ValueId> {
    let node = made_once(graph, readers, id)?;
    Some(if caches.contains_key(&id) { node.inputs[0] } else { id })
}

/// Split, perhaps normalized, perhaps rotated.
fn side(graph: &Graph, readers: &Readers, last: ValueId) -> Option<Side> {
    let mut side = Side { product: last, norm: None, rope: None, part: None, last, values: Vec::new() };
    let mut read = 1;
    loop {
        let node = graph.maker(side.product).filter(|_| readers.count(side.product) == read)?;
        side.values.push(side.product);
        (side.product, read) = (node.inputs[0], 1);
        match &node.op {
            Op::Concat if side.rope.is_none() && side.norm.is_none() => {
                side.product = side.add_part(graph, readers, node)?;
                read = 2;
            }
            Op::Rope(rope) if side.rope.is_none() && side.norm.is_none() => side.rope = Some((rope.clone(), node.inputs[1])),
            Op::RmsNorm { epsilon } if side.norm.is_none() => side.norm = Some((node.inputs[1], *epsilon)),
            Op::SplitHeads { .. } => return Some(side),
            _ => return None,
        }
    }
}

impl Side {
    /// Reads `joined` as the first columns of each head, rotated, and the others as they were; returns what both are of.
    fn add_part(&mut self, graph: &Graph, readers: &Readers, joined: &Node) -> Option<ValueId> {
        let [rotated, kept] = joined.inputs[..] else { return None };
        let (turn, others) = (made_once(graph, readers, rotated)?, made_once(graph, readers, kept)?);
        let Op::Rope(rope) = &turn.op else { return None };
        let columns = made_once(graph, readers, turn.inputs[0])?;
        let (Op::Slice { start: 0, length: part }, Op::Slice { start, length }) = (&columns.op, &others.op) else { return None };
        let whole = columns.inputs[0];
        let width = constant(&graph.fact(whole).dims[3]) as usize;
        if others.inputs[0] != whole || start != part || start + length != width {
            return None;
        }
        self.rope = Some((rope.clone(), turn.inputs[1]));
        self.part = Some(*part);
        self.values.extend([rotated, kept, turn.inputs[0]]);
        Some(whole)
    }
}

impl Emission<'_> {
    /// Whether nothing reads these positions: all attentions count in their caches.
    pub(super) fn counts_positions(&self, positions: ValueId) -> bool {
        let rotated = |group: &GroupQuery| self.rotates(group).then_some([group.query.last, group.key.last]);
        let inside: HashSet<ValueId> = self.fusions.attentions.values().filter_map(rotated).flatten().collect();
        let mut readers = self.graph.nodes().iter().filter(|node| node.inputs.contains(&positions));
        readers.all(|node| inside.contains(&node.output()))
    }

    /// Writes the fused operator that `node` is the place of, or nothing where another one does its work. `false`: the node is written by
    /// itself.
    pub(super) fn fused(&mut self, node: &Node) -> Result<bool> {
        let id = node.outputs[0];
        if self.fusions.absorbed.contains(&id) {
            return Ok(true);
        }
        if let Some(group) = self.fusions.attentions.get(&id).cloned() {
            match self.options.style {
                Style::Standard => self.standard_attention(node, &group),
                Style::Fused | Style::Plain => self.group_query(node, &group)?,
            }
        } else if let Some(norm) = self.fusions.norms.get(&id).copied() {
            self.add_and_normalize(node, norm);
        } else if !self.multiply_pack(node) {
            return Ok(false);
        }
        Ok(true)
    }

    pub(super) fn named(&mut self, id: ValueId) -> String {
        let name = self.graph.get(id).name.clone();
        self.names.insert(id, name.clone());
        name
    }

    fn add_and_normalize(&mut self, add: &Node, norm: ValueId) {
        let Some(Op::RmsNorm { epsilon }) = self.graph.maker(norm).map(|node| &node.op) else { unreachable!("found as one") };
        let epsilon = *epsilon as f32;
        let gain = self.graph.maker(norm).map(|node| node.inputs[1]).expect("found above");
        let [a, b, gain] = [add.inputs[0], add.inputs[1], gain].map(|id| self.value(id));
        let (sum, norm) = (self.named(add.output()), self.named(norm));
        let attributes = vec![("epsilon", Value::Float(epsilon))];
        self.node_with(MICROSOFT, "SkipSimplifiedLayerNormalization", &[&norm, "", "", &sum], &[&a, &b, &gain], attributes);
    }

    /// The products of a pack at the place of the first.
    fn multiply_pack(&mut self, node: &Node) -> bool {
        let packs = &self.weights.packs;
        let Some(pack) = packs.iter().position(|pack| pack.products.contains(&node.output())) else { return false };
        let (products, members) = (packs[pack].products.clone(), packs[pack].members.clone());
        if products[0] != node.output() {
            return true;
        }
        let names: Vec<String> = products.iter().map(|id| self.named(*id)).collect();
        let together = names.join("+");
        let first = &self.weights.stored[members[0]];
        let (Form::Blobs(scheme, _), columns) = (first.form, first.dims[1]) else { unreachable!("packs are of blobs") };
        let (x, parts) = (self.value(node.inputs[0]), self.weights.packs[pack].parts.clone());
        match self.biases(&products, &together) {
            None => drop(self.multiply_blobs(&together, &x, &parts, columns, scheme)),
            Some(bias) => {
                let product = self.multiply_blobs(&format!("{together}/product"), &x, &parts, columns, scheme);
                self.node("Add", &together, &[&product, &bias], vec![]);
            }
        }
        if !self.is_read_whole(&products) {
            let widths: Vec<i64> = members.iter().map(|at| self.weights.stored[*at].dims[0] as i64).collect();
            let widths = self.ints(&widths);
            let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
            self.node_with("", "Split", &outputs, &[&together, &widths], vec![("axis", Value::Int(-1))]);
        }
        true
    }

    /// The biases of linear layers, one behind the other.
    fn biases(&mut self, products: &[ValueId], together: &str) -> Option<String> {
        let biases = products.iter().map(|id| self.graph.maker(*id)?.inputs.get(2).copied()).collect::<Option<Vec<ValueId>>>()?;
        let biases: Vec<String> = biases.into_iter().map(|id| self.value(id)).collect();
        let biases: Vec<&str> = biases.iter().map(String::as_str).collect();
        Some(self.node("Concat", format!("{together}/bias"), &biases, vec![("axis", Value::Int(0))]))
    }

    /// Whether one attention takes these products as they lie: query, key and value behind each other.
    fn is_read_whole(&self, products: &[ValueId]) -> bool {
        let whole = self.options.style == Style::Fused;
        whole
            && self.fusions.attentions.values().any(|group| {
                let plain = |side: &Side| side.norm.is_none() && (side.rope.is_none() || self.rotates(group));
                products == [group.query.product, group.key.product, group.value] && plain(&group.query) && plain(&group.key)
            })
    }

    /// Whether the rotary embedding of an attention is done inside of it: by a table of all positions that the model knows.
    fn rotates(&self, group: &GroupQuery) -> bool {
        if self.options.style != Style::Fused {
            return false;
        }
        let (Some((rope, positions)), Some(_)) = (&group.query.rope, self.purpose.context) else { return false };
        let counted = self.graph.get(*positions).name == "positions" && self.graph.inputs().contains(positions);
        counted && rope.longest_short().is_none() && group.head % HEAD_MULTIPLE[1] == 0
    }

    fn group_query(&mut self, merge: &Node, group: &GroupQuery) -> Result<()> {
        let products = [group.query.product, group.key.product, group.value];
        let tensors = match self.is_read_whole(&products) && self.weights.packs.iter().any(|pack| pack.products == products) {
            true => [products.map(|id| self.names[&id].clone()).join("+"), String::new(), String::new()],
            false => [self.heads(&group.query, group)?, self.heads(&group.key, group)?, self.value(group.value)],
        };
        let tables = match (&group.query.rope, self.rotates(group)) {
            (Some((rope, _)), true) => self.rotary_tables(rope, group.head as usize),
            _ => [String::new(), String::new()],
        };
        let lengths = self.lengths();
        let bias = match self.purpose.padding {
            Padding::Left => self.padding(&tensors[0]),
            Padding::Right => String::new(),
        };
        let layer = group.layer.expect("is_held asks for caches");
        let [past_key, past_value] = ["key", "value"].map(|role| format!("past_key_values.{layer}.{role}"));
        let [present_key, present_value] = ["key", "value"].map(|role| format!("present.{layer}.{role}"));
        let attention = &group.attention;
        let mut attributes = vec![
            ("do_rotary", Value::Int(self.rotates(group).into())),
            ("kv_num_heads", Value::Int(group.heads[1])),
            ("num_heads", Value::Int(group.heads[0])),
            ("scale", Value::Float(attention.scale as f32)),
        ];
        attributes.extend(attention.window.map(|window| ("local_window_size", Value::Int(window as i64))));
        attributes.extend(attention.softcap.map(|cap| ("softcap", Value::Float(cap as f32))));
        let [query, key, value] = &tensors;
        let ([cos, sin], [last, total]) = (&tables, &lengths);
        let inputs = [query, key, value, &past_key, &past_value, last, total, cos, sin, "", &bias];
        let given = inputs.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
        let name = self.named(merge.output());
        self.node_with(MICROSOFT, "GroupQueryAttention", &[&name, &present_key, &present_value], &inputs[..given], attributes);
        self.name_caches(layer);
        Ok(())
    }

    /// The caches of a layer are outputs of its attention.
    pub(super) fn name_caches(&mut self, layer: usize) {
        let caches: Vec<_> = self.caches.iter().filter(|(_, place)| place.0 == layer).map(|(id, place)| (*id, *place)).collect();
        self.names.extend(caches.into_iter().map(|(id, (layer, role))| (id, format!("present.{layer}.{role}"))));
    }

    /// Query or key as `GroupQueryAttention` takes it, `[batch, seq, heads * head]`: normalized, and rotated where the operator does not.
    fn heads(&mut self, side: &Side, group: &GroupQuery) -> Result<String> {
        if side.rope.is_some() && !self.rotates(group) {
            return self.rotated_heads(side);
        }
        Ok(self.normalized(side, group.head))
    }

    /// The product of query or key, `[batch, seq, heads * head]`, with its heads normalized if they are.
    pub(super) fn normalized(&mut self, side: &Side, head: i64) -> String {
        let product = self.value(side.product);
        let Some((gain, epsilon)) = side.norm else { return product };
        let name = self.graph.get(side.last).name.clone();
        let (gain, apart, whole) = (self.value(gain), self.ints(&[0, 0, -1, head]), self.ints(&[0, 0, -1]));
        let apart = self.node("Reshape", format!("{name}/heads"), &[&product, &apart], vec![]);
        let norm = self.whole_norm(format!("{name}/norm"), &apart, &gain, epsilon);
        self.node("Reshape", format!("{name}/whole"), &[&norm, &whole], vec![])
    }

    /// Each node of a side by itself, and the heads behind each other again.
    fn rotated_heads(&mut self, side: &Side) -> Result<String> {
        for id in side.values.iter().rev() {
            let node = self.graph.maker(*id).expect("a side is made of nodes");
            let emit = emitter(&node.op).ok_or_else(|| self.refuse(node, "an op without a decomposition", "the ops it knows"))?;
            let name = emit(self, node, &self.graph.get(*id).name.clone())?;
            self.names.insert(*id, name);
        }
        let (last, whole) = (self.names[&side.last].clone(), self.ints(&[0, 0, -1]));
        let turned = self.node("Transpose", format!("{last}/turned"), &[&last], vec![("perm", Value::Ints(vec![0, 2, 1, 3]))]);
        Ok(self.node("Reshape", format!("{last}/whole"), &[&turned, &whole], vec![]))
    }

    /// Cosines and sines `[context, head / 2]`, which runtimes compute once, when they load the file.
    fn rotary_tables(&mut self, rope: &Rope, head: usize) -> [String; 2] {
        let context = self.purpose.context.expect("asked for where it is known");
        let at = self.ropes.iter().position(|(r, h, p, _)| r == rope && *h == head && p.is_empty());
        let name = match at {
            Some(at) => self.ropes[at].3.clone(),
            None => {
                let name = format!("/rope.{}", self.ropes.len());
                self.ropes.push((rope.clone(), head, String::new(), name.clone()));
                name
            }
        };
        if at.is_none() {
            let frequencies = self.frequencies(rope, head, format!("{name}/frequencies"), 0);
            let (zero, one, end, column) = (self.float(0.0), self.float(1.0), self.float(context as f32), self.ints(&[-1, 1]));
            let flat = self.ints(&[-1, head as i64 / 2]);
            let positions = self.shared("Range", &format!("/positions.{context}"), &[&zero, &end, &one], vec![]);
            let positions = self.shared("Reshape", &format!("{positions}/column"), &[&positions, &column], vec![]);
            let angles = self.node("Mul", format!("{name}/products"), &[&positions, &frequencies], vec![]);
            let angles = self.node("Reshape", format!("{name}/angles"), &[&angles, &flat], vec![]);
            self.cosines_and_sines(&name, &angles, rope.magnitude());
        }
        ["cos", "sin"].map(|table| format!("{name}/{table}"))
    }

    /// The place of the last token of each row in the cache `[batch]`, and the length of all `[1]`.
    fn lengths(&mut self) -> [String; 2] {
        let dimension = |e: &mut Self, name: &str, axis: i64| {
            e.shared("Shape", name, &[MASK], vec![("start", Value::Int(axis)), ("end", Value::Int(axis + 1))])
        };
        let to = || vec![("to", Value::Int(Element::I32.0.into()))];
        let length = dimension(self, "/mask/length", 1);
        let (total, one) = (self.shared("Cast", "/mask/total_length", &[&length], to()), self.int32(1));
        let last = match self.purpose.padding {
            Padding::Left => {
                let batch = dimension(self, "/mask/batch", 0);
                let last = self.shared("Sub", "/mask/last", &[&total, &one], vec![]);
                self.shared("Expand", "/mask/last_of_each", &[&last, &batch], vec![])
            }
            Padding::Right => {
                let tokens = self.ints(&[1]);
                let mask = self.shared("Cast", "/mask/counted", &[MASK], to());
                let count = vec![("keepdims", Value::Int(0))];
                let count = self.shared("ReduceSum", "/mask/count", &[&mask, &tokens], count);
                self.shared("Sub", "/mask/last_of_each", &[&count, &one], vec![])
            }
        };
        [last, total]
    }

    /// What is added to scores so that padding is not seen: `[batch, 1, seq, past + seq]`. `queries` is `[batch, seq, _]`.
    fn padding(&mut self, queries: &str) -> String {
        let (zero, hidden, axes) = (self.float(0.0), self.float(HIDDEN), self.ints(&[1, 2]));
        let real = self.shared("Cast", "/mask/real", &[MASK], vec![("to", Value::Int(Element::BOOL.0.into()))]);
        let keys = self.shared("Where", "/mask/padding_of_keys", &[&real, &zero, &hidden], vec![]);
        let keys = self.shared("Unsqueeze", "/mask/padding_of_all", &[&keys, &axes], vec![]);
        self.for_each_query("/mask/padding", &keys, Queries { of: queries, axis: 1 })
    }
}
