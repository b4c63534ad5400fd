//! Logits and embeddings against those of the transformers library, which we did not write: of every architecture in
//! `ARCHITECTURES`, from Hugging Face folders and from GGUF files.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use attar_graph::{Inputs, Mode, Run, SourceWeights, State};
use attar_model::{ARCHITECTURES, Architecture, Model};
use attar_tensor::{
    Dtype, Source, TensorInfo,
    safetensors::{Entry, Shards, Writer},
};
use candle_core::{Device, Tensor};

/// Largest difference over the largest logit: f32 arithmetic in another order.
const RELATIVE: f32 = 1e-4;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models")
}

/// A model in the folder that `ATTAR_SHARED` names, if it is there.
fn shared(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("ATTAR_SHARED").unwrap_or_default()).join("models").join(name);
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
        let mut golden = Golden { source, tokens: Vec::new() };
        golden.tokens = golden.integers("input_ids");
        golden
    }

    fn has(&self, name: &str) -> bool {
        self.source.tensors().contains_key(name)
    }

    fn integers(&self, name: &str) -> Vec<u32> {
        self.values(name).into_iter().map(|number| number as u32).collect()
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

/// What the graph returns for a text.
fn output(model: &Model, inputs: Inputs, mode: Mode) -> Vec<f32> {
    let weights = SourceWeights(model.source.clone());
    let run = Run::new(&model.graph, &weights, mode, vec![inputs]);
    run.finish(0).unwrap().0[0].flatten_all().unwrap().to_vec1().unwrap()
}

fn logits(model: &Model, tokens: &[u32], mode: Mode) -> Vec<f32> {
    output(model, Inputs::tokens(&[tokens], 0).unwrap(), mode)
}

/// What the model at `path` returns, against the golden values in `folder`.
fn check_file(path: &Path, folder: &Path) {
    let (model, golden) = (Model::open(path).unwrap(), Golden::open(folder));
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    match golden.has("embedding") {
        true => check_encoder(&name, &model, &golden),
        false => check_decoder(&name, &model, &golden),
    }
}

fn check(folder: &Path) {
    check_file(folder, folder);
}

/// Whole logits, in both modes, and token by token through the cache.
fn check_decoder(name: &str, model: &Model, golden: &Golden) {
    let want = golden.values("logits");
    assert_close(name, &logits(model, &golden.tokens, Mode::Inference), &want);
    assert_close(&format!("{name}, training mode"), &logits(model, &golden.tokens, Mode::Training), &want);
    if !golden.has("short_logits") {
        return assert_close(&format!("{name}, decoding"), &decoded(model, &golden.tokens), &want);
    }
    // What was cached of a short text does not fit a long one.
    let (short, want) = (golden.integers("short_input_ids"), golden.values("short_logits"));
    assert_close(&format!("{name}, short"), &logits(model, &short, Mode::Inference), &want);
    assert_close(&format!("{name}, short, decoding"), &decoded(model, &short), &want);
}

/// Embeddings of one segment and of two, in both modes, and hidden states.
fn check_encoder(name: &str, model: &Model, golden: &Golden) {
    let types = golden.integers("token_type_ids");
    let inputs = |types: Vec<u32>| {
        let mut inputs = Inputs::tokens(&[&golden.tokens], 0).unwrap();
        inputs
            .tensors
            .insert(attar_graph::TOKEN_TYPES.into(), Tensor::from_vec(types, (1, golden.tokens.len()), &Device::Cpu).unwrap());
        inputs
    };
    let one_segment = vec![0; golden.tokens.len()];
    for mode in [Mode::Inference, Mode::Training] {
        let what = |what: &str| format!("{name}, {what}, {mode:?}");
        assert_close(&what("two segments"), &output(model, inputs(types.clone()), mode), &golden.values("embedding"));
        let want = golden.values("one_segment_embedding");
        assert_close(&what("one segment"), &output(model, inputs(one_segment.clone()), mode), &want);
        assert_close(&what("as a lane"), &logits(model, &golden.tokens, mode), &want);
    }
    let last = model.graph.blocks().nth(model.graph.block_count() - 2).unwrap();
    let hidden = model.graph.nodes_of(last).last().unwrap().output();
    let mut seen = Vec::new();
    let weights = SourceWeights(model.source.clone());
    let mut run = Run::new(&model.graph, &weights, Mode::Inference, vec![inputs(types)]);
    while run.next_block().is_some() {
        let mut tap = |_: usize, id, tensor: &Tensor| {
            if id == hidden {
                seen = tensor.flatten_all().unwrap().to_vec1().unwrap();
            }
        };
        run.step(Some(&mut tap)).unwrap();
    }
    assert_close(&format!("{name}, hidden states"), &seen, &golden.values("hidden_states"));
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

/// The real sentence encoder: texts to tokens by WordPiece, tokens to embeddings.
#[test]
fn minilm_has_the_tokens_and_embeddings_of_transformers() {
    let Some(folder) = shared("minilm-l6-v2-f16") else { return };
    let golden = std::fs::read(testdata().join("../oracle/minilm.json")).unwrap();
    let golden: Vec<serde_json::Value> = serde_json::from_slice(&golden).unwrap();
    let model = Model::open(&folder).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    for row in golden {
        let text = row["text"].as_str().unwrap();
        let tokens = tokenizer.encode_framed(&[text]).unwrap().remove(0);
        let wanted: Vec<u32> = serde_json::from_value(row["tokens"].clone()).unwrap();
        assert_eq!(tokens, wanted, "{text:?}");
        let wanted: Vec<f32> = serde_json::from_value(row["embedding"].clone()).unwrap();
        assert_close(text, &logits(&model, &tokens, Mode::Inference), &wanted);
    }
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

/// The tiny checkpoints, which the oracle's script makes.
fn tiny() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(testdata()).unwrap().flatten().map(|entry| entry.path());
    let mut tiny: Vec<PathBuf> =
        entries.filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tiny-"))).collect();
    tiny.sort();
    tiny
}

#[test]
fn every_tiny_reference_model_has_the_output_of_transformers() {
    tiny().iter().for_each(|folder| check(folder));
}

#[test]
fn every_architecture_has_a_tiny_checkpoint_with_golden_values() {
    let of = |folder: &PathBuf| Architecture::of(&Model::open(folder).unwrap().graph).unwrap().names[0];
    let checked: Vec<&str> = tiny().iter().filter(|folder| folder.join("golden.safetensors").exists()).map(of).collect();
    for architecture in ARCHITECTURES {
        let name = architecture.names[0];
        assert!(
            checked.contains(&name),
            "`{name}` has no checkpoint in testdata/models; testdata/oracle/tiny_models.py makes them"
        );
    }
}

/// Files that the `gguf` package wrote under its own names, from the checkpoints of the same names.
#[test]
fn every_tiny_gguf_file_has_the_output_of_transformers() {
    let folder = testdata().join("../gguf");
    let files = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.path());
    let made: Vec<PathBuf> = files.filter(|path| testdata().join(path.file_stem().unwrap()).exists()).collect();
    assert!(made.len() >= 6, "{} has files of tiny models: {made:?}", folder.display());
    for file in made {
        check_file(&file, &testdata().join(file.file_stem().unwrap()));
    }
}

/// GPT-2 was published without the prefix that the whole class gives to its modules.
#[test]
fn modules_may_lack_their_prefix() {
    let folder = testdata().join("tiny-gpt2");
    let source = Shards::open(&[folder.join("model.safetensors")], &Default::default()).unwrap();
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("gpt2-without-prefix");
    std::fs::create_dir_all(&to).unwrap();
    std::fs::copy(folder.join("config.json"), to.join("config.json")).unwrap();
    let bare = |name: &String| name.strip_prefix("transformer.").unwrap().to_owned();
    let entry = |(name, info): (&String, &TensorInfo)| Entry { name: bare(name), dtype: Dtype::F32, dims: info.dims.clone() };
    let entries: Vec<Entry> = source.tensors().iter().map(entry).collect();
    let file = std::fs::File::create(to.join("model.safetensors")).unwrap();
    let mut writer = Writer::new(file, &entries, &Default::default()).unwrap();
    for (name, info) in source.tensors() {
        let (mut values, mut bytes) = (vec![0.0; info.elements()], Vec::new());
        source.read(name, 0..info.matrix()[0], &mut values).unwrap();
        Dtype::F32.encode(&values, &mut bytes);
        writer.append(&bytes).unwrap();
    }
    writer.finish();
    check_file(&to, &folder);
}

/// A tensor that nothing reads is a part of the model that was left out.
#[test]
fn every_stored_tensor_is_read() {
    for folder in tiny() {
        let model = Model::open(&folder).unwrap();
        let read: Vec<String> = model.graph.weights().map(|(.., expr)| expr.to_string()).collect();
        for tensor in model.source.tensors().keys() {
            let named = format!("tensor({tensor:?})");
            assert!(read.iter().any(|expr| expr.contains(&named)), "{}: nothing reads `{tensor}`", folder.display());
        }
    }
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
