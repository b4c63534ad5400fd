//! What a decoder block moves when every op runs by itself and hands its result on through DRAM: what fusing and keeping are
//! measured against.
//!
//! Each product has its best tiling, each other op reads its inputs and writes its output once. Numbers take the bits that
//! [`crate::program`] defines, so that the result would be the same: int16 before the rotary turn and before the residual is
//! added, as in the residual stream; int8 elsewhere. As in [`crate::chain`], gate, up and scores count as int8 although exact
//! ones need more, and nothing is skipped under a causal mask: all scores are written, read by the softmax, written, and read
//! again.

use crate::{
    Element, Result,
    chain::{Chain, Plans},
    program::Column,
    schedule::Target,
    shapes::Decoder,
    tile::{Limits, Objective, Product, search},
};

/// DRAM bytes of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apart {
    /// Both norms.
    pub norms: u64,
    /// Query, key, value and output, each with its rescalings.
    pub products: u64,
    /// Turning queries and keys.
    pub rotary: u64,
    /// Scores, softmax, values, over all heads.
    pub attention: u64,
    /// Gate, up, SwiGLU, down, with rescalings.
    pub mlp: u64,
    /// Both residual additions.
    pub adds: u64,
}

impl Apart {
    /// A block of `decoder` for `rows` tokens behind `past`, on `target`.
    ///
    /// # Errors
    /// Where not even the smallest tile of an op fits.
    pub fn of(decoder: &Decoder, rows: u64, past: u64, target: &Target) -> Result<Apart> {
        let Decoder { width, inner, heads, key_heads, head, weight, .. } = *decoder;
        let [_, depth, columns] = target.rates.tile.array;
        let limits = target.limits(target.sram);
        let product = |k: u64, n: u64, c: Element| -> Result<u64> {
            let product = Product { c, ..Product::new(rows, k, n, Element::INT8, weight).aligned([1, depth, columns]) };
            Ok(search(&product, &limits, &Objective::BYTES)?.dram.total() + Column::ELEMENT.bytes(n))
        };
        let [narrow, wide] = [Element::INT8, Element::INT16];
        let [queries, states] = [heads * head, key_heads * head];
        let stream = Element::INT16.bytes(rows * width);
        let table = Element::INT16.bytes(rows * head);
        Ok(Apart {
            norms: 2 * (stream + rows * width + Element::INT32.bytes(width)),
            products: product(width, queries, wide)?
                + product(width, states, wide)?
                + product(width, states, narrow)?
                + product(queries, width, wide)?,
            rotary: 3 * rows * (queries + states) + table,
            attention: key_heads * attention(decoder, rows, past, target)?.1.apart.dram(),
            mlp: mlp(decoder, rows, target)?.1.apart.dram() + Column::ELEMENT.bytes(2 * inner + width),
            adds: 2 * 3 * stream,
        })
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.norms + self.products + self.rotary + self.attention + self.mlp + self.adds
    }
}

/// The MLP of a block as a chain, and its best plans by bytes.
///
/// # Errors
/// Where it does not even fit apart.
pub fn mlp(decoder: &Decoder, rows: u64, target: &Target) -> Result<(Chain, Plans)> {
    plans(Chain::mlp(rows, decoder.width, decoder.inner, decoder.weight), target)
}

/// The attention of one key head of a block as a chain, and its best plans by bytes.
///
/// # Errors
/// Where it does not even fit apart.
pub fn attention(decoder: &Decoder, rows: u64, past: u64, target: &Target) -> Result<(Chain, Plans)> {
    plans(Chain::attention(rows * decoder.heads / decoder.key_heads, past + rows, decoder.head), target)
}

fn plans(chain: Chain, target: &Target) -> Result<(Chain, Plans)> {
    let chain = chain.aligned([1, target.rates.tile.array[2]]);
    let limits: Limits = target.limits(target.sram);
    Ok((chain, chain.plans(&limits, &Objective::BYTES)?))
}
