//! Inputs and outputs go by their names.

use attar_graph::{Graph, Inputs, Mode, Run};
use candle_core::{Device, Tensor};

use crate::random::Random;

/// A small encoder: tokens, learned positions and segments, full attention, two outputs.
const ENCODER: &str = r#"
graph encoder(token_types: [batch, seq] i64, positions: [batch, seq] i64, tokens: [batch, seq] i64) {
  words = embedding tokens, weight("embedding": [16, 8] f32)
  places = embedding positions, weight("position_embedding": [32, 8] f32)
  types = embedding token_types, weight("token_type_embedding": [2, 8] f32)
  placed = add words, places
  typed = add placed, types
  x = layer_norm typed, weight("gain": [8] f32), weight("bias": [8] f32) {epsilon = 0.00001}
  heads = split_heads x {heads = 2}
  mixed = attention heads, heads, heads {scale = 0.5, causal = false}
  merged = merge_heads mixed
  hidden_states = add x, merged
  pooled = mean_pool hidden_states
  sentence = normalize pooled {epsilon = 0.000000000001}
  return hidden_states, sentence
}
"#;

fn run(graph: &Graph, inputs: Inputs) -> attar_graph::Result<Vec<Tensor>> {
    let weights = Random::new(5).weights(graph);
    Ok(Run::new(graph, &weights, Mode::Inference, vec![inputs]).finish(0)?.0)
}

#[test]
fn tokens_come_with_positions_and_segments_in_any_order() {
    let graph = Graph::parse(ENCODER).unwrap();
    let outputs = run(&graph, Inputs::tokens(&[&[3, 1, 4], &[1, 5, 9]], 2).unwrap()).unwrap();
    let place = |name: &str| graph.find_output(name).unwrap();
    assert_eq!(outputs[place("hidden_states")].dims(), [2, 3, 8]);
    assert_eq!(outputs[place("sentence")].dims(), [2, 8]);
    assert_eq!((place("sentence"), graph.find_output("pooled"), graph.find_input("words")), (1, None, None));
}

/// Positions and segments change what comes out: they are not only accepted.
#[test]
fn every_input_counts() {
    let graph = Graph::parse(ENCODER).unwrap();
    let values = |inputs: Inputs| run(&graph, inputs).unwrap()[1].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let given = || Inputs::tokens(&[&[3, 1, 4]], 0).unwrap();
    let first = values(given());
    for name in ["tokens", "positions", "token_types"] {
        let mut changed = given();
        changed.tensors.insert(name.into(), Tensor::new(&[[1u32, 0, 1]], &Device::Cpu).unwrap());
        assert_ne!(values(changed), first, "{name}");
    }
}

#[test]
fn an_input_that_is_missing_is_named() {
    let graph = Graph::parse(ENCODER).unwrap();
    let mut inputs = Inputs::tokens(&[&[3, 1, 4]], 0).unwrap();
    inputs.tensors.remove("token_types");
    let error = run(&graph, inputs).unwrap_err().to_string();
    assert_eq!(error, "the graph reads the input `token_types`, which was not given");
}

/// The runner of logits cuts the last block into positions where this holds.
#[test]
fn a_block_that_pools_is_not_pointwise() {
    let graph = Graph::parse(ENCODER).unwrap();
    assert!(graph.blocks().all(|block| !graph.is_pointwise(block)));
}
