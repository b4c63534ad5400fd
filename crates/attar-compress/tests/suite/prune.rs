//! Every tiny model without some of its units, against the same model with zeros in their place; every pruner.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::HashMap, fs, path::Path, sync::Arc};

use attar_compress::{
    Hessian,
    prune::{
        Cut, Hidden, Observed, PRUNERS, Place, Pool, Response, Sublayer, Unit, UnitSite, refitted, renumbered, reshaped,
        stored_as, without,
    },
};
use attar_graph::{Graph, Inputs, Mode, Run, SourceWeights, TensorWeights, Weights};
use attar_model::Model;
use attar_tensor::{Encoding, Source};
use candle_core::{Device, Tensor};

/// Largest difference over the largest output: f32 sums of fewer numbers, in another order.
const RELATIVE: f32 = 1e-4;

struct Subject {
    graph: Graph,
    source: Arc<dyn Source>,
}

fn subjects() -> Vec<Subject> {
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models");
    let mut folders: Vec<_> = fs::read_dir(tiny).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    let open = |folder: &std::path::PathBuf| {
        let model = Model::open(folder).unwrap();
        Subject { graph: model.graph, source: model.source }
    };
    folders.iter().map(open).collect()
}

const TOKENS: [u32; 12] = [3, 14, 15, 9, 2, 6, 5, 35, 8, 9, 7, 9];

fn outputs(graph: &Graph, weights: &dyn Weights) -> Vec<f32> {
    graph.verify().unwrap();
    let run = Run::new(graph, weights, Mode::Inference, vec![Inputs::tokens(&[&TOKENS], 0).unwrap()]);
    run.finish(0).unwrap().0[0].flatten_all().unwrap().to_vec1().unwrap()
}

/// The same where norms add their epsilon to a mean of other numbers.
const OF_EPSILON: f32 = 1e-2;

#[track_caller]
fn assert_close(found: &[f32], wanted: &[f32], what: &str) {
    assert_within(RELATIVE, found, wanted, what);
}

#[track_caller]
fn assert_within(relative: f32, found: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(found.len(), wanted.len(), "{what}");
    let largest = wanted.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let worst = found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= relative * largest, "{what}: off by {worst} where the largest is {largest}");
}

/// The weight of a site's reader with zeros for all units but some.
fn masked(subject: &Subject, site: &UnitSite, units: &[usize]) -> Tensor {
    let expr = site.reader.expr(&subject.graph);
    let whole = SourceWeights(subject.source.clone()).whole(&site.name, expr).unwrap();
    let columns = site.columns(units);
    let mask: Vec<f32> = (0..whole.dim(1).unwrap()).map(|column| f32::from(columns.contains(&column))).collect();
    whole.broadcast_mul(&Tensor::from_vec(mask, (1, whole.dim(1).unwrap()), &Device::Cpu).unwrap()).unwrap()
}

/// Every second unit, and as many of every key-value head.
fn some(site: &UnitSite) -> Vec<usize> {
    match site.unit {
        Unit::Channel { channels } => (0..channels).filter(|channel| channel % 3 != 1).collect(),
        Unit::Head { heads, key_heads, .. } if key_heads > 1 => (heads / key_heads..heads).collect(),
        Unit::Head { heads, .. } => (0..heads).filter(|head| head % 2 == 1 || heads == 1).collect(),
    }
}

#[test]
fn a_model_without_units_computes_what_it_does_with_zeros_in_their_place() {
    let mut architectures = Vec::new();
    for subject in subjects() {
        let name = subject.graph.name().to_owned();
        let sites = UnitSite::of(&subject.graph).unwrap();
        let kept: Vec<Vec<usize>> = sites.iter().map(some).collect();
        let tensors: HashMap<String, Tensor> =
            sites.iter().zip(&kept).map(|(site, units)| (site.name.clone(), masked(&subject, site, units))).collect();
        let below = SourceWeights(subject.source.clone());
        let wanted = outputs(&subject.graph, &TensorWeights { tensors, below: &below });
        let cuts = sites.iter().zip(&kept).map(|(site, units)| {
            let weight = site.reader.expr(&subject.graph).clone();
            Cut { site, units, weight }
        });
        let small = reshaped(&subject.graph, &cuts.collect::<Vec<_>>()).unwrap();
        small.verify_weights(&*subject.source).unwrap();
        assert_close(&outputs(&small, &below), &wanted, &name);
        architectures.push(name);
    }
    architectures.sort();
    architectures.dedup();
    assert_eq!(architectures, ["bert", "gemma3", "gpt2", "llama", "mistral", "phi3", "qwen2", "qwen3"]);
}

