//! The ground a run stands on: inputs that change while it reads them, outputs that would lie where inputs are, memory.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Child, Stdio},
    thread::sleep,
    time::Duration,
};

use crate::{
    checkpoint,
    room::{Room, Said, assert_same_files, repository},
};

const RUN: [&str; 3] = ["run", "recipe.toml", "--quiet"];

/// A recipe of many units over a copy of a model and of a text.
fn ready() -> Room {
    let room = Room::new();
    fs::create_dir(room.path("model")).expect("room for it");
    for file in fs::read_dir(repository().join("testdata/models/shakespeare-1m")).expect("room for it").flatten() {
        fs::copy(file.path(), room.path("model").join(file.file_name())).expect("room for it");
    }
    fs::copy(repository().join("testdata/evals/shakespeare-valid.txt"), room.path("text.txt")).expect("room for it");
    room.write(
        "recipe.toml",
        "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n[data.calibration]\npath = \"text.txt\"\nsamples = 16\nlength = 256\n\
         [[step]]\nkind = \"quantize\"\ngrid = \"int4\"\nalgorithm = \"gptq\"\n[[export]]\ntarget = \"checkpoint\"\n",
    );
    room
}

/// Starts a run and waits until it has kept a unit of work.
fn half_way(room: &Room) -> Child {
    let mut command = room.command(&RUN);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("attar starts");
    let journal = room.path("out/.attar/store/journal");
    while fs::read_to_string(&journal).map_or(0, |text| text.lines().count()) == 0 {
        sleep(Duration::from_millis(1));
    }
    child
}

#[test]
fn what_changes_while_it_is_read_is_an_error_and_nothing_made_from_it_is_kept() {
    let wanted = {
        let room = ready();
        room.attar(&RUN).exits(0);
        room.files("out")
    };
    let mut seen = 0;
    for name in ["model/model.safetensors", "model/tokenizer.json", "text.txt"] {
        let room = ready();
        let before = fs::read(room.path(name)).expect("room for it");
        let mut changed = before.clone();
        let end = changed.len();
        changed[end - 2000..].reverse();
        let child = half_way(&room);
        fs::write(room.path(name), &changed).expect("room for it");
        let output = child.wait_with_output().expect("room for it");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() == Some(3) {
            assert!(said.contains(&format!("`{name}` changed while the run was reading it")), "{name}: {said}");
            assert!(!room.path("out/manifest.json").exists(), "{name}: a manifest of a mixture");
            seen += 1;
        } else {
            assert!(output.status.success(), "{name}: {said}");
        }
        fs::write(room.path(name), &before).expect("room for it");
        room.attar(&RUN).exits(0);
        assert_same_files(&wanted, &room.files("out"), name);
    }
    assert!(seen > 0, "every run was over before its input changed");
}

/// A recipe over `model` with that output and more.
fn refused(room: &Room, model: &str, output: &str, more: &str) -> Said {
    room.write("r.toml", &format!("recipe = 1\nmodel = \"{model}\"\noutput = \"{output}\"\n{more}"));
    let step = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n[[export]]\ntarget = \"checkpoint\"\n";
    room.write("r.toml", &(room.read("r.toml") + step));
    room.attar(&["plan", "r.toml"]).exits(2);
    room.attar(&["run", "r.toml"]).exits(2)
}

#[test]
fn nothing_is_written_where_a_recipe_reads() {
    let room = ready();
    let before = room.files("model");
    symlink(room.path("model"), room.path("linked")).expect("room for it");
    fs::create_dir(room.path("elsewhere")).expect("room for it");
    symlink(room.path("model/inner"), room.path("elsewhere/out")).expect("room for it");
    fs::create_dir(room.path("model/inner")).expect("room for it");
    for (model, output) in [
        ("model", "model/out"),
        ("model", "elsewhere/../model/out"),
        ("model", "linked/out"),
        ("linked", "model/out"),
        ("model", "elsewhere/out"),
        ("model", "elsewhere/out/deeper"),
    ] {
        refused(&room, model, output, "").says("which this recipe reads");
    }
    for (model, output) in [("model", "model"), ("model", "."), ("elsewhere/../model", "elsewhere/..")] {
        refused(&room, model, output, "").says("is in the output folder of this recipe");
    }
    refused(&room, "model", "out", "store = \"model/store\"\n").says("`store` is in `model`");
    refused(&room, "elsewhere/../model", "elsewhere/there", "store = \".\"\n").says("is in the store of this recipe");
    fs::rename(room.path("text.txt"), room.path("r.lock")).expect("room for it");
    let text = "[data.calibration]\npath = \"r.lock\"\n";
    refused(&room, "model", "out", text).says("`r.lock` is the lock file of this recipe");
    fs::create_dir(room.path("out")).expect("room for it");
    symlink(room.path("r.lock"), room.path("out/text.txt")).expect("room for it");
    let text = "[data.calibration]\npath = \"out/text.txt\"\n";
    refused(&room, "model", "out", text).says("is in the output folder of this recipe");
    fs::remove_dir(room.path("model/inner")).expect("room for it");
    assert_same_files(&before, &room.files("model"), "what was read");
}

