//! Folders of target `safetensors`: those of tiny checkpoints are these checkpoints again, and a graph of other sizes has a
//! configuration of its own. `testdata/oracle/exported.py` compares logits with transformers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
};

use attar_export::{Error, Format, Input, Numbers, Safetensors, Side, target};
use attar_graph::Graph;
use attar_model::{Folder, Model, describe, describe_in_part};
use attar_settings::Size;
use attar_tensor::{
    Checkpoint, Dtype, Encoding,
    safetensors::{Entry, Writer},
};
use serde_json::{Value, json};
use tempfile::TempDir;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(name)
}

fn tiny() -> Vec<PathBuf> {
    let entries = fs::read_dir(testdata("models")).unwrap().flatten().map(|entry| entry.path());
    let mut all: Vec<PathBuf> = entries.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("tiny-")).collect();
    all.sort();
    all
}

fn exported(model: &Model, config: &Value, format: &Safetensors) -> attar_export::Result<TempDir> {
    let folder = tempfile::tempdir().unwrap();
    let side = Side { config: config.clone(), ..Side::default() };
    let input = Input { graph: &model.graph, source: &*model.source, side: &side };
    let artifact = format.write(&input, folder.path(), &mut |_, _| ())?;
    format.verify(&input, &artifact, folder.path(), None)?;
    Ok(folder)
}

fn json_of(folder: &Path, name: &str) -> Value {
    serde_json::from_slice(&fs::read(folder.join(name)).unwrap()).unwrap()
}

/// Number format, dimensions and bytes of every tensor.
fn tensors(folder: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let source = Checkpoint::open(folder).unwrap().source;
    let names = source.tensors().keys().cloned().chain(source.unreadable());
    names
        .map(|name| {
            let stored = source.stored(&name).unwrap();
            let mut bytes = vec![0; stored.bytes as usize];
            source.read_stored(&name, 0, &mut bytes).unwrap();
            (name, (stored.dtype, stored.dims, bytes))
        })
        .collect()
}

#[test]
fn a_tiny_checkpoint_is_written_as_it_was() {
    for path in tiny() {
        let model = Model::open(&path).unwrap();
        let folder = exported(&model, &model.config.json, &Safetensors::default()).unwrap();
        assert_eq!(json_of(folder.path(), "config.json"), json_of(&path, "config.json"), "{}", path.display());
        let (found, mut wanted) = (tensors(folder.path()), tensors(&path));
        // Of a head for other tasks.
        wanted.retain(|name, _| !name.starts_with("pooler."));
        assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>(), "{}", path.display());
        for (name, tensor) in &found {
            assert!(*tensor == wanted[name], "{}: {name}", path.display());
        }
    }
}

#[test]
fn a_gguf_file_becomes_a_folder_that_names_its_class() {
    for entry in fs::read_dir(testdata("gguf")).unwrap().flatten() {
        let path = entry.path();
        if !path.file_name().unwrap().to_string_lossy().starts_with("tiny-") {
            continue;
        }
        let model = Model::open(&path).unwrap();
        let folder = exported(&model, &model.config.json, &Safetensors::default()).unwrap();
        let (config, original) =
            (json_of(folder.path(), "config.json"), path.file_stem().unwrap().to_string_lossy().into_owned());
        let original = json_of(&testdata("models").join(original), "config.json");
        for key in ["architectures", "model_type", "vocab_size"] {
            assert_eq!(config[key], original[key], "{}: {key}", path.display());
        }
        assert_eq!(config["torch_dtype"], "float32", "{}", path.display());
    }
}

/// Sizes that are not those of any tiny checkpoint.
#[derive(Clone, Copy)]
struct Sizes {
    hidden: usize,
    inner: usize,
    heads: usize,
    key_heads: usize,
    head: usize,
    blocks: usize,
}