#[test]
fn blocks_that_left_add_nothing_and_the_others_are_numbered_through() {
    for subject in subjects() {
        let graph = &subject.graph;
        let name = graph.name();
        let Ok(sublayers) = Sublayer::of(graph) else {
            assert_eq!(name, "bert", "only a normalized residual stream cannot lose a block");
            continue;
        };
        let block = sublayers[0].block;
        let gone: Vec<Sublayer> = sublayers.into_iter().filter(|sublayer| sublayer.block == block).collect();
        assert_eq!(gone.len(), 2, "{name}: attention and MLP");
        let below = SourceWeights(subject.source.clone());
        let mut tensors = HashMap::new();
        for site in UnitSite::of(graph).unwrap().iter().filter(|site| site.block == block) {
            for id in std::iter::once(site.reader.weight).chain(site.reader.bias) {
                let value = graph.get(id);
                let attar_graph::Origin::Weight(expr) = &value.origin else { panic!("a weight") };
                tensors.insert(value.name.clone(), below.whole(&value.name, expr).unwrap().zeros_like().unwrap());
            }
        }
        let wanted = outputs(graph, &TensorWeights { tensors, below: &below });
        let short = renumbered(&without(graph, &gone).unwrap()).unwrap();
        assert_eq!(short.block_count(), graph.block_count() - 1, "{name}");
        assert_close(&outputs(&short, &below), &wanted, name);
        for at in 0..short.block_count() - 2 {
            let canonical = format!("blocks.{at}.mlp.down");
            assert!(short.find(&canonical).is_some() && short.find(&format!("b{at}.x")).is_some(), "{name}: {canonical}");
        }
        assert!(short.find(&format!("blocks.{}.mlp.down", short.block_count() - 2)).is_none(), "{name}");
    }
}

/// What the residual stream never holds can leave: gains make up for the smaller number of channels.
#[test]
fn channels_of_the_residual_stream_that_are_always_zero_leave_without_a_trace() {
    let mut architectures = Vec::new();
    for subject in subjects() {
        let graph = &subject.graph;
        let Ok(hidden) = Hidden::of(graph) else { continue };
        let width = hidden.width();
        let kept: Vec<usize> = (0..width).filter(|channel| channel % 4 != 1).collect();
        let mask: Vec<f32> = (0..width).map(|channel| f32::from(kept.contains(&channel))).collect();
        let below = SourceWeights(subject.source.clone());
        let mut tensors = HashMap::new();
        let mut zeroed = |id, dims: &[usize]| {
            let value = graph.get(id);
            let attar_graph::Origin::Weight(expr) = &value.origin else { panic!("a weight") };
            let mask = Tensor::from_vec(mask.clone(), dims, &Device::Cpu).unwrap();
            tensors.insert(value.name.clone(), below.whole(&value.name, expr).unwrap().broadcast_mul(&mask).unwrap());
        };
        for node in graph.nodes().iter().filter(|node| matches!(node.op, attar_graph::Op::Embedding)) {
            zeroed(node.inputs[1], &[1, width]);
        }
        let mut gains = Vec::new();
        for (_, place) in hidden.places() {
            match place {
                Place::Writer { layer, .. } => {
                    zeroed(layer.weight, &[width, 1]);
                    layer.bias.iter().for_each(|bias| zeroed(*bias, &[width]));
                }
                Place::Norm { gain, .. } => gains.push(graph.get(*gain).name.clone()),
                Place::Readers(layers) => assert!(!layers.is_empty()),
            }
        }
        let wanted = outputs(graph, &TensorWeights { tensors, below: &below });
        let small = hidden.narrowed(graph, &kept, &Default::default()).unwrap();
        small.verify_weights(&*subject.source).unwrap();
        let ratio = (width as f64 / kept.len() as f64).sqrt();
        let scaled = |name: &String| {
            let value = small.get(small.find(name).unwrap());
            let attar_graph::Origin::Weight(expr) = &value.origin else { panic!("a weight") };
            (name.clone(), below.whole(name, expr).unwrap().affine(ratio, 0.0).unwrap())
        };
        let tensors = gains.iter().map(scaled).collect();
        assert_within(OF_EPSILON, &outputs(&small, &TensorWeights { tensors, below: &below }), &wanted, graph.name());
        architectures.push(graph.name().to_owned());
    }
    architectures.sort();
    architectures.dedup();
    assert_eq!(
        architectures,
        ["llama", "mistral", "phi3", "qwen2", "qwen3"],
        "others normalize what they add, or subtract means"
    );
}

