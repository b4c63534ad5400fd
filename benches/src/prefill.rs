//! The reference run: 2048 tokens in windows of 512 through a model of SmolLM2-135M's shape, beside a plain product of
//! matrices.

use std::{hint::black_box, path::PathBuf};

use attar_eval::{Output, Reference, Runner, Window, perplexity};
use attar_graph::{Inputs, Mode, Run, SourceWeights};
use attar_model::Model;
use candle_core::{Device, Tensor};

use crate::{
    Bench, Failure,
    checkpoint::Shape,
    cost, host,
    table::{Row, Table},
};

pub(crate) const BENCH: Bench =
    Bench { name: "prefill", about: "2048 tokens in windows of 512 through the reference run of SmolLM2-135M", quick: true, run };

const WINDOWS: usize = 4;
const LENGTH: usize = 512;

/// Side of the matrices of the baseline, and how often they are multiplied.
const SIDE: usize = 1024;
const PRODUCTS: usize = 20;

fn run(_options: &[String]) -> Result<(), Failure> {
    let model = Model::open(&checkpoint()?)?;
    let windows = windows(vocabulary(&model).ok_or("the model has no embedding")?);
    let mut table = Table::new();
    let matmul = matmul()?;
    let flops = (PRODUCTS * 2 * SIDE * SIDE * SIDE) as f64 / matmul.cpu;
    table.add(Row { work: "f32 matmul 1024^3", cost: matmul, rate: giga(flops), ratio: "1".into(), goal: "" });
    let (macs, blocks) = blocks(&model, &windows)?;
    let reached = 2.0 * macs as f64 / blocks.cpu;
    let ratio = format!("{:.0}%", 100.0 * reached / flops);
    table.add(Row { work: "all blocks", cost: blocks, rate: giga(reached), ratio, goal: "40% of the matmul" });
    let runner = Reference::new(&model);
    let (measured, whole) = cost::of(|| {
        let mut logits = runner.start(Output::Logits.into(), &windows, &|_, _| {})?;
        perplexity::alone(&windows, &mut *logits, None, &|_, _| {})
    });
    black_box(measured?);
    let rate = format!("{:.0} tokens/CPU-s", (WINDOWS * LENGTH) as f64 / whole.cpu);
    let ratio = format!("{:.2} x the blocks", whole.cpu / blocks.cpu);
    table.add(Row { work: "perplexity", cost: whole, rate, ratio, goal: "200 tokens/CPU-s" });
    table.print();
    Ok(())
}

/// The real one, or random weights of its shape.
fn checkpoint() -> Result<PathBuf, Failure> {
    let real = host::target().join("models/smollm2-135m");
    if real.exists() {
        return Ok(real);
    }
    let folder = host::scratch("prefill")?;
    let shape = Shape {
        kind: "llama",
        hidden: 576,
        intermediate: 1536,
        blocks: 30,
        heads: 9,
        key_heads: 3,
        vocabulary: 49152,
        tied: true,
    };
    shape.write(&folder, 1)?;
    println!("`{}` is absent (`cargo xtask smollm2` makes it): the weights are random.\n", real.display());
    Ok(folder)
}

fn vocabulary(model: &Model) -> Option<usize> {
    model.graph.fact(model.graph.find("embedding")?).constant_dims()?.first().copied()
}

fn windows(vocabulary: usize) -> Vec<Window> {
    let token = |at: usize| (at as u32).wrapping_mul(2_654_435_761) % vocabulary as u32;
    (0..WINDOWS)
        .map(|window| Window { tokens: (0..LENGTH).map(|at| token(window * LENGTH + at)).collect(), scored: 0..LENGTH - 1 })
        .collect()
}

fn matmul() -> Result<cost::Cost, Failure> {
    let matrix = || Tensor::rand(-1.0f32, 1.0, (SIDE, SIDE), &Device::Cpu);
    let (a, b) = (matrix()?, matrix()?);
    black_box(a.matmul(&b)?);
    let (done, cost) = cost::of(|| (0..PRODUCTS).try_for_each(|_| a.matmul(&b).map(|product| drop(black_box(product)))));
    done?;
    Ok(cost)
}

/// Everything but the last block, which makes logits: as the perplexity runs it, in one lane.
fn blocks(model: &Model, windows: &[Window]) -> Result<(u64, cost::Cost), Failure> {
    let weights = SourceWeights(model.source.clone());
    let tokens: Vec<&[u32]> = windows.iter().map(|window| window.tokens.as_slice()).collect();
    let mut run = Run::new(&model.graph, &weights, Mode::Inference, vec![Inputs::tokens(&tokens, 0)?]);
    let (done, cost) = cost::of(|| run.advance_to_last_block(|_, _| {}));
    done?;
    Ok((run.macs(), cost))
}

fn giga(flops: f64) -> String {
    format!("{:.1} GFLOP/CPU-s", flops / 1e9)
}
