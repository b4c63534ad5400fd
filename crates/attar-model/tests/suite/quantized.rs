//! What another tool quantized reads as its library decodes it, to the bit; what cannot be read is refused by name.
//! `testdata/oracle/quantized.py` makes the folders.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use attar_model::Model;
use serde_json::{Value, json};

use crate::{
    refusing::refused,
    room::{Room, load},
};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/quantized").join(name)
}

fn cases() -> BTreeSet<String> {
    let entries = fs::read_dir(folder("")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn every_format_decodes_to_what_its_library_decodes() {
    let cases = cases();
    assert!(cases.len() >= 13, "{cases:?}");
    for case in cases {
        let model = Model::open(&folder(&case)).unwrap_or_else(|error| panic!("{case}: {error}"));
        let already = model.quantized.as_ref().unwrap();
        assert_eq!(already.weights, 7, "{case}");
        for (name, (dims, wanted)) in load(&folder(&case).join("dense.safetensors")) {
            assert_eq!(model.source.info(&name).unwrap().dims, dims, "{case} {name}");
            let mut whole = vec![0.0; wanted.len()];
            model.source.read(&name, 0..dims[0], &mut whole).unwrap();
            assert_eq!(whole, wanted, "{case} {name}");
            // Rows that start and end within a packed word.
            let mut some = vec![0.0; 10 * dims[1]];
            model.source.read(&name, 3..13, &mut some).unwrap();
            assert_eq!(some, wanted[3 * dims[1]..13 * dims[1]], "{case} {name}");
        }
    }
}

#[test]
fn what_it_was_is_said() {
    let said = |case: &str| Model::open(&folder(case)).unwrap().summary().unwrap().quantized.unwrap();
    assert_eq!(said("gptq-int4-g16"), "already quantized: GPTQ int4 g16, 7 weights");
    assert_eq!(said("fp8-blocks"), "already quantized: FP8 fp8 16x16, 7 weights (its activations, too; here they stay float)");
    let model = Model::open(&folder("awq-int4-g16")).unwrap();
    assert!(model.config.json.get("quantization_config").is_none(), "what is written from it is not AWQ");
}

/// A case with its configuration changed.
fn changed(case: &str, name: &str, change: impl FnOnce(&mut Value)) -> Room {
    let room = Room::new(&format!("quantized-{name}"));
    fs::copy(folder(case).join("model.safetensors"), room.file("model.safetensors")).unwrap();
    let mut config = serde_json::from_slice(&fs::read(folder(case).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    room.json("config.json", &config);
    room
}

#[test]
fn other_methods_are_refused_by_name() {
    for (set, word) in [
        (json!({ "quant_method": "bitsandbytes", "load_in_4bit": true }), "bitsandbytes"),
        (json!({ "load_in_8bit": true }), "bitsandbytes"),
        (json!({ "quant_method": "hqq" }), "HQQ"),
        (json!({ "quant_method": "torchao" }), "torchao"),
        (json!({ "quant_method": "later" }), "later"),
    ] {
        let room = changed("gptq-int4-g16", &format!("method-{word}"), |config| config["quantization_config"] = set);
        let said = refused(room.path());
        assert!(said.contains(word) && said.contains("already quantized") && said.contains("dequantize it"), "{said}");
    }
}

#[test]
fn settings_that_do_not_fit_are_refused_by_key() {
    for (key, value) in [
        ("bits", json!(5)),
        ("bits", json!("four")),
        ("group_size", json!(0)),
        ("group_size", json!(8)),
        ("checkpoint_format", json!("marlin")),
        ("dynamic", json!({ "-:.*": {} })),
        ("rotation", json!("hadamard")),
    ] {
        let room = changed("gptq-int4-g16", &format!("key-{key}-{value}"), |config| {
            config["quantization_config"][key] = value.clone();
        });
        let said = refused(room.path());
        assert!(said.contains(key) || said.contains("qzeros"), "{key} = {value}: {said}");
        assert!(said.starts_with("the weights are already quantized with GPTQ"), "{said}");
    }
}

#[test]
fn zeros_that_a_symmetric_layer_cannot_have_are_refused() {
    let room = changed("ct-pack-int4-asym-act", "symmetric", |config| {
        config["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] = json!(true);
    });
    let said = refused(room.path());
    assert!(said.contains("weight_zero_point") && said.contains("`symmetric` is true"), "{said}");
}

/// Every decoded weight is what the library decoded.
fn decodes_as(case: &str, room: &Room) -> String {
    let model = Model::open(room.path()).unwrap_or_else(|error| panic!("{case}: {error}"));
    for (name, (dims, wanted)) in load(&folder(case).join("dense.safetensors")) {
        let mut whole = vec![0.0; wanted.len()];
        model.source.read(&name, 0..dims[0], &mut whole).unwrap();
        assert_eq!(whole, wanted, "{case} {name}");
    }
    model.quantized.unwrap().to_string()
}

#[test]
fn shapes_say_what_a_configuration_without_groups_does_not() {
    for (case, format) in [
        ("ct-pack-int4-g16", "int4 g16"),
        ("ct-pack-int8-channel", "int8 per row"),
        ("ct-int8-channel", "int8 per row"),
        ("ct-fp8-channel", "fp8 per row"),
        ("ct-fp8-tensor", "fp8 per tensor"),
    ] {
        let room = changed(case, &format!("bare-{case}"), |config| {
            let settings = config["quantization_config"].as_object_mut().unwrap();
            let inner = settings.remove("config_groups").unwrap();
            // Its kind may be said only there.
            settings.entry("format").or_insert_with(|| inner["group_0"]["format"].clone());
        });
        assert!(decodes_as(case, &room).contains(format), "{case}");
    }
    let room = changed("ct-pack-int4-g16", "bare-naive", |config| {
        config["quantization_config"].as_object_mut().unwrap().remove("config_groups");
        config["quantization_config"]["format"] = json!("naive-quantized");
    });
    assert!(refused(room.path()).contains("config_groups"));
}

#[test]
fn each_module_is_of_the_group_that_its_name_fits() {
    let case = "ct-pack-int4-g16";
    let grouped = |name: &str, targets: &[&[&str]], group_size: u64| {
        changed(case, name, |config| {
            let groups = &mut config["quantization_config"]["config_groups"];
            let first = groups["group_0"].clone();
            for (at, targets) in targets.iter().enumerate() {
                groups[format!("group_{at}")] = first.clone();
                groups[format!("group_{at}")]["targets"] = json!(targets);
            }
            groups["group_0"]["weights"]["group_size"] = json!(group_size);
        })
    };
    let named: &[&[&str]] = &[&["re:.*down_proj", "model.layers.0.self_attn.q_proj"], &["Linear"]];
    assert!(decodes_as(case, &grouped("two-groups", named, 16)).contains("int4 g16"));
    // The first group is that of the two modules, whose scales then do not fit.
    let said = refused(grouped("two-groups-other", named, 8).path());
    assert!(said.contains("down_proj.weight_scale") || said.contains("q_proj.weight_scale"), "{said}");
    let said = refused(grouped("two-groups-none", &[&["re:.*down_proj"], &["re:.*up_proj"]], 16).path());
    assert!(said.contains("of no group"), "{said}");
    let said = refused(grouped("two-groups-broken", &[&["re:("], &["Linear"]], 16).path());
    assert!(said.contains("targets"), "{said}");
}

/// The tensors of a case with the header changed: names and types keep their lengths.
fn damaged(case: &str, from: &str, to: &str) -> Room {
    let room = changed(case, &format!("{case}-{from}"), |_| ());
    let mut bytes = fs::read(folder(case).join("model.safetensors")).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
    fs::write(room.file("model.safetensors"), bytes).unwrap();
    room
}

#[test]
fn companions_that_are_missing_are_named() {
    for (case, from, to) in [
        ("gptq-int4-g16", "mlp.down_proj.qzeros", "mlp.down_proj.qzerox"),
        ("awq-int4-g16", "mlp.down_proj.scales", "mlp.down_proj.scalex"),
        ("ct-pack-int4-g16", "mlp.down_proj.weight_shape", "mlp.down_proj.weight_shapx"),
        ("ct-pack-int4-asym-act", "mlp.down_proj.weight_zero_point", "mlp.down_proj.weight_zero_poinx"),
    ] {
        let said = refused(damaged(case, from, to).path());
        assert!(said.contains(from) && said.contains("missing") && said.contains("already quantized"), "{said}");
    }
}

#[test]
fn any_byte_may_be_wrong_without_a_panic() {
    for case in cases() {
        let original = fs::read(folder(&case).join("model.safetensors")).unwrap();
        let room = changed(&case, &format!("{case}-bytes"), |_| ());
        let step = original.len() / 60 + 1;
        for (i, at) in (0..original.len()).step_by(step).enumerate() {
            let mut bytes = original.clone();
            bytes[at] ^= 1 << (i % 8);
            bytes[(at * 7 + 3) % original.len()] ^= 0x80;
            fs::write(room.file("model.safetensors"), bytes).unwrap();
            let Ok(model) = Model::open(room.path()) else { continue };
            for (name, info) in model.source.tensors() {
                let _ = model.source.read(name, 0..info.matrix()[0], &mut vec![0.0; info.elements()]);
            }
        }
    }
}
