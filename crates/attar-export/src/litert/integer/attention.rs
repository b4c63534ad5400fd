//! The parts of attention, its mask, and its caches: a call takes the past of keys and values, and returns what is new.

use attar_graph::{Node, Op};

use super::{Emission, Field, Grid, ops::named};
use crate::{
    Result,
    litert::schema::{ADD_16, BATCH_MATMUL_CODES, Element, QUANTIZE, REDUCE_MAX_16, SOFTMAX_8, SOFTMAX_16, SUB_16, Scales},
};

/// Keys or values of earlier tokens, `[1, heads, cache, head]`, with those of this call behind.
pub(super) fn cache(e: &mut Emission<'_>, node: &Node, name: &str, _: Option<Grid>) -> Result<i32> {
    let Some((layer, role)) = e.model.caches.get(&node.output()).copied() else {
        return Err(e.refuse(node, "read by no attention", "caches that are an attention's key or value"));
    };
    let (new, cache) = (e.value(node, 0)?, e.call.cache);
    let (letter, mut dims, scales) = (if role == "key" { "k" } else { "v" }, e.dims(new), e.get(new).scales.clone());
    dims[2] = cache;
    let element = e.get(new).element;
    let past = e.input(&format!("kv_cache_{letter}_{layer}"), element, &dims);
    e.scale(past, scales);
    e.slices.push((format!("kv_slice_{letter}_{layer}"), new));
    Ok(e.join_along(name, &[past, new], 2))
}

/// The query heads that share a key head are rows of one product. It is not scaled: the softmax does that.
pub(super) fn scores(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let Op::Scores { scale } = node.op else { unreachable!("the table is right") };
    let (q, k, grid, scale) = (e.value(node, 0)?, e.value(node, 1)?, e.wanted(node, grid)?, scale as f32);
    let ([_, heads, tokens, head], [_, key_heads, keys, _]) = (e.four(q), e.four(k));
    let rows = e.reshape(format!("{name}/queries"), q, &[1, key_heads, heads / key_heads * tokens, head]);
    let unscaled = Grid { scale: grid.scale / scale, ..grid };
    let products = e.products(node, format!("{name}/products"), [rows, k], true, unscaled)?;
    let apart = e.reshape(name, products, &[1, heads, tokens, keys]);
    e.factors.insert(apart, scale);
    Ok(apart)
}

/// Of int8, the largest score is taken away before the codes have 8 bits again: what the mask hides is as far below it as codes reach.
pub(super) fn softmax(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let Op::Softmax { window, causal } = node.op else { unreachable!("the table is right") };
    let (x, grid) = (e.value(node, 0)?, e.wanted(node, grid)?);
    if causal == e.model.caches.is_empty() || (!causal && window.is_some()) {
        return Err(e.refuse(node, "of another kind", "causal attention over a cache, or full attention without one"));
    }
    let (dims, beta, from) = (e.dims(x), e.factors.get(&x).copied().unwrap_or(1.0), e.grid(x));
    let mask = e.mask(window, dims[3]);
    let options = vec![(0, Field::F32(beta))];
    if from.bits > 8 {
        let seen = e.pair(ADD_16, format!("{name}/seen"), x, mask, Grid::wide(2.0 * from.scale));
        let shares = e.codes(named(name, "shares", grid), SOFTMAX_16, &[seen], options, &dims, Grid::wide(1.0 / 32768.0));
        return Ok(e.to(name, shares, grid));
    }
    // Codes of 16 bits in steps of the scores: all of this is exact.
    let steps = Grid::wide(from.scale);
    let all = e.codes(format!("{name}/steps"), QUANTIZE, &[x], vec![], &dims, steps);
    let seen = e.pair(ADD_16, format!("{name}/seen"), all, mask, steps);
    let (axis, mut one) = (e.ints(&[3]), dims.clone());
    one[3] = 1;
    let most = e.codes(format!("{name}/most"), REDUCE_MAX_16, &[seen, axis], vec![(0, Field::Bool(true))], &one, steps);
    let below = e.pair(SUB_16, format!("{name}/below"), seen, most, steps);
    let bytes = e.to(format!("{name}/bytes"), below, Grid { bits: 8, scale: from.scale, zero: 127 });
    let usual = Grid { bits: 8, scale: 1.0 / 256.0, zero: -128 };
    let made = if usual == grid { name.to_owned() } else { format!("{name}/shares") };
    let shares = e.codes(made, SOFTMAX_8, &[bytes], options, &dims, usual);
    Ok(e.to(name, shares, grid))
}

