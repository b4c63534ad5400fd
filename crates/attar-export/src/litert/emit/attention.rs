//! Attention, its mask, and its caches, which a call takes and returns.

use attar_graph::{Node, Op, ValueId, op::Attention};

use super::{Element, Emission, Field};
use crate::{
    Result,
    litert::schema::{ADD, BATCH_MATMUL, CAST, DYNAMIC_UPDATE_SLICE, LESS, MINIMUM, MUL, SELECT, SOFTMAX, SUB},
};

/// What the runtime puts where a query does not see a key.
const HIDDEN: f32 = -0.7 * f32::MAX;

/// The cache with keys or values of this call at their positions: keys are `[1, heads, cache, head]`, values `[1, heads, head, cache]`, as the
/// runtime's own models have them.
pub(super) fn cache(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Some((layer, role)) = e.model.caches.get(&node.output()).copied() else {
        return Err(e.refuse(node, "read by no attention", "caches that are an attention's key or value"));
    };
    let mut new = e.value(node.inputs[0]);
    let letter = if role == "key" { "k" } else { "v" };
    if role == "value" {
        new = e.transpose(format!("{name}/new"), new, &[0, 1, 3, 2]);
    }
    let (past, at) = (e.made[&format!("kv_cache_{letter}_{layer}")], e.start(role));
    let dims = e.dims(past);
    Ok(e.op(name, DYNAMIC_UPDATE_SLICE, &[past, new, at], vec![], &dims))
}

/// The query heads that share a key head are rows of one product.
pub(super) fn attention(e: &mut Emission<'_>, node: &Node, name: &str) -> Result<i32> {
    let Op::Attention(attention) = &node.op else { unreachable!("the table is right") };
    let cached = !e.model.caches.is_empty();
    if attention.causal != cached || (!cached && attention.window.is_some()) {
        return Err(e.refuse(node, "of another kind", "causal attention over a cache, or full attention without one"));
    }
    let [heads, head] = [1, 3].map(|axis| e.constant_dim(node.inputs[0], axis));
    let key_heads = e.constant_dim(node.inputs[1], 1);
    let [mut q, k, mut v] = [0, 1, 2].map(|i| e.value(node.inputs[i]));
    let (tokens, group) = (e.call.tokens, heads / key_heads);
    let keys = if cached { e.call.cache } else { tokens };
    if !cached {
        v = e.transpose(format!("{name}/values"), v, &[0, 1, 3, 2]);
    }
    if attention.scale != 1.0 {
        let scale = e.float(attention.scale as f32);
        q = e.binary(MUL, format!("{name}/scaled"), q, scale);
    }
    let queries = e.reshape(format!("{name}/queries"), q, &[1, key_heads, group * tokens, head]);
    let mut scores = e.product(format!("{name}/scores"), queries, k, keys);
    if let Some(cap) = attention.softcap {
        scores = e.cap(&format!("{name}/capped"), scores, cap);
    }
    let apart = e.reshape(format!("{name}/apart"), scores, &[key_heads, group, tokens, keys]);
    let mask = if cached { e.mask(attention) } else { e.padding() };
    let seen = e.binary(ADD, format!("{name}/seen"), apart, mask);
    let dims = e.dims(seen);
    let shares = e.op(format!("{name}/shares"), SOFTMAX, &[seen], vec![(0, Field::F32(1.0))], &dims);
    let together = e.reshape(format!("{name}/together"), shares, &[1, key_heads, group * tokens, keys]);
    let mixed = e.product(format!("{name}/mixed"), together, v, head);
    Ok(e.reshape(name, mixed, &[1, heads, tokens, head]))
}

impl Emission<'_> {
    pub(super) fn cache_dims(&self, cache: ValueId) -> [usize; 4] {
        let [heads, head] = [1, 3].map(|axis| self.constant_dim(cache, axis));
        match self.model.caches[&cache].1 {
            "key" => [1, heads, self.call.cache, head],
            _ => [1, heads, head, self.call.cache],
        }
    }

    /// Where this call's keys or values begin in a cache.
    fn start(&mut self, role: &str) -> i32 {
        self.shared(&format!("start/{role}"), |e, name| {
            let (given, none) = (e.made["input_pos"], |count| vec![0; count]);
            let first = e.part(format!("{name}/first"), given, 0, 1);
            let parts = match role {
                "key" => [e.ints(&none(2)), first, e.ints(&none(1))].to_vec(),
                _ => [e.ints(&none(3)), first].to_vec(),
            };
            e.join(name, &parts)
        })
    }

    /// Rows of `a` times rows of `b`, of which there are `width`.
    fn product(&mut self, name: String, a: i32, b: i32, width: usize) -> i32 {
        let mut dims = self.dims(a);
        dims[3] = width;
        let options = vec![(0, Field::Bool(false)), (1, Field::Bool(true)), (2, Field::Bool(false))];
        self.op(name, BATCH_MATMUL, &[a, b], options, &dims)
    }

    /// Which tokens of a text are no padding, as 1 and 0, `[1, tokens]`.
    pub(super) fn real(&mut self) -> i32 {
        self.shared("mask/real", |e, name| {
            let codes = [Element::I32, Element::F32].map(|element| Field::I8(element.0));
            let (given, tokens) = (e.made["attention_mask"], e.call.tokens);
            e.op(name, CAST, &[given], vec![(0, codes[0]), (1, codes[1])], &[1, tokens])
        })
    }

    /// What is added to scores of a text, `[1, 1, 1, tokens]`.
    fn padding(&mut self) -> i32 {
        self.shared("mask/padding", |e, name| {
            let (real, one, hidden) = (e.real(), e.float(1.0), e.float(HIDDEN));
            let absent = e.binary(SUB, "mask/absent", one, real);
            let scores = e.binary(MUL, "mask/scores", absent, hidden);
            let tokens = e.call.tokens;
            e.reshape(name, scores, &[1, 1, 1, tokens])
        })
    }

    /// What is added to scores, `[1, 1, tokens, cache]`: what the runtime gives, and what a window hides.
    fn mask(&mut self, attention: &Attention) -> i32 {
        let given = self.made["mask"];
        let Some(window) = attention.window else { return given };
        self.shared(&format!("mask.{window}"), |e, name| {
            let (cache, positions, window) = (e.call.cache, e.positions(), e.float(window as f32));
            let places: Vec<f32> = (0..cache).map(|at| at as f32).collect();
            let keys = e.floats("mask/keys", &[1, 1, 1, cache], &places);
            let before = e.binary(SUB, format!("{name}/before"), positions, window);
            let dims = [1, 1, e.call.tokens, cache];
            let near = e.op_of(format!("{name}/near"), LESS, &[before, keys], vec![], &dims, Element::BOOL);
            let (zero, hidden) = (e.float(0.0), e.float(HIDDEN));
            let far = e.op(format!("{name}/far"), SELECT, &[near, zero, hidden], vec![], &dims);
            // Two that hide would add up to infinity.
            e.binary(MINIMUM, name, given, far)
        })
    }
}
