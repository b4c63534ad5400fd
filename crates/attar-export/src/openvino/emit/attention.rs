//! Attention, its mask, and its caches as variables.

use attar_graph::{Node, Op, op::Attention};

use super::{Element, Emission, Out, constant};
use crate::Result;

/// What a hidden score is: the least f16, in which NPUs compute.
const HIDDEN: f32 = -65504.0;

/// Keys or values of earlier calls, rows of the batch as `beam_idx` says, followed by those of this one.
pub(super) fn cache(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Some((layer, role)) = e.caches.get(&node.output()).copied() else {
        return Err(e.refuse(node, "read by no attention", "caches that are an attention's key or value"));
    };
    let dims = e.graph.fact(node.output()).dims.clone();
    let [heads, head] = [&dims[1], &dims[3]].map(constant);
    // Two names in one, as Intel's pipelines know them.
    let id = format!("past_key_values.{layer}.{role}present.{layer}.{role}");
    let nothing = e.shared(&format!("nothing/{heads}/{head}"), |e, name| {
        let (batch, heads, none, head, zero) =
            (e.size("input_ids", 0), e.ints(&[heads]), e.ints(&[0]), e.ints(&[head]), e.float(0.0));
        let shape = e.join(format!("{name}/shape"), &[batch, heads, none, head], 0);
        e.layer(name, ("Broadcast", 3), vec![("mode", "numpy".into())], &[zero, shape])
    });
    let data =
        vec![("variable_id", id.clone()), ("variable_type", "f32".to_owned()), ("variable_shape", format!("?,{heads},?,{head}"))];
    let read = e.layer(format!("{name}/read"), ("ReadValue", 6), data, &[nothing]);
    let beams = e.inputs["beam_idx"];
    let past = e.gather(format!("{name}/past"), read, beams, 0);
    if (layer, role) == (0, "key") {
        e.past = Some(past);
    }
    let new = e.value(node.inputs[0]);
    let all = e.join(name, &[past, new], 2);
    e.layer(format!("{name}/assign"), ("Assign", 6), vec![("variable_id", id)], &[all]);
    Ok(all)
}

