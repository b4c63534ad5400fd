//! Artifacts are what was written when they are run, and compilers of vendors that are absent are said to be.

use std::fs;

use crate::room::Room;

const MODEL: &str = "testdata/models/shakespeare-1m";
const TEXT: &str = "testdata/evals/shakespeare-valid.txt";

fn exported(target: &str) -> Room {
    let room = Room::new();
    room.attar(&["export", MODEL, "--target", target, "--out", "made"]).exits(0);
    room
}

/// Every file counts, and every way to damage it; no engine is asked.
#[test]
fn a_damaged_artifact_is_not_run() {
    let room = exported("onnx");
    let manifest = room.json("made/artifact.json");
    let files: Vec<&str> = manifest["files"].as_array().unwrap().iter().map(|file| file["name"].as_str().unwrap()).collect();
    assert!(files.contains(&"model.onnx.data") && files.contains(&"tokenizer.json"), "{files:?}");
    room.write("recipe.toml", &format!("recipe = 1\nartifact = \"made\"\noutput = \"out\"\n[[eval]]\nname = \"e\"\ndata = \"{TEXT}\"\nrunners = [\"onnxruntime\"]\nrequired = false\n"));
    for name in files {
        let path = room.path("made").join(name);
        let whole = fs::read(&path).unwrap();
        let flipped = whole.iter().enumerate().map(|(at, byte)| if at == whole.len() / 2 { byte ^ 1 } else { *byte }).collect();
        for (damaged, what) in [(Some(flipped), "has the digest"), (Some(whole[1..].to_vec()), "has "), (None, "is missing")] {
            match damaged {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let generate = ["generate", "made", "--prompt", "x"];
            for arguments in [&generate[..], &["eval", "made", "--data", TEXT], &["run", "recipe.toml"]] {
                let said = room.attar(arguments);
                // Without the file by which it is known, nothing but its manifest says that it is an artifact.
                assert_eq!(said.code, Some(3), "{name}, {}: {}", said.command, said.stderr);
                assert!(said.stderr.contains(&format!("`made/{name}` {what}")), "{name}, {}: {}", said.command, said.stderr);
            }
        }
        fs::write(&path, whole).unwrap();
    }
    // Now it is the engine that is absent.
    room.attar(&["generate", "made", "--prompt", "x"]).exits(3).says("ONNX Runtime is not installed");
    room.write("made/artifact.json", "{");
    room.attar(&["generate", "made", "--prompt", "x"]).exits(3).says("does not describe an artifact");
    fs::remove_file(room.path("made/artifact.json")).unwrap();
    room.attar(&["generate", "made", "--prompt", "x"]).exits(3).says("ONNX Runtime is not installed");
}

#[test]
fn predictions_of_a_compiler_that_is_absent_are_not_made() {
    let room = exported("openvino");
    let said = room.attar(&["predict", "made"]).exits(3);
    said.says("Intel's NPU compiler is not installed");
    room.attar(&["predict", "made", "--device", "5000"]).exits(2).says("known: 4000, 5010, 5020, 3720");
    room.attar(&["predict", MODEL]).exits(2).says("there is no `openvino_model.xml`");
    let head = "recipe = 1\nartifact = \"made\"\noutput = \"out\"\n[[predict]]\ncompiler = \"openvino-npu\"\n";
    let run = |more: &str| {
        room.write("recipe.toml", &format!("{head}{more}"));
        room.attar(&["run", "recipe.toml"])
    };
    run("").exits(3).says("Intel's NPU compiler is not installed");
    run("required = false\n").exits(0);
    assert!(room.read("out/report.md").contains("| openvino-npu (4000) | not run |"), "{}", room.read("out/report.md"));
    let gate = "[[gate]]\nmetric = \"device/latency\"\nrunner = \"openvino-npu\"\nat_most = 1\n";
    let said = run(gate).exits(1);
    assert!(said.stdout.contains("NOT RUN"), "{}", said.stdout);
    run("device = \"5000\"\n").exits(2).says("has no device `5000`");
    run("prompt = 0\n").exits(2).says("`prompt` is 0");
    run("[[gate]]\nmetric = \"device/latency\"\nrunner = \"vela\"\nat_most = 1\n").exits(2).says("`vela` predicts nothing");
    room.write(
        "recipe.toml",
        &format!("recipe = 1\nmodel = \"{MODEL}\"\noutput = \"o\"\n[[predict]]\ncompiler = \"openvino-npu\"\n"),
    );
    room.attar(&["plan", "recipe.toml"]).exits(2).says("add `[[export]]` with `target = \"openvino\"`");
}

/// A table that the head shares can get codes of its own, in a checkpoint of attar, where both are one tensor, too.
#[test]
fn one_of_two_tied_weights_can_be_quantized_apart() {
    let room = Room::new();
    let quantize = |model: &str, select: &str, out: &str| {
        room.attar(&["quantize", model, "--grid", "int8", "--group", "row", "--select", select, "--out", out]).exits(0);
    };
    let perplexity = |model: &str| {
        let said = room.attar(&["eval", model, "--data", TEXT, "--window", "128", "--tokens", "512", "--json"]).exits(0);
        said.json()["perplexity"]["value"].as_f64().unwrap()
    };
    quantize(MODEL, "blocks.*.mlp.*", "both");
    for (apart, kept) in [("embedding", "lm_head"), ("lm_head", "embedding")] {
        let out = format!("apart-{apart}");
        quantize("both", apart, &out);
        let tensors = room.attar(&["inspect", &out, "--json"]).exits(0).json()["tensors"].clone();
        let encoding = |name: &str| {
            let found = tensors.as_array().unwrap().iter().find(|tensor| tensor["name"] == name);
            found.unwrap_or_else(|| panic!("{name}: {tensors}"))["encoding"].as_str().unwrap().to_owned()
        };
        assert_eq!((encoding(apart).as_str(), encoding(kept).as_str()), ("int8/row", "bf16"));
        let (before, after) = (perplexity("both"), perplexity(&out));
        assert!((after / before - 1.0).abs() < 0.02, "{apart}: {before} became {after}");
    }
}
