//! Attention and its rotary embedding as the operators that the ONNX standard has for them: `Attention` of opset 24 and `RotaryEmbedding` of
//! opset 23.
//!
//! `Attention` is told by its mask what each query sees: the causal order, windows and padding, in one tensor that layers share. Its attribute
//! `is_causal` stays unset: the mask says the same, and says it once.

use attar_graph::{
    Node, ValueId,
    op::{Attention, Rope},
};

use super::{
    Attributes, Emission, Value,
    attention::Queries,
    fused::{GroupQuery, Side},
};

impl Emission<'_> {
    /// An attention with its cache and all between the products and `merge`; queries, keys and values are `[batch, seq, heads * head]`.
    pub(super) fn standard_attention(&mut self, merge: &Node, group: &GroupQuery) {
        let [heads, key_heads] = group.heads;
        let (query, key) = (self.rotated(&group.query, group, heads), self.rotated(&group.key, group, key_heads));
        let value = self.value(group.value);
        let mask = self.mask_of_queries(Queries { of: &query, axis: 1 }, &group.attention);
        let name = self.named(merge.output());
        let cache = |when: &str, layer: usize| ["key", "value"].map(|role| format!("{when}.{layer}.{role}"));
        let (mut inputs, mut outputs) = (vec![query, key, value, mask], vec![name]);
        if let Some(layer) = group.layer {
            inputs.extend(cache("past_key_values", layer));
            outputs.extend(cache("present", layer));
            self.name_caches(layer);
        }
        let attributes = vec![("kv_num_heads", Value::Int(key_heads)), ("q_num_heads", Value::Int(heads))];
        self.attend(&outputs, &inputs, &group.attention, attributes);
    }

    /// One `Attention`. Its heads are `attributes` where its inputs have no axis for them.
    pub(super) fn attend(&mut self, outputs: &[String], inputs: &[String], attention: &Attention, mut attributes: Attributes) {
        attributes.push(("scale", Value::Float(attention.scale as f32)));
        let [outputs, inputs] = [outputs, inputs].map(|names| names.iter().map(String::as_str).collect::<Vec<_>>());
        self.node_with("", "Attention", &outputs, &inputs, attributes);
    }

    /// Query or key, normalized and rotated.
    fn rotated(&mut self, side: &Side, group: &GroupQuery, heads: i64) -> String {
        let x = self.normalized(side, group.head);
        let Some((rope, positions)) = &side.rope else { return x };
        let name = self.graph.get(side.last).name.clone();
        let mut attributes = vec![("num_heads", Value::Int(heads))];
        attributes.extend(side.part.map(|part| ("rotary_embedding_dim", Value::Int(part as i64))));
        self.rotate(&name, &x, (rope, *positions), side.part.unwrap_or(group.head as usize), attributes)
    }

    /// One `RotaryEmbedding` of `width` columns of each head. The number of heads is in `attributes` where `x` has no axis for them.
    pub(super) fn rotate(
        &mut self,
        name: &str,
        x: &str,
        (rope, positions): (&Rope, ValueId),
        width: usize,
        attributes: Attributes,
    ) -> String {
        let positions = self.value(positions);
        let angles = self.angles(rope, width, &positions);
        self.node("RotaryEmbedding", name, &[x, &format!("{angles}/cos"), &format!("{angles}/sin")], attributes)
    }
}
