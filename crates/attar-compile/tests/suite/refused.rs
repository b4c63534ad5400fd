//! Models with ops that no kernel computes are refused by the name of the op, before any weight is read.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeMap, fs, num::NonZeroU64, ops::Range, path::Path};

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
    Graph::parse(&text(model)).unwrap()
}

fn text(model: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../testdata/ir/{model}.ir"));
    fs::read_to_string(path).unwrap()
}

/// One line of a model that can be compiled is another: what no kernel computes is named.
#[test]
fn what_a_variant_of_an_architecture_does_is_refused_by_name() {
    let norm = "  b0.query_turned = rms_norm b0.query_rotated, weight(\"g\": [16] bf16) {epsilon = 0.000001}";
    let plain = "b0.query_turned = rope b0.query_normed, positions {theta = 1000000}";
    let rotated = plain.replace("query_turned", "query_rotated");
    for (from, to, op) in [
        (plain, &*format!("{rotated}\n    {norm}"), "`rms_norm of each head` (b0.query_normed)"),
        ("b1.gated = swiglu b1.gate, b1.up", "b1.a = tanh b1.gate b1.gated = mul b1.a, b1.up", "`tanh` (b1.a)"),
        (
            "b1.mixed = attention b1.query_turned, b1.keys, b1.values {scale = 0.25}",
            "b1.mixed = attention b1.query_turned, b1.keys, b1.values {scale = 0.25, softcap = 50}",
            "`attention {softcap = 50}` (b1.mixed)",
        ),
        (
            "b1.attended = add b0.x, b1.attention_out",
            "b1.scaled = scale b1.attention_out {by = 0.5} b1.attended = add b0.x, b1.scaled",
            "`scale` (b1.scaled)",
        ),
    ] {
        let text = text("tiny-qwen3");
        assert!(text.contains(from), "{from}");
        let graph = Graph::parse(&text.replace(from, to)).unwrap();
        let error = Compile::default().plan(&graph, &Empty(BTreeMap::new())).unwrap_err();
        assert_eq!(error.to_string(), format!("{op} cannot be compiled for a device yet"));
    }
}

/// What `compile` and `tile` say of a model.
fn refusal(model: &str) -> String {
    let (graph, source) = (graph(model), Empty(BTreeMap::new()));
    let seq = NonZeroU64::new(16).unwrap();
    let compiled = Compile { seq, ..Compile::default() }.plan(&graph, &source).unwrap_err().to_string();
    let tiled = Tile { seq, ..Tile::default() }.run(&graph, &source).unwrap_err().to_string();
    assert_eq!(compiled, tiled, "{model}");
    compiled
}

/// Their ops have kernels; what is missing are integers, and the hint says how to get them.
#[test]
fn a_float_model_is_told_to_quantize_first() {
    for (model, why) in [
        ("tiny-phi3", "`b0.attention_in` is a `rms_norm` on its own, which no kernel computes"),
        ("tiny-qwen3", "`b0.attention_in` is a `rms_norm` on its own, which no kernel computes"),
        ("tiny-gemma3", "`b0.attention_in` is a `rms_norm` on its own, which no kernel computes"),
        ("tiny-gpt2", "`b0.qkv` reads `attention_in`, which is not in integers"),
        ("tiny-bert", "`b0.qkv` reads `x`, which is not in integers"),
    ] {
        assert_eq!(refusal(model), why, "{model}");
        let compile = Compile { seq: NonZeroU64::new(16).unwrap(), ..Compile::default() };
        let error = compile.plan(&graph(model), &Empty(BTreeMap::new())).unwrap_err();
        assert!(error.hint().unwrap().contains("quantize the weights"), "{error:?}");
    }
}

/// A table of positions has a row for every token that is read, also for the one behind the longest prompt.
#[test]
fn a_decoder_reads_no_more_tokens_than_it_has_positions() {
    let error = |seq: u64, decode: bool| {
        let compile = Compile { seq: NonZeroU64::new(seq).unwrap(), decode, ..Compile::default() };
        compile.plan(&graph("tiny-gpt2"), &Empty(BTreeMap::new())).unwrap_err().to_string()
    };
    let said = "the model has positions for 64 tokens, and the plans would read 65: `seq`, and a token after it";
    assert_eq!(error(64, true), said);
    assert_eq!(error(65, false), said);
    for (seq, decode) in [(64, false), (63, true)] {
        assert!(!error(seq, decode).contains("positions"), "{seq}");
    }
}
