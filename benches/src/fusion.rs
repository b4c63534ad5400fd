//! DRAM bytes of the MLP, attention and a whole block of known decoders: every op by itself, fused, and as scheduled.

use attar_compile::{
    program::Kernel,
    schedule::{Freedom, Goal, Schedule, Target, schedule},
};

use crate::{
    Bench, Failure,
    apart::{self, Apart},
    chain::ChainPlan,
    models::{BITS, MODELS, SRAM, TOKENS, generic, rule},
    shapes::Decoder,
};

pub(crate) const BENCH: Bench =
    Bench { name: "fusion", about: "DRAM traffic of decoder blocks, op by op and as scheduled", quick: true, run };

fn run(_options: &[String]) -> Result<(), Failure> {
    println!("MB of one block; `/` is how many times less than op by op. MLP: every op by itself, gate and up with SwiGLU, all");
    println!("in one, and how the best of these compares. Attention: scores through DRAM, as scheduled with queries and output");
    println!("through DRAM. Block: every op by itself, as scheduled with joining and keeping.\n");
    println!(
        "| model | w | tokens | SRAM KiB | MLP apart | half | fused | / | attention apart | fused | / | block apart | chosen | / |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    let mut worst: Vec<(String, f64)> = Vec::new();
    for model in &MODELS {
        for (bits, tokens, sram) in cases() {
            let target = generic(sram, bits)?;
            let row = Row::of(&model.with(bits), tokens, &target)?;
            println!("| {} | {bits} | {tokens} | {} | {} |", model.name, sram >> 10, row.cells());
            if tokens == 512 {
                worst.push((format!("{} w{bits} {} KiB", model.name, sram >> 10), row.attention[0] / row.attention[1]));
            }
        }
    }
    println!("\nRule: {}, in every column.", rule(&generic(SRAM[0], 8)?));
    for model in &MODELS {
        let of = worst.iter().filter(|(name, _)| name.starts_with(model.name)).map(|(_, ratio)| *ratio);
        println!(
            "{}: attention at 512 tokens at least {:.1} times less (goal 13).",
            model.name,
            of.fold(f64::INFINITY, f64::min)
        );
    }
    Ok(())
}

fn cases() -> Vec<(u32, u64, u64)> {
    let pairs = TOKENS.iter().flat_map(|tokens| SRAM.map(|sram| (*tokens, sram)));
    let pairs: Vec<_> = pairs.collect();
    BITS.iter().flat_map(|bits| pairs.iter().map(|(tokens, sram)| (*bits, *tokens, *sram))).collect()
}

/// MB.
struct Row {
    /// Apart, half and fused; infinite where it does not fit.
    mlp: [f64; 3],
    /// Apart and as scheduled.
    attention: [f64; 2],
    /// Apart and as scheduled.
    block: [f64; 2],
}

impl Row {
    fn of(decoder: &Decoder, tokens: u64, target: &Target) -> Result<Row, Failure> {
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        let (_, plans) = apart::mlp(decoder, tokens, target)?;
        let of = |plan: Option<ChainPlan>| plan.map_or(f64::INFINITY, |plan| megabytes(plan.dram()));
        let apart = Apart::of(decoder, tokens, 0, target)?;
        let program = decoder.program(tokens, 0)?;
        let with = |keep| schedule(&program, target, Goal::Dram, Freedom { keep, ..Freedom::ALL }, "a block");
        let (alone, chosen) = (with(false)?, with(true)?);
        let attention = alone.choices.iter().filter(|choice| matches!(choice.kernel, Kernel::Attention(_)));
        let each = |bytes: u64| megabytes(bytes) / decoder.blocks as f64;
        Ok(Row {
            mlp: [of(Some(plans.apart)), of(plans.half), of(plans.fused)],
            attention: [megabytes(apart.attention), each(attention.map(|choice| choice.dram).sum())],
            block: [megabytes(apart.total()), each(dram(&chosen))],
        })
    }

    fn cells(&self) -> String {
        let ([mlp, half, fused], [attention, streamed], [block, chosen]) = (self.mlp, self.attention, self.block);
        let ratios = [mlp / mlp.min(half).min(fused), attention / streamed, block / chosen];
        format!(
            "{mlp:.2} | {half:.2} | {fused:.2} | {:.2} | {attention:.2} | {streamed:.2} | {:.2} | {block:.2} | {chosen:.2} | {:.2}",
            ratios[0], ratios[1], ratios[2]
        )
    }
}

fn dram(schedule: &Schedule) -> u64 {
    schedule.choices.iter().map(|choice| choice.dram).sum()
}
