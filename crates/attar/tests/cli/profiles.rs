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