#[test]
fn a_device_file_is_an_input() {
    let room = ready();
    room.write("npu.toml", "name = \"npu\"\ninherit = \"generic-npu\"\n");
    let recipe = "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n[data.calibration]\npath = \"text.txt\"\nsamples = 2\nlength = 64\n\
                  [[step]]\nkind = \"quantize\"\ngrid = \"int8\"\ngroup = \"row\"\n[[step]]\nkind = \"activations\"\nmode = \"static\"\n\
                  [[step]]\nkind = \"tile\"\nseq = 16\ndevice = \"./npu.toml\"\n";
    room.write("r.toml", recipe);
    room.attar(&["run", "r.toml"]).exits(0);
    assert!(room.read("r.lock").contains("npu.toml"), "{}", room.read("r.lock"));
    room.write("out/npu.toml", &room.read("npu.toml"));
    room.write("r.toml", &room.read("r.toml").replace("./npu.toml", "out/npu.toml"));
    room.attar(&["plan", "r.toml"]).exits(2).says("`out/npu.toml` is in the output folder");
}

#[test]
fn no_verb_takes_more_memory_than_it_may() {
    let room = ready();
    room.attar(&["quantize", "model", "--grid", "int8", "--group", "row", "--out", "q"]).exits(0);
    let model = ["testdata/models/shakespeare-1m"];
    let verbs: [&[&str]; 6] = [
        &["inspect"],
        &["inspect", "--graph"],
        &["generate", "--prompt", "To be"],
        &["eval", "--data", "text.txt", "--tokens", "256"],
        &["export", "--target", "onnx", "--out", "o"],
        &["quantize", "--grid", "int4", "--out", "p"],
    ];
    for verb in verbs {
        let arguments = [&verb[..1], &model, &verb[1..]].concat();
        room.attar(&[&arguments[..], &["--max-memory", "300 MB"]].concat()).exits(0);
        let said = room.attar(&[&arguments[..], &["--max-memory", "8 MiB", "--json"]].concat()).exits(3);
        said.says("`--max-memory`");
        assert_eq!(said.json()["exit_code"], 3, "{verb:?}");
    }
}

/// Weights that are numbers and make products that are none: scores overflow, and attention is NaN.
fn overflowing() -> Room {
    let room = ready();
    checkpoint::edit(&room, |raw| {
        for block in 0..4 {
            for weight in ["q_proj", "k_proj"] {
                let range = raw.range(&format!("model.layers.{block}.self_attn.{weight}.weight"));
                // bf16 with an exponent of 2^95.
                raw.data[range].chunks_exact_mut(2).for_each(|number| number[1] = number[1] & 0x80 | 0x6f);
            }
        }
    });
    room
}

#[test]
fn what_is_no_number_is_an_error_in_every_verb() {
    let room = overflowing();
    let text = ["--data", "text.txt", "--tokens", "128"];
    room.attar(&[&["eval", "model"][..], &text].concat()).exits(3).says("the output of the measured model is NaN at token 0");
    let beside = ["eval", "testdata/models/shakespeare-1m", "--baseline", "model"];
    room.attar(&[&beside[..], &text].concat()).exits(3).says("the output of the baseline is NaN at token 0");
    room.attar(&["generate", "model", "--prompt", "To be"]).exits(3).says("no token is the likeliest");
    let calibration =
        "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n[data.calibration]\npath = \"text.txt\"\nsamples = 2\nlength = 64\n";
    let codes = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\nscale_dtype = \"f32\"\n";
    for steps in [
        format!("{codes}algorithm = \"gptq\"\n"),
        format!("{codes}[[step]]\nkind = \"autoround\"\n"),
        format!("{codes}[[step]]\nkind = \"recover\"\n"),
        "[[step]]\nkind = \"rotate\"\n".into(),
        "[[step]]\nkind = \"quantize\"\nbits = 4.5\nsensitivity = \"kl\"\n".into(),
        format!("{codes}[[step]]\nkind = \"activations\"\nmode = \"static\"\n"),
    ] {
        room.write("recipe.toml", &format!("{calibration}{steps}"));
        room.attar(&RUN).exits(3).says("not finite");
        assert!(!room.path("out/manifest.json").exists(), "{steps}");
    }
}

#[test]
fn a_prompt_fills_the_context_at_most() {
    let room = ready();
    let long = "To be or not to be. ".repeat(200);
    room.attar(&["generate", "model", "--prompt", &long]).exits(2).says("the model's context is");
    let nearly = "To be or not to be. ".repeat(60);
    let said = room.attar(&["generate", "model", "--prompt", &nearly, "--tokens", "1000", "--json"]).exits(0).json();
    let tokens = |key: &str| said[key].as_array().expect("a list").len();
    assert!(tokens("prompt") + tokens("tokens") <= 512, "{} and {}", tokens("prompt"), tokens("tokens"));
}

#[test]
fn a_baseline_with_another_tokenizer_is_refused() {
    let room = ready();
    let text = room.read("model/tokenizer.json");
    let other = text.replacen("\"add_prefix_space\": false", "\"add_prefix_space\": true", 1);
    assert_ne!(text, other);
    room.write("model/tokenizer.json", &other);
    let said =
        room.attar(&["eval", "testdata/models/shakespeare-1m", "--data", "text.txt", "--tokens", "64", "--baseline", "model"]);
    said.exits(3).says("the baseline has another tokenizer");
}
