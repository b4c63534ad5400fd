//! Checkpoints and data that cannot be used: exit code 3, told why, and no artifact.

use std::fs;

use serde_json::json;

use crate::{
    checkpoint::{Raw, configure, copy, edit},
    room::{Room, Said},
    snapshot::Session,
};

const GATE: &str = "model.layers.1.mlp.gate_proj.weight";
const DOWN: &str = "model.layers.0.mlp.down_proj.weight";
const QUANTIZE: [&str; 8] = ["quantize", "model", "--grid", "int4", "--group", "16", "--out", "out"];

/// A room with a small checkpoint, one f32 file, to be damaged.
fn tiny() -> Room {
    let room = Room::new();
    copy(&room, "tiny-llama-yarn");
    room
}

/// The command fails for its input, and nothing that it promises is there.
#[track_caller]
fn refuses(room: &Room, arguments: &[&str]) -> Said {
    let said = room.attar(arguments).exits(3);
    assert!(room.files("out").is_empty(), "an artifact is there: {:?}", room.files("out").keys());
    said
}

#[test]
fn damaged_safetensors() {
    let mut session = Session::new("damaged-safetensors");
    let mut damaged = |title: &str, damage: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        let room = tiny();
        let path = room.path("model/model.safetensors");
        fs::write(&path, damage(fs::read(&path).unwrap())).unwrap();
        let said = refuses(&room, &QUANTIZE);
        assert!(!room.path("out").exists(), "headers are checked before the output folder is made");
        session.note(title, &said);
    };
    damaged("cut short in its tensors", &|bytes| bytes[..bytes.len() - 1000].to_vec());
    damaged("cut short in its header", &|bytes| bytes[..100].to_vec());
    damaged("cut short in its first bytes", &|bytes| bytes[..5].to_vec());
    damaged("empty", &|_| Vec::new());
    damaged("longer than its tensors", &|bytes| [bytes, vec![0; 7]].concat());
    damaged("a header that claims more than the file", &|bytes| [&u64::MAX.to_le_bytes(), &bytes[8..]].concat());
    damaged("a header that is no JSON", &|mut bytes| {
        bytes[8] = b'?';
        bytes
    });
    session.check();
}

#[test]
fn lying_safetensors_headers() {
    let mut session = Session::new("lying-safetensors");
    let mut lying = |title: &str, lie: &dyn Fn(&mut Raw)| {
        let room = tiny();
        edit(&room, lie);
        let said = refuses(&room, &QUANTIZE);
        assert!(!room.path("out").exists(), "headers are checked before the output folder is made");
        session.note(title, &said);
    };
    lying("tensors that overlap", &|raw| {
        let end = raw.range(GATE).end;
        raw.header[GATE]["data_offsets"][0] = (raw.range(GATE).start - 4).into();
        assert_eq!(raw.range(GATE).end, end);
    });
    lying("a shape that does not fit its bytes", &|raw| raw.header[GATE]["shape"] = json!([48, 31]));
    lying("a type that does not exist", &|raw| raw.header[GATE]["dtype"] = json!("F23"));
    lying("a missing tensor", &|raw| {
        let gate = raw.header.as_object_mut().unwrap().remove(GATE).unwrap();
        raw.header["another"] = gate;
    });
    session.check();
}

#[test]
fn weights_stored_as_something_other_than_floats() {
    let mut session = Session::new("wrong-dtype");
    for (dtype, width) in [("I64", 8), ("I32", 4), ("U8", 1), ("BOOL", 1), ("F8_E4M3", 1)] {
        let room = tiny();
        edit(&room, |raw| raw.replace(GATE, dtype, &[48, 32], &vec![1; 48 * 32 * width]));
        session.note(&format!("a matrix stored as {dtype}"), &refuses(&room, &QUANTIZE));
        assert!(!room.path("out").exists(), "types are checked before the output folder is made");
    }
    session.check();
}

#[test]
fn weights_that_are_not_finite() {
    let mut session = Session::new("not-finite");
    for (name, value) in [("NaN", f32::NAN), ("infinity", f32::INFINITY), ("minus infinity", f32::NEG_INFINITY)] {
        let room = tiny();
        edit(&room, |raw| raw.poke(DOWN, 3 * 48 + 5, value));
        let said = refuses(&room, &QUANTIZE);
        assert!(said.stderr.contains("row 3, column 5"), "{}", said.stderr);
        session.note(&format!("{name} in a matrix that is quantized"), &said);
    }
    let room = tiny();
    edit(&room, |raw| raw.poke("model.embed_tokens.weight", 2 * 32 + 7, f32::NAN));
    session.note("NaN in a matrix that is written as it is", &refuses(&room, &QUANTIZE));
    let onnx = ["export", "model", "--target", "onnx", "--out", "out"];
    fs::remove_dir_all(room.path("out")).unwrap();
    session.note("the same on the way to ONNX", &refuses(&room, &onnx));
    session.check();
}

