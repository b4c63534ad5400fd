//! `for = "DEVICE"` and `--for`: target and options come from the device, and what it does not take is refused before any work.

use crate::room::Room;

const MODEL: &str = "testdata/models/shakespeare-1m";

const RECIPE: &str =
    "recipe = 1\nmodel = \"MODEL\"\noutput = \"out\"\n[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\n";

fn room(more: &str) -> Room {
    let room = Room::new();
    room.write("recipe.toml", &(RECIPE.replace("MODEL", MODEL) + more));
    room
}

#[test]
fn what_a_device_does_not_take_is_an_error_of_the_plan() {
    let asymmetric = "asymmetric = true\n";
    let room = room(&format!("{asymmetric}[[export]]\nfor = \"intel-npu\"\n"));
    for verb in ["plan", "run"] {
        let said = room.attar(&[verb, "recipe.toml"]).exits(2);
        for words in
            ["Intel NPU takes symmetric int4", "28 weights are int4/g64/asymmetric", "set `asymmetric = false`", "recipe.toml:9"]
        {
            said.says(words);
        }
    }
    assert!(!room.path("out").exists());
    room.write("recipe.toml", &(RECIPE.replace("MODEL", MODEL) + asymmetric));
    room.attar(&["plan", "recipe.toml"]).exits(0);
    room.attar(&["plan", "recipe.toml", "--for", "intel-npu"]).exits(2).says("set `asymmetric = false`");
    room.attar(&["plan", "recipe.toml", "--for", "intel-cpu"]).exits(0);
}

#[test]
fn a_device_chooses_target_and_options() {
    let room = room(
        "[[export]]\nfor = \"intel-npu\"\n[[export]]\nfor = \"onnx-cpu\"\n[[export]]\nfor = \"onnx-cpu\"\nfolder = \"exact\"\naccuracy_level = 0\n",
    );
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    assert!(room.path("out/intel-npu/openvino_model.xml").exists());
    let options = |folder: &str| room.json(&format!("out/{folder}/artifact.json"))["options"].clone();
    assert_eq!(
        options("onnx-cpu"),
        serde_json::json!({ "layout": "matmul-nbits", "style": "fused", "accuracy_level": 4, "logits": "all" })
    );
    assert_eq!(options("exact")["accuracy_level"], 0);
    room.attar(&["export", MODEL, "--for", "intel-cpu", "--out", "cpu", "--quiet"]).exits(0);
    assert!(room.path("cpu/openvino_model.xml").exists());
}

#[test]
fn devices_and_targets_that_do_not_fit_are_refused() {
    let said = |more: &str| {
        let room = room(more);
        room.attar(&["plan", "recipe.toml"]).exits(2)
    };
    said("[[export]]\nfor = \"intel-gpu\"\n").says("no device is named `intel-gpu`; known: intel-npu");
    said("[[export]]\nfor = \"intel-npu\"\ntarget = \"onnx\"\n").says("takes target `openvino`, not `onnx`");
    said("[[export]]\nfor = \"intel-npu\"\nlayout = \"matmul-nbits\"\n").says("has no key `layout`");
    said("[[export]]\nfolder = \"x\"\n").says("has no `target`");
    let last = "[[export]]\ntarget = \"onnx\"\nlogits = \"last\"\n[[eval]]\nname = \"e\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nrunners = [\"onnxruntime\"]\n";
    said(last).says("needs the logits of all tokens");
    let room = Room::new();
    room.attar(&["export", MODEL, "--out", "out"]).exits(2).says("--target");
    room.attar(&["export", MODEL, "--for", "nothing", "--out", "out"]).exits(2).says("intel-npu");
}

/// What a phone's runtimes cannot hold is said at the line that asks for it.
#[test]
fn phones_take_what_their_runtimes_multiply() {
    let room = Room::new();
    let refused = |recipe: String, words: &[&str]| {
        room.write("recipe.toml", &recipe);
        let said = room.attar(&["plan", "recipe.toml"]).exits(2);
        words.iter().for_each(|words| said.says(words));
    };
    let usual = RECIPE.replace("MODEL", MODEL);
    let positive = format!("{usual}positive_scales = true\n");
    let (android, hexagon) = ("[[export]]\nfor = \"android-cpu\"\n", "[[export]]\nfor = \"hexagon\"\n");
    refused(format!("{usual}{android}"), &["with positive scales", "set `positive_scales = true`"]);
    let long =
        ["`context` of target `litert-lm` is 100000; at most the 512 tokens that the model takes can be", "recipe.toml:11"];
    refused(format!("{positive}{android}context = 100000\n"), &long);
    refused(format!("{positive}{android}context = 64\nprefill = [8, 128]\n"), &["`prefill`", "recipe.toml:12"]);
    refused(format!("{positive}{hexagon}soc = \"sm9999\"\n"), &["sm8750", "recipe.toml:11"]);
    refused(format!("{}{hexagon}", usual.replace("64", "\"row\"")), &["set `group = 32`"]);
    room.write("recipe.toml", &format!("{positive}{android}{hexagon}"));
    let planned = room.attar(&["plan", "recipe.toml"]).exits(0).stdout;
    assert!(planned.contains("write qnn to hexagon"), "{planned}");
}

/// An activation in integers, and a model that names no end, are no matter of weights, and said in the plan, too.
#[test]
fn what_else_a_phone_cannot_run_is_said_in_the_plan() {
    let room = Room::new();
    let static_ = "[data.calibration]\npath = \"testdata/evals/shakespeare-valid.txt\"\nsamples = 2\nlength = 64\n[[step]]\nkind = \"activations\"\nmode = \"static\"\n";
    room.write("recipe.toml", &(RECIPE.replace("MODEL", MODEL) + static_ + "[[export]]\ntarget = \"qnn\"\n"));
    room.attar(&["plan", "recipe.toml"]).exits(2).says("`values = \"linear\"`");
    let folder = room.path("endless");
    std::fs::create_dir(&folder).unwrap();
    for name in ["model.safetensors", "tokenizer.json"] {
        std::fs::copy(crate::room::repository().join(MODEL).join(name), folder.join(name)).unwrap();
    }
    let config = std::fs::read_to_string(crate::room::repository().join(MODEL).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().remove("eos_token_id");
    room.write("endless/config.json", &config.to_string());
    room.attar(&["export", "endless", "--target", "litert-lm", "--out", "out"]).exits(2).says("which token ends a text");
    assert!(!room.path("out/model.litertlm").exists());
}
