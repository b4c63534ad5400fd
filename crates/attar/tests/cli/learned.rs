//! Weights that learn: better than they were, clear about what they lack.

use crate::room::Room;

const QUANTIZE: &str = "[[step]]\nkind = \"quantize\"\ngrid = \"int3\"\nalgorithm = \"gptq\"\nscales = \"mse\"\n";
const CALIBRATION: &str = "[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 64\nlength = 256\n";

fn recipe(calibration: &str, steps: &str) -> String {
    format!(
        "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n{calibration}\n{steps}\n[[eval]]\nname = \"plays\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 256\ntokens = 4096\n"
    )
}

fn kl(steps: &str) -> f64 {
    let room = Room::new();
    room.write("recipe.toml", &recipe(CALIBRATION, &format!("{QUANTIZE}{steps}")));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let text = std::fs::read_to_string(room.path("out/report.json")).expect("a run writes its report");
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report is JSON");
    let measured = &report["evals"][0]["outcome"]["measured"]["against_base"]["kl_mean"]["value"];
    measured.as_f64().expect("the KL divergence was measured")
}

/// Learned rounding takes a quarter off what GPTQ loses at 3 bits, and learning end to end a twentieth off that.
#[test]
fn every_way_to_learn_helps() {
    let gptq = kl("");
    let autoround = kl("[[step]]\nkind = \"autoround\"\niterations = 60\n");
    assert!(autoround < 0.75 * gptq, "gptq {gptq}, autoround {autoround}");
    let recovered = kl("[[step]]\nkind = \"autoround\"\niterations = 60\n[[step]]\nkind = \"recover\"\n");
    assert!(recovered < 0.95 * autoround, "autoround {autoround}, recovered {recovered}");
    let lora = kl("[[step]]\nkind = \"recover\"\nmethod = \"lora\"\nrounding = 0.01\n");
    assert!(lora < gptq, "gptq {gptq}, recovered by a term of low rank {lora}");
}

/// Scales alone can do little on so short a text; they do no harm.
#[test]
fn scales_alone_keep_the_model() {
    let (gptq, scales) = (kl(""), kl("[[step]]\nkind = \"recover\"\nmethod = \"scales\"\n"));
    assert!(scales != gptq && scales < 1.05 * gptq, "gptq {gptq}, scales {scales}");
}

/// The gains of norms, 1,152 numbers, take a twentieth off what GPTQ loses; they keep their number format.
#[test]
fn gains_of_norms_learn_alone() {
    let (gptq, norms) = (kl(""), kl("[[step]]\nkind = \"recover\"\nmethod = \"norms\"\n"));
    assert!(norms < 0.95 * gptq, "gptq {gptq}, norms {norms}");
}

#[test]
fn learned_gains_are_stored_as_the_checkpoint_stores_them() {
    let rtn = QUANTIZE.replace("gptq", "rtn");
    let exported = |steps: &str| {
        let room = Room::new();
        let calibration = CALIBRATION.replace("samples = 64", "samples = 4");
        room.write("recipe.toml", &(recipe(&calibration, steps) + "[[export]]\ntarget = \"checkpoint\"\nfolder = \"c\"\n"));
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        let model = attar_model::Model::open(&room.path("out/c")).expect("it was just written");
        let gain = |name: &str| {
            let mut gain = vec![0.0; 128];
            model.source.read(name, 0..1, &mut gain).expect("every norm has a gain");
            (model.source.info(name).expect("it is there").encoding.to_string(), gain)
        };
        ["blocks.0.attention_norm", "blocks.3.mlp_norm", "final_norm"].map(gain)
    };
    let learn = "[[step]]\nkind = \"recover\"\nmethod = \"norms\"\nepochs = 4\nbatch = 1\n";
    for (before, after) in exported(&rtn).into_iter().zip(exported(&format!("{rtn}{learn}"))) {
        assert_eq!((before.0.as_str(), after.0.as_str()), ("bf16", "bf16"));
        assert!(before.1 != after.1, "something was learned");
    }
}

#[test]
fn what_learns_is_quantized_before() {
    for kind in ["autoround", "recover"] {
        let room = Room::new();
        room.write("recipe.toml", &recipe(CALIBRATION, &format!("[[step]]\nkind = \"{kind}\"\n")));
        for verb in ["plan", "run"] {
            let said = room.attar(&[verb, "recipe.toml"]).exits(2);
            said.says("matches no quantized weight");
            said.says("a `quantize` step comes before");
        }
        assert!(!room.path("out/manifest.json").exists());
    }
}

#[test]
fn learning_needs_a_text() {
    let rtn = QUANTIZE.replace("gptq", "rtn");
    for kind in ["autoround", "recover"] {
        let room = Room::new();
        room.write("recipe.toml", &recipe("", &format!("{rtn}[[step]]\nkind = \"{kind}\"\n")));
        for verb in ["plan", "run"] {
            room.attar(&[verb, "recipe.toml"]).exits(2).says("[data.calibration]");
        }
    }
}

#[test]
fn settings_that_cannot_be_are_found_before_any_work() {
    for (setting, says) in [
        ("batch = 0", "batch"),
        ("iterations = 0", "iterations"),
        ("rounding = -1.0", "rounding"),
        ("scaling = nan", "scaling"),
        ("select = [\"blocks.*.mlp.dwn\"]", "select"),
        ("norming = 2.0", "norming"),
    ] {
        let room = Room::new();
        let kind = if setting.starts_with("norming") { "recover" } else { "autoround" };
        let steps = format!("{QUANTIZE}[[step]]\nkind = \"{kind}\"\n{setting}\n");
        room.write("recipe.toml", &recipe(CALIBRATION, &steps));
        room.attar(&["plan", "recipe.toml"]).exits(2).says(says);
    }
}

#[test]
fn a_limit_of_memory_that_is_too_low_is_found_before_any_work() {
    let room = Room::new();
    room.write("recipe.toml", &recipe(CALIBRATION, &format!("{QUANTIZE}[[step]]\nkind = \"recover\"\n")));
    for verb in ["plan", "run"] {
        let said = room.attar(&[verb, "recipe.toml", "--max-memory", "50 MB"]).exits(3);
        said.says("the step `recover`");
        said.says("50.0 MB are allowed");
        said.says("--max-memory");
    }
    assert!(!room.path("out").exists());
    room.attar(&["plan", "recipe.toml", "--max-memory", "2 GB"]).exits(0);
    room.attar(&["plan", "recipe.toml", "--max-memory", "much"]).exits(2).says("is not a size");
}
