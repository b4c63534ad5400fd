//! scratch: time by op
use std::{collections::BTreeMap, path::Path, time::Instant};
use attar_eval::*;
use attar_graph::*;
use attar_model::Model;
#[expect(clippy::print_stdout, reason = "scratch")]
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let model = Model::open(Path::new(&a[1])).unwrap();
    let lane: usize = a[4].parse().unwrap();
    let text = Perplexity { tokens: Some(a[3].parse().unwrap()), ..Perplexity::of(&a[2]) };
    let windows = text.windows(&model).unwrap();
    let lanes = windows.chunks(lane / 512).map(|c| Inputs::tokens(&c.iter().map(|w| &w.tokens[..]).collect::<Vec<_>>(), 0).unwrap()).collect();
    let ops: BTreeMap<_, _> = model.graph.nodes().iter().map(|n| {
        let w = n.inputs.iter().map(|i| model.graph.fact(*i).to_string()).collect::<Vec<_>>().join(" | ");
        (n.output, format!("{} {}", n.op.def().name, w))
    }).collect();
    let weights = SourceWeights(model.source.clone());
    let mut run = Run::new(&model.graph, &weights, attar_graph::Mode::Inference, lanes);
    let mut by: BTreeMap<String, (f64, u64)> = BTreeMap::new();
    let n = windows.len() as f64 * 512.0;
    let all = Instant::now();
    for _ in 0..model.graph.block_count() - 1 {
        let mut last = Instant::now();
        let mut tap = |_: usize, id: ValueId, _: &candle_core::Tensor| {
            let e = by.entry(ops[&id].clone()).or_default();
            e.0 += last.elapsed().as_secs_f64();
            e.1 += 1;
            last = Instant::now();
        };
        run.step(Some(&mut tap)).unwrap();
    }
    println!("all {:.3} ms/token, macs/s {:.1} G", all.elapsed().as_secs_f64() * 1e3 / n, run.macs() as f64 / all.elapsed().as_secs_f64() / 1e9);
    let mut v: Vec<_> = by.into_iter().collect();
    v.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for (k, (t, c)) in v {
        println!("{:8.1} us/token  {c:5}  {k}", t * 1e6 / n);
    }
}
