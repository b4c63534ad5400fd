//! What a decoder block moves when every op runs alone and passes its result on through DRAM: the baseline for fusing and
//! for keeping tensors on the chip.
//!
//! Each product has its best tiling; each other op reads its inputs and writes its output once. Values have the widths that
//! [`attar_compile::program`] defines, so that the result would be the same: int16 before the rotary embedding and before the
//! residual is added, as in the residual stream; int8 elsewhere. As in [`crate::chain`], gate, up and scores count as int8 although exact
//! ones need more, and nothing is skipped under a causal mask: all scores are written, read by the softmax, written, and read
//! again.

use attar_compile::{
    Element, Result,
    program::Column,
    schedule::Target,
    tile::{Limits, Objective, Product, search},
};

use crate::{
    chain::{Chain, ChainPlans},
    shapes::Decoder,
};

/// DRAM bytes of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Apart {
    /// Both norms.
    pub(crate) norms: u64,
    /// Query, key, value and output, each with its rescalings.
    pub(crate) products: u64,
    /// Rotary embedding of queries and keys.
    pub(crate) rotary: u64,
    /// Scores, softmax, values, over all heads.
    pub(crate) attention: u64,
    /// Gate, up, SwiGLU, down, with rescalings.
    pub(crate) mlp: u64,
    /// Both residual additions.
    pub(crate) adds: u64,
}

impl Apart {
    /// A block of `decoder` for `rows` tokens after `past` others, on `target`.
    ///
    /// # Errors
    /// Where not even the smallest tile of an op fits.
    pub(crate) fn of(decoder: &Decoder, rows: u64, past: u64, target: &Target) -> Result<Apart> {
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
    pub(crate) fn total(&self) -> u64 {
        self.norms + self.products + self.rotary + self.attention + self.mlp + self.adds
    }
}

/// The MLP of a block as a chain, and its best plans by bytes.
///
/// # Errors
/// Where it does not even fit apart.
pub(crate) fn mlp(decoder: &Decoder, rows: u64, target: &Target) -> Result<(Chain, ChainPlans)> {
    plans(Chain::mlp(rows, decoder.width, decoder.inner, decoder.weight), target)
}

/// The attention of one key head of a block as a chain, and its best plans by bytes.
///
/// # Errors
/// Where it does not even fit apart.
pub(crate) fn attention(decoder: &Decoder, rows: u64, past: u64, target: &Target) -> Result<(Chain, ChainPlans)> {
    plans(Chain::attention(rows * decoder.heads / decoder.key_heads, past + rows, decoder.head), target)
}

fn plans(chain: Chain, target: &Target) -> Result<(Chain, ChainPlans)> {
    let chain = chain.aligned([1, target.rates.tile.array[2]]);
    let limits: Limits = target.limits(target.sram);
    Ok((chain, chain.plans(&limits, &Objective::BYTES)?))
}

#[cfg(test)]
mod tests {
    use attar_compile::{
        program::Kernel,
        schedule::{Freedom, Goal, Schedule, schedule},
        tile::Objective,
    };

    use super::{Apart, attention, mlp};
    use crate::{
        models::{BITS, MODELS, SRAM, TOKENS, generic, rule},
        shapes::Decoder,
    };

    fn dram(schedule: &Schedule) -> u64 {
        schedule.choices.iter().map(|choice| choice.dram).sum()
    }

    /// Model, tokens, SRAM bytes and weight bits of every row of the table.
    fn table() -> Vec<(&'static str, Decoder, u64, u64, u32)> {
        let mut rows = Vec::new();
        for model in &MODELS {
            for (tokens, sram, bits) in
                TOKENS.into_iter().flat_map(|t| SRAM.into_iter().flat_map(move |s| BITS.map(|b| (t, s, b))))
            {
                rows.push((model.name, model.with(bits), tokens, sram, bits));
            }
        }
        rows
    }

    #[test]
    fn no_block_is_worse_than_op_by_op() {
        for (name, decoder, tokens, sram, bits) in table() {
            let target = generic(sram, bits).unwrap();
            let program = decoder.program(tokens, 0).unwrap();
            let chosen = dram(&schedule(&program, &target, Goal::Dram, Freedom::ALL, name).unwrap());
            let apart = Apart::of(&decoder, tokens, 0, &target).unwrap().total() * decoder.blocks;
            let case = format!("{name} w{bits}, {tokens} tokens, {sram} bytes; {}", rule(&target));
            assert!(chosen <= apart, "{case}: {chosen} {apart}");
            if name == "SmolLM2-135M" && sram == 2 << 20 {
                assert!(2 * chosen <= apart, "{case}: {chosen} of {apart}");
            }
        }
    }

    #[test]
    fn chosen_chains_are_never_worse_than_apart() {
        for (name, decoder, tokens, sram, bits) in table() {
            let target = generic(sram, bits).unwrap();
            let limits = target.limits(sram);
            let chains = [mlp(&decoder, tokens, &target).unwrap(), attention(&decoder, tokens, 0, &target).unwrap()];
            for (chain, plans) in chains {
                let best = plans.best(&chain, &limits, &Objective::BYTES);
                assert!(best.dram() <= plans.apart.dram() && best.sram() <= sram, "{name} w{bits} {tokens} {sram}");
            }
        }
    }

    #[test]
    fn scheduled_attention_moves_a_thirteenth_at_512_tokens() {
        for (name, decoder, _, sram, bits) in
            table().into_iter().filter(|(name, _, tokens, ..)| *tokens == 512 && *name != "Llama-2-7B")
        {
            let target = generic(sram, bits).unwrap();
            let decoder = Decoder { blocks: 1, ..decoder };
            let program = decoder.program(512, 0).unwrap();
            let freedom = Freedom { keep: false, ..Freedom::ALL };
            let schedule = schedule(&program, &target, Goal::Dram, freedom, name).unwrap();
            let attention = schedule.choices.iter().find(|choice| matches!(choice.kernel, Kernel::Attention(_))).unwrap().dram;
            let apart = Apart::of(&decoder, 512, 0, &target).unwrap().attention;
            assert!(apart >= 13 * attention, "{name} {sram}: {attention} of {apart}; {}", rule(&target));
        }
    }
}