#[test]
fn shards() {
    let mut session = Session::new("shards");
    let sharded = || {
        let room = Room::new();
        copy(&room, "tiny-llama-linear");
        room
    };
    let room = sharded();
    fs::remove_file(room.path("model/model-00002-of-00002.safetensors")).unwrap();
    session.note("a shard that is missing", &refuses(&room, &QUANTIZE));
    let room = sharded();
    let path = room.path("model/model-00002-of-00002.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    session.note("a shard that is cut short", &refuses(&room, &QUANTIZE));
    let room = sharded();
    fs::copy(room.path("model/model-00001-of-00002.safetensors"), room.path("model/model-00002-of-00002.safetensors")).unwrap();
    session.note("a shard with the content of another", &refuses(&room, &QUANTIZE));
    let room = sharded();
    room.write("model/model.safetensors.index.json", "{ \"weight_map\": [");
    session.note("an index that is no JSON", &refuses(&room, &QUANTIZE));
    session.check();
}

#[test]
fn gguf() {
    let mut session = Session::new("gguf");
    let whole = fs::read(crate::room::repository().join("testdata/gguf/every-type.gguf")).unwrap();
    let mut damaged = |title: &str, damage: &dyn Fn(&mut Vec<u8>)| {
        let room = Room::new();
        let mut bytes = whole.clone();
        damage(&mut bytes);
        fs::write(room.path("model.gguf"), bytes).unwrap();
        session.note(title, &refuses(&room, &["quantize", "model.gguf", "--grid", "int4", "--out", "out"]));
        session.note(&format!("{title}, inspected"), &room.attar(&["inspect", "model.gguf"]).exits(3));
        assert!(!room.path("out").exists());
    };
    // "GGUF", version: u32, tensors: u64, metadata entries: u64.
    damaged("more tensors than it has", &|bytes| bytes[8..16].copy_from_slice(&100u64.to_le_bytes()));
    damaged("more tensors than it could have", &|bytes| bytes[8..16].copy_from_slice(&(1u64 << 60).to_le_bytes()));
    damaged("more metadata than it could have", &|bytes| bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes()));
    damaged("cut short", &|bytes| bytes.truncate(bytes.len() - 500));
    damaged("another version", &|bytes| bytes[4] = 9);
    damaged("not GGUF", &|bytes| bytes[0] = b'X');
    damaged("an architecture that is not known", &|_| {});
    session.check();
}

#[test]
fn configurations() {
    let mut session = Session::new("configurations");
    let mut configured = |title: &str, change: &dyn Fn(&Room)| {
        let room = tiny();
        change(&room);
        session.note(title, &refuses(&room, &QUANTIZE));
        assert!(!room.path("out").exists(), "configurations are checked before the output folder is made");
    };
    configured("wider than the tensors", &|room| configure(room, "intermediate_size", json!(64)));
    configured("more blocks than the tensors", &|room| configure(room, "num_hidden_layers", json!(3)));
    configured("fewer blocks than the tensors", &|room| configure(room, "num_hidden_layers", json!(1)));
    configured("a vocabulary other than the embedding's", &|room| configure(room, "vocab_size", json!(97)));
    configured("an unknown architecture", &|room| configure(room, "architectures", json!(["LlamaForCausalLm"])));
    configured("an architecture like no other", &|room| configure(room, "architectures", json!(["Wav2Vec2ForCTC"])));
    configured("a size that is text", &|room| configure(room, "hidden_size", json!("32")));
    configured("no size", &|room| {
        let mut config = room.json("model/config.json");
        config.as_object_mut().unwrap().remove("hidden_size");
        room.write("model/config.json", &config.to_string());
    });
    configured("no heads", &|room| configure(room, "num_attention_heads", json!(0)));
    configured("attention that is not causal", &|room| configure(room, "is_causal", json!(false)));
    configured("a norm that divides by nothing", &|room| configure(room, "rms_norm_eps", json!(-1.0)));
    configured("blocks of two kinds", &|room| {
        configure(room, "architectures", json!(["MistralForCausalLM"]));
        configure(room, "model_type", json!("mistral"));
        configure(room, "layer_types", json!(["full_attention", "sliding_attention"]));
    });
    configured("an activation that is not run", &|room| configure(room, "hidden_act", json!("gelu")));
    configured("not JSON", &|room| room.write("model/config.json", "{ \"architectures\": "));
    configured("missing", &|room| fs::remove_file(room.path("model/config.json")).unwrap());
    session.check();
}

#[test]
fn what_is_no_checkpoint() {
    let mut session = Session::new("no-checkpoint");
    let room = Room::new();
    fs::create_dir(room.path("empty")).unwrap();
    room.write("notes.txt", "not a model");
    for (title, model) in [("an empty folder", "empty"), ("a file of another kind", "notes.txt"), ("nothing", "nowhere")] {
        let arguments = ["quantize", model, "--grid", "int4", "--out", "out"];
        session.note(title, &refuses(&room, &arguments));
        session.note(&format!("{title}, inspected"), &room.attar(&["inspect", model]).exits(3));
        assert!(!room.path("out").exists());
    }
    session.check();
}

#[test]
fn data() {
    let mut session = Session::new("data");
    let recipe = |data: &str| {
        let steps = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n\n[[export]]\ntarget = \"checkpoint\"\n";
        let head = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n";
        format!("{head}\n{steps}\n[[eval]]\nname = \"text\"\ntask = \"perplexity\"\ndata = \"{data}\"\nwindow = 64\n")
    };
    let room = Room::new();
    room.write("missing.toml", &recipe("nowhere.txt"));
    session.note("eval data that is missing", &refuses(&room, &["run", "missing.toml"]));
    assert!(!room.path("out").exists(), "data is looked for before any work");
    fs::write(room.path("binary.txt"), [0xff, 0xfe, 0, 1]).unwrap();
    room.write("empty.txt", "");
    let evaluate = |data: &str| ["eval", "testdata/models/shakespeare-1m", "--data", data].map(String::from);
    for (title, data) in [("no data", "nowhere.txt"), ("data that is no text", "binary.txt"), ("data without text", "empty.txt")]
    {
        let arguments = evaluate(data);
        session.note(title, &refuses(&room, &arguments.each_ref().map(String::as_str)));
    }
    copy(&room, "tiny-llama-yarn");
    room.write("text.txt", "To be, or not to be.");
    session.note("a model without a tokenizer", &refuses(&room, &["eval", "model", "--data", "text.txt", "--window", "16"]));
    session.check();
}