impl Sizes {
    /// What transformers' class has under the name, where a checkpoint has `dims`: outputs and inputs of a layer.
    fn dims(&self, name: &str, dims: &[usize]) -> Vec<usize> {
        let Sizes { hidden, inner, heads, key_heads, head, .. } = *self;
        let (query, key) = (heads * head, key_heads * head);
        let has = |parts: &[&str]| parts.iter().any(|part| name.contains(part));
        let (out, input) = match () {
            () if has(&["c_attn"]) => (3 * hidden, hidden),
            () if has(&["qkv_proj"]) => (query + 2 * key, hidden),
            () if has(&["q_proj", "self.query"]) => (query, hidden),
            () if has(&["k_proj", "v_proj", "self.key", "self.value"]) => (key, hidden),
            () if has(&["o_proj", "attn.c_proj", "attention.output"]) => (hidden, query),
            () if has(&["gate_up_proj"]) => (2 * inner, hidden),
            () if has(&["gate_proj", "up_proj", "c_fc", "intermediate"]) => (inner, hidden),
            () if has(&["down_proj", "mlp.c_proj", "output.dense"]) => (hidden, inner),
            () if has(&["q_norm", "k_norm"]) => (head, 0),
            () if dims.len() == 2 => (dims[0], hidden),
            () => (hidden, 0),
        };
        match dims.len() {
            1 => vec![out],
            _ if has(&[".c_"]) => vec![input, out],
            _ => vec![out, input],
        }
    }

    /// A checkpoint of these sizes whose configuration is that of `model` with `keys`.
    fn folder(&self, model: &Model, keys: &Value, scale: f32) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut config = model.config.json.clone();
        keys.as_object().unwrap().iter().for_each(|(key, value)| config[key] = value.clone());
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let mut entries = BTreeMap::new();
        for tensor in Folder::of(&model.graph).unwrap().tensors {
            let dims = self.dims(&tensor.name, &tensor.dims);
            let parts: Vec<&str> = tensor.name.split('.').collect();
            let number = parts.iter().position(|part| part.parse::<usize>().is_ok());
            let names = (0..if number.is_some() { self.blocks } else { 1 }).map(|block| {
                let block = block.to_string();
                let name: Vec<&str> =
                    parts.iter().enumerate().map(|(at, part)| if Some(at) == number { &block } else { *part }).collect();
                name.join(".")
            });
            entries.extend(names.map(|name| (name.clone(), Entry { name, dtype: Dtype::F32, dims: dims.clone() })));
        }
        let entries: Vec<Entry> = entries.into_values().collect();
        let mut writer =
            Writer::new(File::create(folder.path().join("model.safetensors")).unwrap(), &entries, &BTreeMap::new()).unwrap();
        let mut state = 1u32;
        for entry in &entries {
            let values: Vec<f32> = (0..entry.dims.iter().product::<usize>())
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    scale * ((state >> 8) as f32 / (1 << 24) as f32 - 0.5)
                })
                .collect();
            let mut bytes = Vec::new();
            entry.dtype.encode(&values, &mut bytes);
            writer.append(&bytes).unwrap();
        }
        writer.finish();
        folder
    }
}

/// Another width of everything and another number of blocks: the configuration of the original model, for a graph of these.
#[test]
fn the_configuration_of_a_reshaped_graph_builds_that_graph() {
    let llama = Sizes { hidden: 24, inner: 20, heads: 6, key_heads: 3, head: 8, blocks: 1 };
    let equal = Sizes { hidden: 24, inner: 20, heads: 3, key_heads: 3, head: 8, blocks: 1 };
    let keys = |s: &Sizes| {
        json!({
            "hidden_size": s.hidden, "intermediate_size": s.inner, "num_attention_heads": s.heads,
            "num_key_value_heads": s.key_heads, "head_dim": s.head, "num_hidden_layers": s.blocks,
        })
    };
    let gpt2 = json!({ "n_embd": 24, "n_inner": 20, "n_head": 3, "n_layer": 1 });
    for path in tiny() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let model = Model::open(&path).unwrap();
        let (sizes, mut set) = match name.as_str() {
            "tiny-gpt2" => (equal, gpt2.clone()),
            "tiny-bert" => (equal, keys(&equal)),
            _ => (llama, keys(&llama)),
        };
        if name == "tiny-gemma3-softcap" {
            // Of the two kinds of blocks, the second is kept.
            set["layer_types"] = json!(["sliding_attention"]);
        }
        if name == "tiny-phi4-mini" {
            // Factors are for pairs of columns.
            continue;
        }
        if name == "tiny-bert" {
            set.as_object_mut().unwrap().retain(|key, _| key != "head_dim" && key != "num_key_value_heads");
        }
        let there = sizes.folder(&model, &set, 1.0);
        let reshaped = Model::open(there.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let folder = exported(&reshaped, &model.config.json, &Safetensors::default());
        let folder = folder.unwrap_or_else(|error| panic!("{name}: {error}"));
        let config = json_of(folder.path(), "config.json");
        for (key, value) in set.as_object().unwrap() {
            assert_eq!(config[key], *value, "{name}: {key}");
        }
        let others = |config: &Value| {
            let mut config = config.clone();
            let known = set.as_object().unwrap();
            config.as_object_mut().unwrap().retain(|key, _| !known.contains_key(key) && key != "torch_dtype" && key != "dtype");
            config
        };
        assert_eq!(others(&config), others(&model.config.json), "{name}");
        assert_eq!(tensors(folder.path()), tensors(there.path()), "{name}");
    }
}

