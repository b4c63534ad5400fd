//! Every architecture on the real binary: quantized by every algorithm, written, opened again; what a verb or a step cannot do
//! with one is refused by name.

use std::{fs, path::PathBuf};

use attar_compress::QUANTIZERS;
use attar_graph::{Inputs, Mode, Run, SourceWeights};
use attar_model::{ARCHITECTURES, Architecture, Model};
use attar_tensor::{Encoding, safetensors::Shards};

use crate::{
    room::{Room, assert_same_files, repository},
    snapshot::Session,
};

/// The cosine between the outputs of a model at 4 bits, 8 weights to a scale, and those of the model as it was.
const LEAST_COSINE: f64 = 0.9;

/// A tiny checkpoint of every architecture, in the order of the documentation.
fn one_of_each() -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join("testdata/models")).expect("it is in the repository").flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.sort();
    let is_of = |folder: &PathBuf, wanted: &Architecture| {
        let graph = Model::open(folder).expect("it opens").graph;
        Architecture::of(&graph).is_some_and(|found| found.names == wanted.names)
    };
    let first = |wanted: &&Architecture| {
        let tiny = folders.iter().find(|folder| is_tiny(folder) && is_of(folder, wanted));
        tiny.unwrap_or_else(|| panic!("{} has a tiny checkpoint", wanted.names[0])).clone()
    };
    ARCHITECTURES.iter().map(first).collect()
}

fn is_tiny(folder: &std::path::Path) -> bool {
    folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("tiny-"))
}

/// The room's `model`: the checkpoint, with the tokenizer of the one that has one.
fn copy(room: &Room, from: &std::path::Path) {
    let _ = fs::remove_dir_all(room.path("model"));
    fs::create_dir_all(room.path("model/1_Pooling")).expect("the room is writable");
    let tokenizer = repository().join("testdata/models/tiny-bert/tokenizer.json");
    fs::copy(tokenizer, room.path("model/tokenizer.json")).expect("room for it");
    for name in ["", "1_Pooling"] {
        for entry in fs::read_dir(from.join(name)).into_iter().flatten().flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), room.path("model").join(name).join(entry.file_name())).expect("room for it");
        }
    }
}

fn recipe(steps: &str, exports: &str) -> String {
    format!(
        "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n\n[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\n\
         samples = 8\nlength = 32\n\n{steps}\n{exports}"
    )
}

fn quantize(algorithm: &str) -> String {
    format!("[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 8\nalgorithm = \"{algorithm}\"\n")
}

/// What the model returns for the tokens of its golden file, and what it returned before.
fn outputs(model: &Model, folder: &std::path::Path) -> [Vec<f32>; 2] {
    let golden = Shards::open(&[folder.join("golden.safetensors")], &Default::default()).expect("it is golden");
    let values = |name: &str| {
        use attar_tensor::Source;
        let info = golden.info(name).ok()?;
        let mut values = vec![0.0; info.elements()];
        golden.read(name, 0..info.matrix()[0], &mut values).expect("it is listed");
        Some(values)
    };
    let tokens: Vec<u32> = values("input_ids").expect("it has tokens").into_iter().map(|token| token as u32).collect();
    let weights = SourceWeights(model.source.clone());
    let lane = Inputs::tokens(&[&tokens], 0).expect("one window");
    let (output, _) = Run::new(&model.graph, &weights, Mode::Inference, vec![lane]).finish(0).expect("it runs");
    let found = output[0].flatten_all().and_then(|output| output.to_vec1()).expect("numbers");
    [found, values("logits").or(values("one_segment_embedding")).expect("it has outputs")]
}

fn cosine([a, b]: [Vec<f32>; 2]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
    dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt()
}

