//! Fused chains against loops written out by hand, brute force, and a table of an earlier prototype.

use attar_compile::{
    Element,
    tile::{Buffering, Limits, Objective, Rates},
};
use proptest::prelude::*;

use super::{Chain, ChainPlan, FusedChain};

/// Bytes loaded and stored by the loops of `Fused`, and the largest thing of each kind held.
fn by_hand(chain: &Chain, [tm, tf]: [u64; 2], kept: u64) -> (u64, u64) {
    let (mut outside, mut weights, mut last) = (0, 0, None);
    for (i, top) in (0..chain.rows).step_by(tm as usize).enumerate() {
        let height = tm.min(chain.rows - top);
        outside += chain.outside.bytes(height * chain.width) + chain.outside.bytes(height * chain.output);
        for (j, left) in (0..chain.inner).step_by(tf as usize).enumerate() {
            let columns = tf.min(chain.inner - left);
            let block = chain.weights.bytes(chain.width * chain.gates * columns) + chain.weights.bytes(columns * chain.output);
            let load = if (j as u64) < kept { i == 0 } else { last.replace(j) != Some(j) };
            weights += if load { block } else { 0 };
        }
    }
    (outside, weights)
}

fn chains() -> impl Strategy<Value = (Chain, Limits)> {
    let dims = (1u64..12, 1u64..8, 1u64..12, 1u64..8);
    let weights = proptest::sample::select(vec![Element::INT8, Element::INT4, Element { bits: 3, per: 1 }]);
    let rest = (1u64..3, 0u64..9, any::<bool>(), any::<bool>(), 0u32..3, 0.0..1.2f64);
    (dims, weights, rest).prop_map(|((rows, width, inner, output), weights, (gates, state, double, staged, align, share))| {
        let chain = Chain { output, gates, state, ..Chain::mlp(rows, width, inner, weights) };
        let everything = chain.compulsory() + 5 * rows * (output + gates * inner) + rows * state;
        let buffering = if double { Buffering::DoubleStreamed } else { Buffering::Single };
        (chain, Limits { sram: (everything as f64 * share) as u64, align: 1 << align, buffering, staged, stored: None })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn fused_blocks_equal_brute_force((chain, limits) in chains()) {
        let mut best = None;
        for tm in 1..=chain.rows {
            for tf in 1..=chain.inner {
                for kept in 0..=chain.inner.div_ceil(tf) {
                    let fused = FusedChain::new(&chain, &limits, [tm, tf], kept);
                    prop_assert_eq!((fused.outside, fused.weights), by_hand(&chain, [tm, tf], kept));
                    if fused.sram <= limits.sram {
                        best = best.into_iter().chain([fused.dram()]).min();
                    }
                }
            }
        }
        let found = FusedChain::search(&chain, &limits, &Objective::BYTES);
        prop_assert_eq!(found.map(|f| f.dram()), best);
        prop_assert!(found.is_none_or(|f| f.sram <= limits.sram));
    }

    #[test]
    fn the_choice_is_never_worse_than_apart((chain, limits) in chains()) {
        if let Ok(plans) = chain.plans(&limits, &Objective::BYTES) {
            let best = plans.best(&chain, &limits, &Objective::BYTES);
            prop_assert!(best.dram() <= plans.apart.dram() && best.dram() >= chain.compulsory() && best.sram() <= limits.sram);
        }
    }
}

/// Width, inner, heads, KV heads, head width.
const SMOL: [u64; 5] = [576, 1536, 9, 3, 64];
const LLAMA_1B: [u64; 5] = [2048, 8192, 32, 8, 64];
const LLAMA2_7B: [u64; 5] = [4096, 11008, 32, 32, 128];

type Row = ([u64; 5], u32, u64, u64, [f64; 5]);

/// An earlier prototype (int8 activations; MB): block, weight bits, tokens, SRAM KiB; the MLP half fused, fused, and apart
/// with its residual; attention apart and fused, all heads.
const TABLE: &[Row] = &[
    (SMOL, 8, 128, 256, [3.27, 5.46, 4.28, 0.88, 0.20]),
    (SMOL, 8, 512, 256, [9.24, 16.52, 13.27, 10.62, 0.79]),
    (SMOL, 8, 512, 2048, [5.11, 3.24, 9.14, 10.62, 0.79]),
    (SMOL, 8, 2048, 256, [29.00, 66.06, 45.12, 155.71, 10.22]),
    (SMOL, 8, 2048, 2048, [12.48, 10.32, 28.61, 155.71, 3.15]),
    (SMOL, 8, 2048, 8192, [12.48, 5.01, 28.61, 155.71, 3.15]),
    (SMOL, 4, 512, 256, [5.46, 8.55, 9.19, 10.62, 0.79]),
    (SMOL, 4, 512, 2048, [3.78, 1.92, 7.82, 10.62, 0.79]),
    (SMOL, 4, 2048, 2048, [11.16, 3.69, 27.28, 155.71, 3.15]),
    (LLAMA_1B, 8, 128, 256, [65.80, 302.51, 70.78, 3.15, 0.66]),
    (LLAMA_1B, 8, 2048, 2048, [230.69, 562.04, 310.38, 553.65, 10.49]),
    (LLAMA_1B, 4, 512, 256, [141.56, 555.75, 161.48, 37.75, 2.62]),
    (LLAMA_1B, 4, 512, 8192, [36.70, 27.26, 56.62, 37.75, 2.62]),
    (LLAMA_1B, 4, 2048, 8192, [88.08, 83.89, 167.77, 553.65, 10.49]),
    (LLAMA2_7B, 8, 128, 2048, [139.66, 271.58, 146.87, 4.19, 2.10]),
    (LLAMA2_7B, 8, 2048, 256, [2234.52, 25311.58, 2349.86, 612.37, 117.44]),
    (LLAMA2_7B, 4, 512, 2048, [151.78, 409.99, 178.52, 41.94, 8.39]),
    (LLAMA2_7B, 4, 2048, 2048, [471.86, 1437.07, 578.81, 570.43, 33.55]),
    (LLAMA2_7B, 4, 2048, 8192, [224.92, 422.58, 331.87, 570.43, 33.55]),
];

#[test]
fn blocks_need_no_more_than_the_prototype() {
    for (block, bits, tokens, kib, [half, fused, apart, attention_apart, attention_fused]) in TABLE {
        let ([width, inner, heads, kv_heads, head], limits) = (*block, Limits::of(kib << 10));
        let weights = if *bits == 4 { Element::INT4 } else { Element::INT8 };
        let mlp = Chain::mlp(*tokens, width, inner, weights).plans(&limits, &Objective::BYTES).unwrap();
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        // The prototype counts the residual: three times X apart, once half fused, in SRAM already where fused.
        let x = width * tokens;
        let ours = [mlp.half.map(|p| p.dram() + x), mlp.fused.map(|p| p.dram()), Some(mlp.apart.dram() + 3 * x)];
        let ours = ours.map(|bytes| bytes.map_or(f64::INFINITY, megabytes));
        let scores = Chain::attention(tokens * heads / kv_heads, *tokens, head);
        let attention = scores.plans(&limits, &Objective::BYTES).unwrap();
        let chosen = attention.best(&scores, &limits, &Objective::BYTES);
        let [ours_apart, ours_fused] = [attention.apart, chosen].map(|p| megabytes(kv_heads * p.dram()));
        println!(
            "{block:?} w{bits} {tokens} {kib} KiB: half {:.2}/{half} fused {:.2}/{fused} apart {:.2}/{apart}; attention apart \
             {ours_apart:.2}/{attention_apart} fused {ours_fused:.2}/{attention_fused}",
            ours[0], ours[1], ours[2]
        );
        // The table has two decimals.
        const ROUNDED: f64 = 0.006;
        assert!(ours[0].min(ours[1]) <= half.min(*fused) + ROUNDED, "{ours:?}");
        assert!(ours[2] <= apart + ROUNDED);
        assert!(ours_apart <= attention_apart + ROUNDED && ours_fused <= attention_fused + ROUNDED);
        assert!(matches!(chosen, ChainPlan::Fused(_)));
    }
}

#[test]
fn attention_on_smollm2_moves_a_thirteenth() {
    let chain = Chain::attention(512 * 3, 512, 64);
    for kib in [256, 2048, 8192] {
        let limits = Limits::of(kib << 10);
        let plans = chain.plans(&limits, &Objective::BYTES).unwrap();
        let best = plans.best(&chain, &limits, &Objective::BYTES);
        assert!(plans.apart.dram() >= 13 * best.dram(), "{} {}", plans.apart.dram(), best.dram());
        assert_eq!(best.dram(), chain.compulsory());
    }
}

#[test]
fn time_chooses_within_what_counts_as_equal() {
    let rates = Rates {
        array: [1, 32, 32],
        fill: 64.0,
        read: 32.0,
        write: 32.0,
        setup: 100.0,
        outstanding: 1,
        coded: 1.0,
        burst: 64,
        mac_pj: 0.2,
        sram_pj: 1.6,
        dram_pj: 64.0,
        cycle_pj: 0.0,
    };
    for kib in [256, 2048] {
        let limits = Limits { buffering: Buffering::DoubleStreamed, staged: true, align: 64, ..Limits::of(kib << 10) };
        for chain in
            [Chain::mlp(512, 576, 1536, Element::INT4).aligned([1, 32]), Chain::attention(1536, 512, 64).aligned([1, 32])]
        {
            for objective in [Objective::Latency(rates), Objective::Energy(rates)] {
                let plans = chain.plans(&limits, &objective).unwrap();
                let cost = |plan: &ChainPlan| plan.cost(&chain, &limits, &rates);
                let value = |plan: &ChainPlan| {
                    if matches!(objective, Objective::Energy(_)) { cost(plan).energy } else { cost(plan).cycles }
                };
                let all = [Some(plans.apart), plans.half, plans.fused];
                let best = plans.best(&chain, &limits, &objective);
                for plan in all.iter().flatten() {
                    assert!(value(&best) <= value(plan) * (1.0 + 1.0 / 64.0));
                    assert!(cost(plan).cycles >= cost(plan).compute && plan.sram() <= limits.sram);
                }
                // No block of rows and columns is better by more than what counts as equal.
                let Some(ChainPlan::Fused(fused)) = plans.fused else { panic!("fits") };
                for (tm, tf) in [(32, 32), (64, 64), (128, 32), (256, 32), (16, 128), (100, 96)] {
                    let other = FusedChain::new(&chain, &limits, [tm, tf], 0);
                    if other.sram <= limits.sram {
                        assert!(value(&ChainPlan::Fused(fused)) <= value(&ChainPlan::Fused(other)) * (1.0 + 1.0 / 64.0));
                    }
                }
            }
        }
    }
}
