//! Models with ops that no kernel computes are refused by the name of the op, before any weight is read.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

use attar_compile::{Compile, Tile};
use attar_graph::Graph;
use attar_tensor::{Digest, QuantizedTensor, Result, Source, TensorInfo};

/// A source that has no tensor.
struct Empty(BTreeMap<String, TensorInfo>);

impl Source for Empty {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.0
    }

    fn read(&self, name: &str, _: Range<usize>, _: &mut [f32]) -> Result<()> {
        panic!("`{name}` is read")
    }

    fn read_quantized(&self, name: &str, _: Range<usize>) -> Result<QuantizedTensor> {
        panic!("`{name}` is read")
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        panic!("`{name}` is read")
    }
}

fn graph(model: &str) -> Graph {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../testdata/ir/{model}.ir"));
    Graph::parse(&fs::read_to_string(path).unwrap()).unwrap()
}

/// What `compile` and `tile` say of a model.
fn refusal(model: &str) -> String {
    let (graph, source) = (graph(model), Empty(BTreeMap::new()));
    let compiled = Compile::default().plan(&graph, &source).unwrap_err().to_string();
    let tiled = Tile::default().run(&graph, &source).unwrap_err().to_string();
    assert_eq!(compiled, tiled, "{model}");
    compiled
}

#[test]
fn ops_without_a_kernel_are_refused_by_name() {
    for (model, op) in [
        ("tiny-bert", "`attention {causal = false}` (b0.mixed)"),
        ("tiny-gpt2", "`layer_norm` (b0.attention_in)"),
        ("tiny-gemma3", "`rms_norm of each head` (b0.query_normed)"),
        ("tiny-qwen3", "`rms_norm of each head` (b0.query_normed)"),
    ] {
        assert_eq!(refusal(model), format!("{op} cannot be compiled for a device yet"), "{model}");
    }
}

/// Its ops have kernels; what is missing are integers, and the hint says how to get them.
#[test]
fn a_float_decoder_is_told_to_quantize_first() {
    let error = Compile::default().plan(&graph("tiny-phi3"), &Empty(BTreeMap::new())).unwrap_err();
    assert_eq!(error.to_string(), "`b0.attention_in` is a `rms_norm` on its own, which no kernel computes");
    assert!(error.hint().unwrap().contains("quantize the weights"), "{error:?}");
}