#[test]
fn every_architecture_is_quantized_by_every_algorithm() {
    for folder in one_of_each() {
        for quantizer in QUANTIZERS {
            let (room, algorithm) = (Room::new(), quantizer.name());
            copy(&room, &folder);
            room.write("recipe.toml", &recipe(&quantize(algorithm), "[[export]]\ntarget = \"checkpoint\"\nfolder = \"c\"\n"));
            room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
            let model = Model::open(&room.path("out/c")).expect("it was just written");
            let what = format!("{}, {algorithm}", folder.display());
            for (_, value, _) in model.graph.weights() {
                let is_matrix = value.name.starts_with("blocks.") && value.fact.dims.len() == 2;
                let is_quantized = matches!(value.fact.encoding, Encoding::Quantized(_));
                assert!(!is_matrix || is_quantized, "{what}: `{}` is {}", value.name, value.fact.encoding);
            }
            let cosine = cosine(outputs(&model, &folder));
            assert!((LEAST_COSINE..0.999_999).contains(&cosine), "{what}: {cosine}");
        }
    }
}

/// A second run finds every file as it was, also in the folder of an encoder's pooling.
#[test]
fn every_architecture_becomes_a_hugging_face_folder_that_every_command_reads() {
    for folder in one_of_each() {
        let room = Room::new();
        copy(&room, &folder);
        let export = ["export", "model", "--target", "safetensors", "--out", "plain"];
        room.attar(&export).exits(0);
        let written = room.files("plain");
        assert!(written.contains_key("config.json") && written.contains_key("tokenizer.json"));
        room.attar(&export).exits(0);
        assert_same_files(&written, &room.files("plain"), "nothing has changed");
        let model = Model::open(&room.path("plain")).expect("it was just written");
        let cosine = cosine(outputs(&model, &folder));
        assert!(cosine > 0.999_999, "{}: {cosine}", folder.display());
        room.write("recipe.toml", &recipe(&quantize("rtn"), "[[export]]\ntarget = \"safetensors\"\n"));
        room.attar(&["plan", "recipe.toml"]).exits(2).says("safetensors holds floating-point numbers");
    }
}

/// An encoder generates no text, and a plan for a device holds blocks of the Llama family, of Phi-3 and of Qwen3 only.
/// A gate that no encoder can meet.
const KL: &str = "[[gate]]\nmetric = \"device/kl\"\nat_most = 1\n";

/// In integers and compiled.
const COMPILED: &str = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 8\nscale_dtype = \"int6\"\n\n\
                        [[step]]\nkind = \"activations\"\nmode = \"static\"\n\n\
                        [[step]]\nkind = \"compile\"\nset = [\"sram=48KiB\"]\nseq = 16\n";

/// Every block of every architecture becomes a plan that equals its reference in every bit, on a part of the SRAM that it could use.
#[test]
fn every_architecture_is_compiled_and_proven() {
    for folder in one_of_each() {
        let room = Room::new();
        copy(&room, &folder);
        let graph = Model::open(&folder).expect("it opens").graph;
        room.write("recipe.toml", &recipe(COMPILED, ""));
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        let report = room.json("out/report.json");
        let blocks = graph.blocks().filter(|block| graph.block_name(*block).starts_with("blocks.")).count();
        let phases = report["variants"][0]["compilations"][0]["phases"].as_array().expect("there are plans");
        assert!(!phases.is_empty(), "{report}");
        for phase in phases {
            assert_eq!(phase["proof"]["blocks"], blocks, "{}: {phase}", folder.display());
        }
    }
}

#[test]
fn what_an_architecture_cannot_do_is_refused_by_name() {
    let mut session = Session::new("architectures");
    let room = Room::new();
    copy(&room, &repository().join("testdata/models/tiny-bert"));
    session.note("text from an encoder", &room.attar(&["generate", "model", "--prompt", "to be"]).exits(3));
    for (what, setting, gate, code) in [
        ("a draft", "verify = 4\n", "", 2),
        ("chunks", "chunk = 4\n", "", 2),
        ("a batch", "batch = 2\n", "", 2),
        ("a gate on logits", "", KL, 2),
    ] {
        room.write("recipe.toml", &recipe(&format!("{COMPILED}{setting}"), gate));
        session.note(&format!("{what} of an encoder"), &room.attar(&["run", "recipe.toml", "--quiet"]).exits(code));
    }
    session.check();
}
