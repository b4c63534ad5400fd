//! Attention, its mask and its caches.

use attar_graph::{Node, Op, op::Attention};

use super::{Element, Emission, MASK, Value, constant};
use crate::{Result, onnx::Style};

/// What a hidden score is: far below any real one, and finite, so that a row of padding that sees nothing gets an even
/// mixture and not NaN.
const HIDDEN: f32 = -1e30;

/// The same where graphs of fixed sizes are computed in f16.
const HIDDEN_IN_F16: f32 = -3e4;

/// A value with the queries of a call along an axis.
#[derive(Clone, Copy)]
pub(super) struct Queries<'n> {
    pub(super) of: &'n str,
    pub(super) axis: i64,
}

/// Whether `Attention` of the standard computes this. Caps are left out: in the first texts of the operator the mask came before the cap, which brings
/// hidden scores back, and runtimes of that time do so.
pub(super) fn is_held(attention: &Attention) -> bool {
    attention.softcap.is_none()
}

pub(super) fn cache(e: &mut Emission<'_>, node: &Node, _: &str) -> Result<String> {
    let Some((layer, role)) = e.caches.get(&node.output()).copied() else {
        return Err(e.refuse(node, "read by no attention", "caches that are an attention's key or value"));
    };
    let (past, new) = (format!("past_key_values.{layer}.{role}"), e.value(node.inputs[0]));
    Ok(e.node("Concat", format!("present.{layer}.{role}"), &[&past, &new], vec![("axis", Value::Int(2))]))
}

