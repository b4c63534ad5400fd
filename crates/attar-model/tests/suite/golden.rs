//! Logits against those of the transformers library, which we did not write.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use attar_graph::{Inputs, Mode, Run, SourceWeights, State};
use attar_model::Model;
use attar_tensor::{Source, safetensors::Shards};

/// Largest difference over the largest logit: f32 arithmetic in another order.
const RELATIVE: f32 = 1e-4;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models")
}

/// The models beside the checkout, where there are any.
fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("ATTAR_SHARED")?).join("models").join(name);
    if path.exists() {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "skipped: {} is absent", path.display());
    None
}

struct Golden {
    source: Shards,
    tokens: Vec<u32>,
}

impl Golden {
    fn open(folder: &Path) -> Golden {
        let source = Shards::open(&[folder.join("golden.safetensors")], &Default::default()).unwrap();
        let mut tokens = vec![0.0; source.info("input_ids").unwrap().elements()];
        let rows = source.info("input_ids").unwrap().matrix()[0];
        source.read("input_ids", 0..rows, &mut tokens).unwrap();
        Golden { source, tokens: tokens.into_iter().map(|t| t as u32).collect() }
    }

    fn values(&self, name: &str) -> Vec<f32> {
        let info = self.source.info(name).unwrap();
        let mut values = vec![0.0; info.elements()];
        self.source.read(name, 0..info.matrix()[0], &mut values).unwrap();
        values
    }
}

fn assert_close(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let scale = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(worst <= RELATIVE * scale, "{what}: off by {worst} where the largest is {scale}");
}

fn logits(model: &Model, tokens: &[u32], mode: Mode) -> Vec<f32> {
    let weights = SourceWeights(model.source.clone());
    let run = Run::new(&model.graph, &weights, mode, vec![Inputs::tokens(&[tokens], 0).unwrap()]);
    run.finish(0).unwrap().0[0].flatten_all().unwrap().to_vec1().unwrap()
}

/// Whole logits, in both modes, and token by token through the cache.
fn check(folder: &Path) {
    let model = Model::open(folder).unwrap();
    let golden = Golden::open(folder);
    let want = golden.values("logits");
    let name = folder.file_name().unwrap().to_string_lossy().into_owned();
    assert_close(&name, &logits(&model, &golden.tokens, Mode::Inference), &want);
    assert_close(&format!("{name}, training mode"), &logits(&model, &golden.tokens, Mode::Training), &want);
    assert_close(&format!("{name}, decoding"), &decoded(&model, &golden.tokens), &want);
}

fn decoded(model: &Model, tokens: &[u32]) -> Vec<f32> {
    let weights = SourceWeights(model.source.clone());
    let mut state = State::default();
    let mut all: Vec<f32> = Vec::new();
    let (prompt, rest) = tokens.split_at(tokens.len() / 2);
    let calls = std::iter::once((0, prompt)).chain(rest.chunks(1).enumerate().map(|(i, t)| (prompt.len() + i, t)));
    for (past, tokens) in calls {
        let mut inputs = Inputs::tokens(&[tokens], past).unwrap();
        inputs.state = Some(std::mem::take(&mut state));
        let (out, after) = Run::new(&model.graph, &weights, Mode::Inference, vec![inputs]).finish(0).unwrap();
        state = after.unwrap();
        all.extend(out[0].flatten_all().unwrap().to_vec1::<f32>().unwrap());
    }
    all
}

#[test]
fn shakespeare_has_the_logits_of_transformers() {
    check(&testdata().join("shakespeare-1m"));
}

#[test]
fn stories_has_the_logits_of_transformers() {
    let Some(folder) = shared("stories260k") else { return };
    check(&folder);
}

#[test]
fn the_first_block_has_the_hidden_state_of_transformers() {
    let folder = testdata().join("shakespeare-1m");
    let (model, golden) = (Model::open(&folder).unwrap(), Golden::open(&folder));
    let weights = SourceWeights(model.source.clone());
    let mut run = Run::new(&model.graph, &weights, Mode::Inference, vec![Inputs::tokens(&[&golden.tokens], 0).unwrap()]);
    let wanted = model.graph.find("b0.x").unwrap();
    let mut seen = Vec::new();
    let mut tap = |_: usize, id, tensor: &candle_core::Tensor| {
        if id == wanted {
            seen = tensor.flatten_all().unwrap().to_vec1().unwrap();
        }
    };
    run.step(Some(&mut tap)).unwrap();
    run.step(Some(&mut tap)).unwrap();
    assert_close("hidden_after_block_0", &seen, &golden.values("hidden_after_block_0"));
}

/// Its golden file keeps the last rows only: `logits_mid` and `logits_last` are rows of the whole.
#[test]
fn smollm2_has_the_logits_of_transformers() {
    let folder = testdata().join("../../target/models/smollm2-135m");
    let Some(golden) = shared("smollm2-135m") else { return };
    if !folder.exists() {
        let _ = writeln!(std::io::stderr(), "skipped: {} is absent; `cargo xtask smollm2` makes it", folder.display());
        return;
    }
    let (model, golden) = (Model::open(&folder).unwrap(), Golden::open(&golden));
    let got = logits(&model, &golden.tokens, Mode::Inference);
    let vocabulary = got.len() / golden.tokens.len();
    let last = golden.values("logits_last");
    assert_close("logits_last", &got[got.len() - last.len()..], &last);
    let mid = golden.values("logits_mid");
    let found = got.chunks(vocabulary).any(|row| row.iter().zip(&mid).all(|(g, w)| (g - w).abs() <= RELATIVE * 40.0));
    assert!(found, "some row is `logits_mid`");
}

#[test]
fn every_tiny_reference_model_has_the_logits_of_transformers() {
    let mut count = 0;
    for entry in std::fs::read_dir(testdata()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("tiny-") {
            check(&entry.path());
            count += 1;
        }
    }
    assert!(count > 0, "there are tiny models");
}

#[test]
fn a_graph_survives_its_text_form() {
    let model = Model::open(&testdata().join("shakespeare-1m")).unwrap();
    let text = model.graph.to_string();
    let again = attar_graph::Graph::parse(&text).unwrap();
    assert_eq!(text, again.to_string());
    assert!(
        text.contains(
            r#"weight("blocks.0.attention.query": [128, 128] bf16 = tensor("model.layers.0.self_attn.q_proj.weight"))"#
        )
    );
}