/// Heads that are as wide as the shares of the stream need no key, and others do.
#[test]
fn the_width_of_a_head_is_said_where_it_does_not_follow() {
    let model = Model::open(&testdata("models/tiny-llama-linear")).unwrap();
    let sizes = Sizes { hidden: 32, inner: 48, heads: 2, key_heads: 2, head: 8, blocks: 2 };
    let keys = json!({ "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8 });
    let narrow = Model::open(sizes.folder(&model, &keys, 1.0).path()).unwrap();
    let config = describe(&model.config.json, &narrow.graph).unwrap();
    assert_eq!(config["head_dim"], 8, "2 heads of 8 columns are not 32");
    let half = Sizes { hidden: 16, ..sizes };
    let keys = json!({ "num_attention_heads": 2, "num_key_value_heads": 2, "hidden_size": 16 });
    let half = Model::open(half.folder(&model, &keys, 1.0).path()).unwrap();
    let config = describe(&model.config.json, &half.graph).unwrap();
    assert_eq!((&config["head_dim"], &config["hidden_size"]), (&Value::Null, &json!(16)));
}

/// `graph` with every line of `block` that holds `at` changed.
fn edited(graph: &Graph, edits: &[(&str, &str, &str)]) -> Graph {
    let change = |line: &str| {
        let mut line = line.to_owned();
        for (at, from, to) in edits {
            if line.contains(at) {
                line = line.replace(from, to);
            }
        }
        line + "\n"
    };
    let text: String = graph.to_string().lines().map(change).collect();
    Graph::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn refused(graph: &Graph) -> Error {
    let error = Safetensors::default().check(graph).expect_err("refused");
    assert!(error.hint().unwrap().contains("checkpoint"), "{error}");
    error
}

#[test]
fn blocks_that_differ_are_refused_by_name_and_left_out_of_what_travels_with_the_graph() {
    let model = Model::open(&testdata("models/tiny-llama-yarn")).unwrap();
    let uneven = edited(&model.graph, &[("blocks.1.mlp.", "[48,", "[40,"), ("blocks.1.mlp.", ", 48]", ", 40]")]);
    let message = refused(&uneven).to_string();
    assert!(message.contains("`blocks.1` has 40 channels in its MLP; expected 48"), "{message}");
    let config = describe_in_part(&model.config.json, &uneven);
    let mut wanted = model.config.json.clone();
    wanted.as_object_mut().unwrap().remove("intermediate_size");
    assert_eq!(config, wanted);
    assert_eq!(describe_in_part(&model.config.json, &model.graph), model.config.json);
}

#[test]
fn heads_that_gpt2_cannot_say_are_refused() {
    let model = Model::open(&testdata("models/tiny-gpt2")).unwrap();
    let mut edits = vec![("split_heads", "{heads = 4}", "{heads = 3}"), ("attention.output", "[32, 32]", "[32, 24]")];
    for at in ["attention.query", "attention.key", "attention.value"] {
        edits.extend([(at, "[32, 32]", "[24, 32]"), (at, "bias\": [32]", "bias\": [24]")]);
    }
    let message = refused(&edited(&model.graph, &edits)).to_string();
    assert!(message.contains("`blocks.0` has 3 query heads of 8 columns; expected 32 columns in all"), "{message}");
}

#[test]
fn what_transformers_has_no_place_for_is_refused() {
    let model = Model::open(&testdata("models/tiny-llama-yarn")).unwrap();
    let other = edited(&model.graph, &[("blocks.0.mlp.up", "blocks.0.mlp.up", "blocks.0.mlp.other")]);
    assert!(refused(&other).to_string().contains("`blocks.0.mlp.other` has no place in it"));
    let rounds = edited(
        &model.graph,
        &[("b0.query = linear b0.attention_in", "b0.query = ", "b0.rounded = quantize b0.attention_in {bits = 8}\n b0.query = ")],
    );
    assert!(matches!(refused(&rounds), Error::Node { op: "quantize", .. }));
    let mut codes = model.graph.clone();
    let (id, expr) =
        codes.weights().find(|(_, value, _)| value.name == "blocks.1.mlp.up").map(|(id, _, e)| (id, e.clone())).unwrap();
    codes.replace_weight(id, Encoding::Quantized("int4/g16".parse().unwrap()), expr);
    assert!(matches!(refused(&codes), Error::Weight { tensor, .. } if tensor == "blocks.1.mlp.up"));
}

/// Nothing of the sizes is wrong, and still another function would be computed.
#[test]
fn a_configuration_of_another_function_is_refused_before_anything_is_written() {
    let model = Model::open(&testdata("models/tiny-llama-yarn")).unwrap();
    let mut config = model.config.json.clone();
    config["rms_norm_eps"] = json!(1e-6);
    let error = exported(&model, &config, &Safetensors::default()).expect_err("another epsilon");
    assert!(error.to_string().contains("`b0.attention_in` has"), "{error}");
    let error = exported(&model, &Value::Null, &Safetensors::default()).expect_err("no configuration");
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn numbers_are_rounded_on_request_and_do_not_overflow() {
    let model = Model::open(&testdata("models/tiny-qwen2")).unwrap();
    for (dtype, name) in [(Numbers::Bf16, "bfloat16"), (Numbers::F16, "float16"), (Numbers::F32, "float32")] {
        let folder = exported(&model, &model.config.json, &Safetensors { dtype, ..Safetensors::default() }).unwrap();
        assert_eq!(json_of(folder.path(), "config.json")["torch_dtype"], name);
    }
    let sizes = Sizes { hidden: 32, inner: 48, heads: 4, key_heads: 2, head: 8, blocks: 2 };
    let large = Model::open(sizes.folder(&model, &json!({}), 4e5).path()).unwrap();
    exported(&large, &model.config.json, &Safetensors { dtype: Numbers::Bf16, ..Safetensors::default() }).unwrap();
    let error = exported(&large, &model.config.json, &Safetensors { dtype: Numbers::F16, ..Safetensors::default() });
    let error = error.expect_err("too large");
    assert!(matches!(&error, Error::Overflow { dtype: "f16", .. }) && error.hint().unwrap().contains("bf16"), "{error}");
}

#[test]
fn large_weights_are_divided_among_files() {
    let model = Model::open(&testdata("models/tiny-phi3")).unwrap();
    let format = Safetensors { shard_bytes: Size(8000), ..Safetensors::default() };
    let (folder, whole) = (
        exported(&model, &model.config.json, &format).unwrap(),
        exported(&model, &model.config.json, &Safetensors::default()).unwrap(),
    );
    let index = json_of(folder.path(), "model.safetensors.index.json");
    let files: std::collections::BTreeSet<&str> =
        index["weight_map"].as_object().unwrap().values().filter_map(Value::as_str).collect();
    assert!(files.len() > 2 && files.contains(format!("model-00002-of-{:05}.safetensors", files.len()).as_str()), "{files:?}");
    assert!(!folder.path().join("model.safetensors").exists());
    assert_eq!(tensors(folder.path()), tensors(whole.path()));
}

#[test]
fn a_model_without_a_tokenizer_is_noted() {
    let model = Model::open(&testdata("models/tiny-llama-yarn")).unwrap();
    let format = target("safetensors").unwrap().default_format().unwrap();
    let side = Side { config: model.config.json.clone(), ..Side::default() };
    let folder = tempfile::tempdir().unwrap();
    let input = Input { graph: &model.graph, source: &*model.source, side: &side };
    let artifact = format.write(&input, folder.path(), &mut |_, _| ()).unwrap();
    assert!(artifact.notes[0].contains("no tokenizer"), "{:?}", artifact.notes);
    assert_eq!(artifact.tensors, format.check(&model.graph).unwrap().tensors);
}