/// Inputs `[count, columns]` that depend on each other, of which the last is always zero.
fn inputs(columns: usize, count: usize) -> Hessian {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let mut tokens = Vec::new();
    for _ in 0..count {
        let common = next();
        tokens.extend((0..columns - 1).map(|column| next() * (1 + column % 3) as f32 + common));
        tokens.push(0.0);
    }
    let mut moments = Hessian::new(columns);
    moments.add(&Tensor::from_vec(tokens, (count, columns), &Device::Cpu).unwrap()).unwrap();
    moments
}

fn weight(rows: usize, columns: usize) -> Vec<f32> {
    let of = |at: usize| if at % columns == columns - 1 { 0.0 } else { ((at * 7919) % 101) as f32 / 50.0 - 1.0 };
    (0..rows * columns).map(of).collect()
}

#[test]
fn every_pruner_keeps_what_it_is_told_and_lets_dead_units_go_first() {
    let (moments, weight) = (inputs(12, 400), weight(5, 12));
    let seen = Observed { weight: &weight, moments: &moments, means: &[0.0; 12], width: 1 };
    for pruner in PRUNERS {
        let name = pruner.name();
        let all = pruner.keep(&seen, &[Pool { units: (0..12).collect(), keep: 11 }]).unwrap();
        assert_eq!(all, (0..11).collect::<Vec<_>>(), "{name}: the last is always zero, and so are its weights");
        let pools = [Pool { units: (0..6).collect(), keep: 2 }, Pool { units: (6..12).collect(), keep: 4 }];
        let kept = pruner.keep(&seen, &pools).unwrap();
        assert_eq!(kept.len(), 6, "{name}");
        assert_eq!(kept.iter().filter(|unit| **unit < 6).count(), 2, "{name}: each pool keeps its own");
        assert!(kept.is_sorted(), "{name}");
        let wide = Observed { width: 3, ..seen };
        let heads = pruner.keep(&wide, &[Pool { units: (0..4).collect(), keep: 3 }]).unwrap();
        assert_eq!(heads.len(), 3, "{name}");
        assert_eq!(heads, pruner.keep(&wide, &[Pool { units: (0..4).collect(), keep: 3 }]).unwrap(), "{name}: the same again");
    }
}

/// The squared error of the layer's outputs when some columns are left and fitted.
fn error(weight: &[f32], moments: &Hessian, kept: &[usize]) -> f64 {
    let n = moments.inputs();
    let fitted = refitted(weight, moments, &Response::Own, kept).unwrap();
    let rows = weight.chunks(n).zip(fitted.chunks(n));
    rows.map(|(w, f)| {
        let off: Vec<f64> = w.iter().zip(f).map(|(a, b)| f64::from(a - b)).collect();
        (0..n).flat_map(|i| (0..n).map(move |j| (i, j))).map(|(i, j)| off[i] * moments.mean(i, j) * off[j]).sum::<f64>()
    })
    .sum()
}

#[test]
fn brain_surgeon_removes_the_unit_whose_absence_costs_least() {
    let (moments, weight) = (inputs(9, 600), weight(4, 9));
    let seen = Observed { weight: &weight, moments: &moments, means: &[0.0; 9], width: 1 };
    let obs = PRUNERS.iter().find(|pruner| pruner.name() == "obs").unwrap();
    let without = |gone: &[usize]| (0..9).filter(|unit| !gone.contains(unit)).collect::<Vec<usize>>();
    // The last is dead, so that the second to leave is the first that costs anything.
    let found = obs.keep(&seen, &[Pool { units: (0..9).collect(), keep: 7 }]).unwrap();
    let best = (0..8)
        .min_by(|a, b| error(&weight, &moments, &without(&[*a, 8])).total_cmp(&error(&weight, &moments, &without(&[*b, 8]))));
    assert_eq!(found, without(&[best.unwrap(), 8]));
}

/// Among few choices the best of all is taken, which is not always what greedy removal finds.
#[test]
fn new_weights_have_the_number_format_of_those_before() {
    assert_eq!(stored_as(Encoding::Plain(attar_tensor::Dtype::BF16)), attar_tensor::Dtype::BF16);
    let blocks = subjects().into_iter().find(|subject| subject.graph.name() == "llama").unwrap();
    let encoding = blocks.graph.fact(blocks.graph.find("blocks.0.mlp.down").unwrap()).encoding;
    assert_eq!(Encoding::Plain(stored_as(encoding)), encoding);
}