pub(super) fn mix(e: &mut Emission<'_>, node: &Node, name: &str, grid: Option<Grid>) -> Result<i32> {
    let (shares, v, grid) = (e.value(node, 0)?, e.value(node, 1)?, e.wanted(node, grid)?);
    let ([_, heads, tokens, keys], [_, key_heads, _, head]) = (e.four(shares), e.four(v));
    let rows = e.reshape(format!("{name}/together"), shares, &[1, key_heads, heads / key_heads * tokens, keys]);
    let mixed = e.products(node, format!("{name}/products"), [rows, v], false, grid)?;
    Ok(e.reshape(name, mixed, &[1, heads, tokens, head]))
}

impl Emission<'_> {
    fn four(&self, tensor: i32) -> [usize; 4] {
        self.dims(tensor).try_into().expect("what attention reads has four dimensions: checked by the graph")
    }

    /// Rows of `a` times columns of `b`, or its rows.
    fn products(&mut self, node: &Node, name: String, [a, b]: [i32; 2], by_rows: bool, grid: Grid) -> Result<i32> {
        if [a, b].iter().any(|operand| self.grid(*operand).bits != grid.bits) {
            return Err(self.refuse(node, "operands of 8 and of 16 bits", "operands and results of one width"));
        }
        let (mut dims, other) = (self.dims(a), self.dims(b));
        dims[3] = if by_rows { other[2] } else { other[3] };
        let options = vec![(0, Field::Bool(false)), (1, Field::Bool(by_rows)), (2, Field::Bool(false))];
        Ok(self.codes(name, BATCH_MATMUL_CODES, &[a, b], options, &dims, grid))
    }

    /// What is added to scores, from the caller: 0, or the least code. Of a decoder `[1, 1, tokens, cache + tokens]`, of a text `[1, 1, 1, tokens]`. A
    /// step of it is so large that codes of any scores end far above.
    fn mask(&mut self, window: Option<usize>, keys: usize) -> i32 {
        let name = window.map_or("mask".to_owned(), |window| format!("mask_{window}"));
        if let Some(made) = self.made.get(&name) {
            return *made;
        }
        let rows = if self.model.caches.is_empty() { 1 } else { self.call.tokens };
        let made = self.input(&name, Element::I16, &[1, 1, rows, keys]);
        let scale = self.model.largest_score() / 64.0;
        self.scale(made, Some(Scales::One(Grid::wide(scale))));
        made
    }

    /// How much each token of a text counts in the mean of all, from the caller, `[1, tokens, 1]`.
    pub(super) fn counts(&mut self) -> i32 {
        if let Some(made) = self.made.get("pooling") {
            return *made;
        }
        let tokens = self.call.tokens;
        let made = self.input("pooling", Element::I16, &[1, tokens, 1]);
        self.scale(made, Some(Scales::One(Grid::wide(tokens as f32 / 32767.0))));
        made
    }
}

impl super::Model<'_> {
    /// The largest step of unscaled scores that a softmax reads.
    fn largest_score(&self) -> f32 {
        let steps = self.graph.nodes().iter().filter_map(|node| {
            let Op::Softmax { .. } = node.op else { return None };
            let grid = self.grid_read(node, 0).ok()?;
            let scale = match self.graph.maker(node.inputs[0]).and_then(|rounding| self.graph.maker(rounding.inputs[0]))?.op {
                Op::Scores { scale } => scale as f32,
                _ => 1.0,
            };
            Some(grid.scale / scale * if grid.bits > 8 { 128.0 } else { 1.0 })
        });
        steps.fold(f32::MIN_POSITIVE * 1e6, f32::max)
    }
}
