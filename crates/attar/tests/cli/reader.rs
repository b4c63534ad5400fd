//! `testdata/oracle/reader.py`, written from `docs/formats.md`, reads what attar writes, bit by bit as attar does. It needs numpy,
//! which the environments of the engines have.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{
    checkpoint::Llama,
    engine::engines,
    room::{Room, skip},
};

const READER: &str = "testdata/oracle/reader.py";

/// Rows of 45 columns: they end within a byte, and groups of 7 leave a short one.
const DOWN: [&str; 5] = [
    "grid = 'int3'",
    "grid = 'int5'\nasymmetric = true",
    "grid = 'ternary'",
    "grid = 'lut3'",
    "grid = 'int6'\npositive_scales = true",
];

/// Every grid that is left, and every format of scales.
const OTHERS: [&str; 18] = [
    "grid = 'int8'\ngroup = 'row'\nasymmetric = true\nscale_dtype = 'f32'",
    "grid = 'int4'\ngroup = 'tensor'\nasymmetric = true\nscale_dtype = 'bf16'",
    "grid = 'int2'\ngroup = 8\nscale_dtype = 'int4'",
    "grid = 'int4'\ngroup = 8\nscale_dtype = 'int6'\npositive_scales = true",
    "grid = 'int5'\ngroup = 8\nscale_dtype = 'int8'\nasymmetric = true",
    "grid = 'int6'\ngroup = 8\nscale_dtype = 'e8m0'\nasymmetric = true",
    "grid = 'int4'\ngroup = 8\nscale_dtype = 'e4m3'",
    "grid = 'nf4'\ngroup = 8",
    "grid = 'gauss4'\ngroup = 8",
    "grid = 'gauss3'\ngroup = 8",
    "grid = 'mxfp4'\ngroup = 32\nscale_dtype = 'e8m0'",
    "grid = 'nvfp4'\ngroup = 16\nscale_dtype = 'e4m3'",
    "grid = 'fp8_e4m3'\ngroup = 'row'",
    "grid = 'fp8_e5m2'\ngroup = 'row'",
    "grid = 'lut4'\ngroup = 'tensor'",
    "grid = 'lut2'\ngroup = 'row'\nscale_dtype = 'bf16'",
    "grid = 'lut1'\ngroup = 8\nscale_dtype = 'f32'",
    "grid = 'int3'\ngroup = 'row'",
];

const MATRICES: [&str; 6] = ["attention.query", "attention.key", "attention.value", "attention.output", "mlp.gate", "mlp.up"];

fn python() -> Option<PathBuf> {
    let python = PathBuf::from(engines()?).join("onnxruntime/bin/python");
    if !python.exists() {
        // An engine's environment can be elsewhere than in the folder of all engines.
        skip("there is no Python with numpy in ATTAR_ENGINES");
        return None;
    }
    Some(python)
}

/// The reader's lines, each without its encoding: name, shape, sums and digest.
fn read(room: &Room, python: &Path, folder: &str) -> Vec<String> {
    let said = room.finish(room.other_command(&python.to_string_lossy(), &["-W", "error", READER, folder])).exits(0);
    let without_encoding = |line: &str| {
        let (weight, rest) = line.split_once("] ").expect("a name and a shape");
        let (_, numbers) = rest.split_once(' ').expect("an encoding");
        format!("{weight}] {numbers}")
    };
    said.stdout.lines().map(without_encoding).collect()
}

/// A graph in which every weight is decoded: `f32 = round(tensor("…"), f32)`. Integers stay.
fn in_f32(graph: &str) -> String {
    let mut parts = graph.split("weight(\"");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = part.split_once("\": ").expect("a weight has a shape");
        let (dims, rest) = rest.split_once("] ").expect("a weight has a shape");
        let (encoding, rest) = rest.split_at(rest.find([' ', ')']).expect("a weight ends"));
        let (source, rest) = match rest.strip_prefix(" = ") {
            Some(rest) => rest.split_once("))").map(|(source, rest)| (format!("{source})"), rest)).expect("a source ends"),
            None => (format!("tensor(\"{name}\")"), &rest[1..]),
        };
        let decoded = match encoding {
            "i8" | "i16" => format!("{encoding} = {source}"),
            _ => format!("f32 = round({source}, f32)"),
        };
        text += &format!("weight(\"{name}\": {dims}] {decoded}){rest}");
    }
    text
}

