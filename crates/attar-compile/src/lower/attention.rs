//! The tiles of attention: key heads, blocks of query rows, tiles of keys. Scores never leave the chip. Keys and values of a
//! head are loaded once where all of them fit, otherwise once per block of rows.

mod code;

use crate::{
    Program,
    device::Softmax,
    fixed::RUN,
    program::{Attention, Mask},
    rates::Rates,
    tile::Limits,
};

/// How attention is tiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttentionTiles {
    /// Tokens at a time.
    pub tokens: u64,
    /// Keys at a time, a multiple of [`RUN`] or all.
    pub keys: u64,
    /// Whether all keys and values of a head stay on the chip while its queries pass.
    pub resident: bool,
    /// Whether queries and output are kept on the chip.
    pub on_chip: [bool; 2],
    /// How the softmax is taken: with whole rows, all keys are one tile, and its scores are in SRAM at the same time.
    pub softmax: Softmax,
    align: u64,
}

impl AttentionTiles {
    /// The least DRAM traffic that fits, then the largest tiles.
    ///
    /// # Errors
    /// Where not even one token and one run of keys fit.
    pub fn search(
        program: &Program,
        attention: &Attention,
        on_chip: [bool; 2],
        limits: &Limits,
        softmax: Softmax,
    ) -> crate::Result<AttentionTiles> {
        let m = program.queries(attention);
        let total = attention.total(m);
        let runs = total.div_ceil(RUN);
        let make = |tokens, keys, resident| AttentionTiles { tokens, keys, resident, on_chip, softmax, align: limits.align };
        let (least, most) = match softmax {
            Softmax::Online => (1, vec![1, 2, 4, 8, 16]),
            Softmax::Whole => (runs, vec![runs]),
        };
        let mut best: Option<(u64, u64, AttentionTiles)> = None;
        for resident in [true, false] {
            for run in most.iter().copied().filter(|run| *run == least || *run <= runs) {
                let fits = |tokens: &u64| make(*tokens, run * RUN, resident).sram(program, attention) <= limits.sram;
                let Some(tokens) = largest(m, &fits) else { continue };
                // The same number of blocks with less room.
                let tokens = m.div_ceil(m.div_ceil(tokens));
                let tiles = make(tokens, run * RUN, resident);
                let key = (tiles.traffic(program, attention), u64::MAX - run * tokens.min(64));
                if best.as_ref().is_none_or(|(bytes, size, _)| key < (*bytes, *size)) {
                    best = Some((key.0, key.1, tiles));
                }
            }
        }
        let needed = || make(1, least * RUN, false).sram(program, attention);
        best.map(|(_, _, tiles)| tiles).ok_or_else(|| crate::Error::TileTooLarge { needed: needed(), sram: limits.sram })
    }

    /// DRAM bytes.
    pub fn traffic(&self, program: &Program, attention: &Attention) -> u64 {
        let m = program.queries(attention);
        let [query, out] = [(attention.query, self.on_chip[0]), (attention.out, self.on_chip[1])]
            .map(|(id, chip)| if chip { 0 } else { program.get(id).bytes() });
        let seen: u64 = match self.resident {
            true => attention.total(m) - self.first(attention),
            false => (0..m.div_ceil(self.tokens))
                .map(|block| {
                    let [first, last] = [block * self.tokens, ((block + 1) * self.tokens).min(m) - 1];
                    attention.keys(last).1 - attention.keys(first).0 / self.keys * self.keys
                })
                .sum(),
        };
        query + out + seen * program.batch * 2 * attention.key_heads * attention.head
    }

    /// Cycles of compute: tiles of products, and four operations on each score.
    pub(crate) fn work(&self, program: &Program, attention: &Attention, rates: &Rates) -> u64 {
        let (m, group, head) = (program.queries(attention), attention.group(), attention.head);
        let tile = |rows: u64, keys: u64| match keys {
            0 => 0,
            _ => rates.attend(rows, keys, head),
        };
        let block = |block: u64| {
            let [first, after] = [block * self.tokens, ((block + 1) * self.tokens).min(m)];
            let (rows, end) = ((after - first) * group, attention.keys(after - 1).1);
            let from = attention.keys(first).0 / self.keys;
            (end / self.keys).saturating_sub(from) * tile(rows, self.keys) + tile(rows, end % self.keys)
        };
        program.batch * attention.key_heads * (0..m.div_ceil(self.tokens)).map(block).sum::<u64>()
    }

    /// The first key that is loaded at all.
    fn first(&self, attention: &Attention) -> u64 {
        attention.keys(0).0 / self.keys * self.keys
    }

    /// The most tiles of keys that all rows of a run see between them, at any position: a window may begin anywhere in a tile.
    fn held(&self, program: &Program, attention: &Attention) -> u64 {
        let rows = program.queries(attention);
        let all = attention.total(rows).div_ceil(self.keys);
        match attention.mask {
            Mask::Window(window) => all.min((window.saturating_add(rows) - 2).div_ceil(self.keys) + 1),
            Mask::Causal | Mask::Past => all,
        }
    }

    fn sram(&self, program: &Program, attention: &Attention) -> u64 {
        let slot = |bytes: u64| bytes.next_multiple_of(self.align);
        let [group, head] = [attention.group(), attention.head];
        let rows = self.tokens * group;
        let [query, out] = [(attention.query, self.on_chip[0]), (attention.out, self.on_chip[1])]
            .map(|(id, chip)| if chip { 0 } else { 2 * slot(program.get(id).element.bytes(rows * head)) });
        let total = attention.total(program.queries(attention));
        let tile = slot(self.keys.min(total) * head);
        let states = match self.resident {
            true => 2 * self.held(program, attention) * tile,
            false => 4 * tile,
        };
        query + out + states + slot(4 * rows * head) + slot(8 * rows) + slot(self.scores(rows))
    }

    /// Bytes of the logits and weights that are there at a time: of one run of keys, or of all.
    fn scores(&self, rows: u64) -> u64 {
        5 * rows * if self.softmax == Softmax::Whole { self.keys } else { RUN }
    }
}

/// The largest number up to `top` that fits, if any does; what fits is a prefix.
fn largest(top: u64, fits: &dyn Fn(&u64) -> bool) -> Option<u64> {
    let (mut low, mut high) = (0, top);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(&middle) { low = middle } else { high = middle - 1 }
    }
    (low > 0).then_some(low)
}