/// The query heads that one key head serves are laid below each other, so that each product is one plain batch.
pub(super) fn attention(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<String> {
    let Op::Attention(attention) = &node.op else { unreachable!("the table is right") };
    let cached = [1, 2].map(|i| e.caches.contains_key(&node.inputs[i]));
    if cached != [!e.caches.is_empty(); 2] {
        return Err(e.refuse(node, "without a cache where others have one", "a cache for every key and value, or for none"));
    }
    let dims = [0, 1].map(|i| e.graph.fact(node.inputs[i]).dims.clone());
    let [heads, key_heads, head] = [&dims[0][1], &dims[1][1], &dims[0][3]].map(constant);
    let group = heads / key_heads;
    let [q, k, v] = [0, 1, 2].map(|i| e.value(node.inputs[i]));
    let queries = Queries { of: &q, axis: 2 };
    if e.options.style == Style::Standard && is_held(attention) {
        let mask = e.mask_of_queries(queries, attention);
        e.attend(&[name.into()], &[q, k, v, mask], attention, vec![]);
        return Ok(name.into());
    }
    let mask = e.mask(queries, group, attention);
    let (stack, spread) = (e.ints(&[0, key_heads, -1, head]), e.ints(&[0, heads, -1, head]));
    let queries = if group == 1 { q } else { e.node("Reshape", format!("{name}/stacked"), &[&q, &stack], vec![]) };
    let keys = e.node("Transpose", format!("{name}/keys"), &[&k], vec![("perm", Value::Ints(vec![0, 1, 3, 2]))]);
    let scale = e.float(attention.scale as f32);
    let products = e.node("MatMul", format!("{name}/products"), &[&queries, &keys], vec![]);
    let scores = e.node("Mul", format!("{name}/scores"), &[&products, &scale], vec![]);
    let scores = match attention.softcap {
        Some(cap) => e.cap(&format!("{name}/capped"), &scores, cap),
        None => scores,
    };
    let seen = e.node("Add", format!("{name}/seen"), &[&scores, &mask], vec![]);
    let shares = e.node("Softmax", format!("{name}/shares"), &[&seen], vec![("axis", Value::Int(-1))]);
    if group == 1 {
        return Ok(e.mix(name, &shares, &v));
    }
    let mixed = e.mix(&format!("{name}/mixed"), &shares, &v);
    Ok(e.node("Reshape", name, &[&mixed, &spread], vec![]))
}

impl Emission<'_> {
    /// Values by their shares. In f16, those of Hexagon's softmax add up to 1 only within 2e-3: what they make is divided by their sum, to first order.
    fn mix(&mut self, name: &str, shares: &str, values: &str) -> String {
        if self.purpose.fixed.is_none() {
            return self.node("MatMul", name, &[shares, values], vec![]);
        }
        let (two, last) = (self.float(2.0), self.ints(&[-1]));
        let sum = self.node("ReduceSum", format!("{name}/sum"), &[shares, &last], vec![("keepdims", Value::Int(1))]);
        let missing = self.node("Sub", format!("{name}/missing"), &[&two, &sum], vec![]);
        let mixed = self.node("MatMul", format!("{name}/of_shares"), &[shares, values], vec![]);
        self.node("Mul", name, &[&mixed, &missing], vec![])
    }

    /// What is added to scores: `[batch, 1, group * seq, past + seq]`, once for each way to see and group. Where all
    /// queries see the same keys it is `[batch, 1, 1, past + seq]`.
    fn mask(&mut self, queries: Queries<'_>, group: i64, attention: &Attention) -> String {
        let name = self.mask_of_heads(queries, attention);
        if sees_all(attention) {
            return name;
        }
        let repeats = self.ints(&[1, 1, group, 1]);
        self.shared("Tile", &format!("{name}/group.{group}"), &[&name, &repeats], vec![])
    }

    /// The same for heads side by side, `[batch, 1, seq, past + seq]`, also where all queries see the same keys: `Attention` of ONNX Runtime
    /// 1.32 wants a row for each.
    pub(super) fn mask_of_queries(&mut self, queries: Queries<'_>, attention: &Attention) -> String {
        let name = self.mask_of_heads(queries, attention);
        match sees_all(attention) {
            true => self.for_each_query(&format!("{name}/of_queries"), &name, queries),
            false => name,
        }
    }

    /// `keys`, `[batch, 1, 1, past + seq]`, for each query.
    pub(super) fn for_each_query(&mut self, name: &str, keys: &str, queries: Queries<'_>) -> String {
        let (one, axis) = (self.ints(&[1]), queries.axis);
        let seq = vec![("start", Value::Int(axis)), ("end", Value::Int(axis + 1))];
        let queries = self.shared("Shape", "/mask/queries_of_call", &[queries.of], seq);
        let shape = self.shared("Concat", "/mask/padding_shape", &[&one, &one, &queries, &one], vec![("axis", Value::Int(0))]);
        self.shared("Expand", name, &[keys, &shape], vec![])
    }

    /// `[batch, 1, seq, past + seq]`, or `[batch, 1, 1, past + seq]` where all queries see the same keys.
    fn mask_of_heads(&mut self, queries: Queries<'_>, attention: &Attention) -> String {
        let full = if attention.causal { "" } else { ".full" };
        let window = attention.window.map_or(String::new(), |window| format!(".{window}"));
        let name = format!("/mask{full}{window}");
        if self.made.insert(name.clone()) {
            self.mask_of_one_head(&name, queries, attention);
        }
        name
    }

    /// 0 where a query sees a key: not after it (unless attention is full), in its window, and no padding; else [`HIDDEN`].
    fn mask_of_one_head(&mut self, name: &str, queries: Queries<'_>, attention: &Attention) {
        let near = self.near(name, queries, attention);
        let axes = self.ints(&[1, 2]);
        let real = self.shared("Cast", "/mask/real", &[MASK], vec![("to", Value::Int(Element::BOOL.0.into()))]);
        let real = self.shared("Unsqueeze", "/mask/real_keys", &[&real, &axes], vec![]);
        let visible = match near {
            Some(near) => self.node("And", format!("{name}/visible"), &[&near, &real], vec![]),
            None => real,
        };
        let hidden = if self.purpose.fixed.is_some() { HIDDEN_IN_F16 } else { HIDDEN };
        let (zero, hidden) = (self.float(0.0), self.float(hidden));
        self.node("Where", name, &[&visible, &zero, &hidden], vec![]);
    }

    /// Whether a query sees a key, by their positions: `[seq, past + seq]`; nothing where it sees all.
    fn near(&mut self, name: &str, queries: Queries<'_>, attention: &Attention) -> Option<String> {
        if sees_all(attention) {
            return None;
        }
        let (at, keys) = self.positions(queries);
        let not_later = match (attention.causal, attention.window) {
            (false, Some(window)) => {
                let window = self.int(window as i64);
                let end = self.node("Add", format!("{name}/last"), &[&at, &window], vec![]);
                self.node("Less", format!("{name}/not_later"), &[&keys, &end], vec![])
            }
            _ => self.node("LessOrEqual", format!("{name}/causal"), &[&keys, &at], vec![]),
        };
        let Some(window) = attention.window else { return Some(not_later) };
        let window = self.int(window as i64);
        let end = self.node("Add", format!("{name}/end"), &[&keys, &window], vec![]);
        let in_window = self.node("Less", format!("{name}/in_window"), &[&at, &end], vec![]);
        Some(self.node("And", format!("{name}/near"), &[&not_later, &in_window], vec![]))
    }

    /// Positions of queries `[seq, 1]` and of keys `[1, past + seq]`.
    fn positions(&mut self, queries: Queries<'_>) -> (String, String) {
        let (zero, one, first, second) = (self.int(0), self.int(1), self.ints(&[0]), self.ints(&[1]));
        let length = |e: &mut Self, what: &str, Queries { of, axis }: Queries<'_>| {
            let axis = vec![("start", Value::Int(axis)), ("end", Value::Int(axis + 1))];
            let shape = e.shared("Shape", &format!("/mask/{what}_shape"), &[of], axis);
            e.shared("Squeeze", &format!("/mask/{what}"), &[&shape], vec![])
        };
        let seq = length(self, "seq", queries);
        let past = match self.caches.is_empty() {
            true => zero.clone(),
            false => length(self, "past", Queries { of: "past_key_values.0.key", axis: 2 }),
        };
        let total = self.shared("Add", "/mask/total", &[&past, &seq], vec![]);
        let at = self.shared("Range", "/mask/query", &[&past, &total, &one], vec![]);
        let at = self.shared("Unsqueeze", "/mask/queries", &[&at, &second], vec![]);
        let keys = self.shared("Range", "/mask/key", &[&zero, &total, &one], vec![]);
        let keys = self.shared("Unsqueeze", "/mask/keys", &[&keys, &first], vec![]);
        (at, keys)
    }
}

/// Whether every query sees every key.
fn sees_all(attention: &Attention) -> bool {
    !attention.causal && attention.window.is_none()
}