/// What attar decodes of `folder`, as the folder `FOLDER-decoded`.
fn decode(room: &Room, folder: &str) -> String {
    let copy = format!("{folder}-copy");
    fs::create_dir_all(room.path(&copy)).expect("room for it");
    // Without `artifact.json`, which has the digests of the files as they were.
    for name in ["attar.json", "model.safetensors", "config.json", "generation_config.json", "tokenizer.json"] {
        let from = room.path(folder).join(name);
        if from.exists() {
            fs::copy(from, room.path(&copy).join(name)).expect("room for it");
        }
    }
    room.write(&format!("{copy}/graph.ir"), &in_f32(&room.read(&format!("{folder}/graph.ir"))));
    let decoded = format!("{folder}-decoded");
    room.attar(&["export", &copy, "--target", "checkpoint", "--out", &decoded]).exits(0);
    decoded
}

/// The reader and attar make the same numbers of that checkpoint folder.
pub(crate) fn reads_as_attar_does(room: &Room, folder: &str) {
    let Some(python) = python() else { return };
    let (found, wanted) = (read(room, &python, folder), read(room, &python, &decode(room, folder)));
    assert!(!found.is_empty());
    assert_eq!(found, wanted, "{folder}");
}

#[test]
fn the_reader_in_python_reads_every_number_format() {
    let room = Room::new();
    Llama { hidden: 40, intermediate: 45, blocks: 5, vocabulary: 64, shards: 1 }.write(&room.path("model"));
    let downs = (0..5).map(|block| format!("blocks.{block}.mlp.down")).zip(DOWN);
    let others = (0..5).flat_map(|block| MATRICES.map(|matrix| format!("blocks.{block}.{matrix}"))).zip(OTHERS);
    let overrides: String =
        downs.chain(others).map(|(name, format)| format!("[[step.override]]\nselect = ['{name}']\n{format}\n\n")).collect();
    let step = "[[step]]\nkind = 'quantize'\ngrid = 'int4'\ngroup = 7\ntail = 'short'\nlost = 'report'\n\n";
    let head = "recipe = 1\nmodel = 'model'\noutput = 'out'\n\n";
    room.write("recipe.toml", &format!("{head}{step}{overrides}[[export]]\ntarget = 'checkpoint'\n"));
    room.attar(&["run", "recipe.toml"]).exits(0);
    // True bits are what lies in the file.
    let artifact: serde_json::Value = serde_json::from_str(&room.read("out/checkpoint/artifact.json")).expect("JSON");
    for tensor in artifact["tensors"].as_array().expect("a list") {
        let bits = |name: &str| tensor[name].as_u64().expect("a number");
        assert_eq!(bits("true_bits"), 8 * bits("stored_bytes"), "{tensor}");
    }
    reads_as_attar_does(&room, "out/checkpoint");
}

#[test]
fn the_reader_in_python_reads_what_steps_make() {
    let room = Room::new();
    let (model, text) = ("testdata/models/shakespeare-1m", "testdata/evals/shakespeare-valid.txt");
    let calibration = ["--calibration", text, "--samples", "4", "--length", "64"];
    let plain: [(&str, &[&str]); 6] = [
        // All gains are one tensor, and so are all rotations.
        ("rotated", &["rotate", model, "--mlp", "--tables", "f16"]),
        ("six-bits", &["quantize", "rotated", "--grid", "int3", "--group", "64", "--scale-dtype", "int6"]),
        ("tied", &["quantize", model, "--select", "**", "--grid", "int8", "--group", "row"]),
        ("head", &["quantize", model, "--select", "lm_head", "--grid", "int8", "--group", "row"]),
        ("fused", &["fuse", "six-bits"]),
        ("encoder", &["quantize", "testdata/models/tiny-bert", "--grid", "int5", "--group", "16", "--asymmetric"]),
    ];
    let calibrated: [(&str, &[&str]); 2] = [
        ("static", &["activations", "tied", "--mode", "static", "--values", "all", "--asymmetric"]),
        ("sparse", &["prune", model, "--sparsity", "2:4"]),
    ];
    for (folder, arguments) in plain {
        room.attar(&[arguments, &["--out", folder]].concat()).exits(0);
        reads_as_attar_does(&room, folder);
    }
    for (folder, arguments) in calibrated {
        room.attar(&[arguments, &calibration[..], &["--out", folder]].concat()).exits(0);
        reads_as_attar_does(&room, folder);
    }
    let shared =
        |folder: &str, name: &str| room.read(&format!("{folder}/graph.ir")).matches(&format!("= tensor({name:?})")).count();
    assert_eq!((shared("rotated", "blocks.0.attention_norm"), shared("rotated", "blocks.0.mlp_rotation")), (8, 3));
    assert_eq!((shared("tied", "embedding"), shared("head", "embedding")), (1, 0));
}