pub(super) fn attention(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<Out> {
    let Op::Attention(attention) = &node.op else { unreachable!("the table is right") };
    let dims = [0, 1].map(|i| e.graph.fact(node.inputs[i]).dims.clone());
    let [heads, key_heads, head] = [&dims[0][1], &dims[1][1], &dims[0][3]].map(constant);
    let [q, k, v] = [0, 1, 2].map(|i| e.value(node.inputs[i]));
    let [k, v] =
        [(k, "keys"), (v, "values")].map(|(of, what)| e.for_all_heads(&format!("{name}/{what}"), of, [heads, key_heads, head]));
    let mask = e.mask(attention);
    let usual = 1.0 / (head as f64).sqrt();
    if attention.softcap.is_none() {
        let mut inputs = vec![q, k, v, mask];
        inputs.extend(((attention.scale - usual).abs() > 1e-9 * usual).then(|| e.float(attention.scale as f32)));
        return Ok(e.layer(name, ("ScaledDotProductAttention", 13), vec![("causal", "false".into())], &inputs));
    }
    let product = |transposed: bool| vec![("transpose_a", "false".to_owned()), ("transpose_b", transposed.to_string())];
    let scores = e.layer(format!("{name}/products"), ("MatMul", 1), product(true), &[q, k]);
    let scale = e.float(attention.scale as f32);
    let mut scores = e.binary("Multiply", format!("{name}/scores"), scores, scale);
    if let Some(cap) = attention.softcap {
        scores = e.cap(&format!("{name}/capped"), scores, cap);
    }
    let seen = e.binary("Add", format!("{name}/seen"), scores, mask);
    let shares = e.layer(format!("{name}/shares"), ("SoftMax", 8), vec![("axis", "-1".into())], &[seen]);
    Ok(e.layer(name, ("MatMul", 1), product(false), &[shares, v]))
}

impl Emission<'_> {
    /// Keys or values, repeated for the query heads that each serves.
    fn for_all_heads(&mut self, name: &str, of: Out, [heads, key_heads, head]: [i64; 3]) -> Out {
        if heads == key_heads {
            return of;
        }
        let repeats = self.ints(&[1, 1, heads / key_heads, 1, 1]);
        let one = self.unsqueeze(format!("{name}/one"), of, &[2]);
        let each = self.layer(format!("{name}/each"), ("Broadcast", 3), vec![("mode", "bidirectional".into())], &[one, repeats]);
        self.reshape(name, each, &[0, heads, -1, head], true)
    }

    /// A dimension of an input, `[1]`.
    fn size(&mut self, input: &'static str, axis: i64) -> Out {
        let of = self.inputs[input];
        self.dimension(&format!("{input}/shape"), of, axis)
    }

    fn dimension(&mut self, name: &str, of: Out, axis: i64) -> Out {
        self.shared(&format!("{name}/{axis}"), |e, sized| {
            let shape = e.shared(name, |e, name| {
                e.layer_of(name, ("ShapeOf", 3), vec![("output_type", "i64".into())], &[of], Element::I64)
            });
            let at = e.ints(&[axis]);
            e.gather(sized, shape, at, 0)
        })
    }

    /// `0..length` as i64.
    fn range(&mut self, name: &str, length: Out) -> Out {
        let (axis, zero, one) = (self.ints(&[0]), self.int(0), self.int(1));
        let end = self.layer_of(format!("{name}/end"), ("Squeeze", 1), vec![], &[length, axis], Element::I64);
        self.layer_of(name, ("Range", 4), vec![("output_type", "i64".into())], &[zero, end, one], Element::I64)
    }

    /// What is added to scores, `[batch, 1, seq, past + seq]`, once for each way to see: 0 where a query sees a key, that is not after it (unless
    /// attention is full), in its window, and no padding. Where all queries see the same keys it is `[batch, 1, 1, past + seq]`.
    fn mask(&mut self, attention: &Attention) -> Out {
        let full = if attention.causal { "" } else { ".full" };
        let window = attention.window.map_or(String::new(), |window| format!(".{window}"));
        self.shared(&format!("mask{full}{window}"), |e, name| {
            let mut visible = e.real();
            if attention.causal {
                let (keys, queries) = (e.keys(), e.queries());
                let earlier = e.logical("LessEqual", format!("{name}/causal"), keys, queries);
                visible = e.logical("LogicalAnd", format!("{name}/earlier"), visible, earlier);
            }
            if let Some(window) = attention.window {
                let (keys, queries, window) = (e.keys(), e.queries(), e.int(window as i64));
                let before = e.binary("Subtract", format!("{name}/before"), queries, window);
                let near = e.logical("Less", format!("{name}/near"), before, keys);
                visible = e.logical("LogicalAnd", format!("{name}/window"), visible, near);
                if !attention.causal {
                    let end = e.binary("Add", format!("{name}/end"), queries, window);
                    let near = e.logical("Less", format!("{name}/not_later"), keys, end);
                    visible = e.logical("LogicalAnd", format!("{name}/both"), visible, near);
                }
            }
            let (zero, hidden) = (e.float(0.0), e.float(HIDDEN));
            let stretch = vec![("auto_broadcast", "numpy".to_owned())];
            let mask = e.layer(format!("{name}/scores"), ("Select", 1), stretch, &[visible, zero, hidden]);
            e.unsqueeze(name, mask, &[1])
        })
    }

    fn logical(&mut self, kind: &'static str, name: String, a: Out, b: Out) -> Out {
        self.layer_of(name, (kind, 1), vec![("auto_broadcast", "numpy".to_owned())], &[a, b], Element::BOOL)
    }

    /// Places of keys, `[1, 1, past + seq]`.
    fn keys(&mut self) -> Out {
        self.shared("mask/keys", |e, name| {
            let total = e.size("attention_mask", 1);
            let range = e.range("mask/key", total);
            e.unsqueeze(name, range, &[0, 1])
        })
    }

    /// Places of queries, `[1, seq, 1]`: behind what the cache holds.
    fn queries(&mut self) -> Out {
        self.shared("mask/queries", |e, name| {
            let seq = e.size("input_ids", 1);
            let mut at = e.range("mask/query", seq);
            if let Some(past) = e.past {
                let past = e.dimension("past/shape", past, 2);
                at = e.binary("Add", "mask/query/at", at, past);
            }
            e.unsqueeze(name, at, &[0, 2])
        })
    }

    /// Which keys are no padding, `[batch, 1, past + seq]`.
    fn real(&mut self) -> Out {
        self.shared("mask/real", |e, name| {
            let given = e.inputs["attention_mask"];
            let real = e.convert("mask/given", given, Element::BOOL);
            e.unsqueeze(name, real, &[1])
        })
    }
}
