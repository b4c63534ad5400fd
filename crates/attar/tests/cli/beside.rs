//! Steps that leave the model as it is: products are cut, plans proven again, buffers placed; and what is best in some way.

use serde_json::Value;

use crate::{
    compile::{ACTIVATIONS, QUANTIZE, compile, recipe},
    room::{Room, assert_same_files},
    snapshot::Session,
};

const SRAM: u64 = 48 << 10;

fn tile(settings: &str) -> String {
    format!("[[step]]\nkind = \"tile\"\nset = [\"sram=48KiB\"]\nseq = 40\n{settings}\n")
}

fn simulate(settings: &str) -> String {
    format!("[[step]]\nkind = \"simulate\"\n{settings}\n")
}

fn memory_plan(settings: &str) -> String {
    format!("[[step]]\nkind = \"memory-plan\"\n{settings}\n")
}

const PIECES: &str = "file = \"testdata/memory/pieces.csv\"\ncapacity = \"64 B\"";

const CHECKPOINT: &str = "[[export]]\ntarget = \"checkpoint\"\n";

/// Everything at once, in folders of their own.
fn whole() -> String {
    let steps = [tile("pareto = true"), compile("prove = 2\npareto = true"), simulate(""), memory_plan(PIECES)];
    recipe(&[QUANTIZE, ACTIVATIONS, &steps.concat(), &memory_plan("file = \"small.csv\""), CHECKPOINT])
}

fn list(value: &Value) -> &[Value] {
    value.as_array().expect("it is a list")
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("`{key}` is a number in {value}"))
}

/// Nobody in a list is at least as good as another in everything that `keys` name.
fn assert_front(points: &[Value], keys: &[&str]) {
    for (i, one) in points.iter().enumerate() {
        for other in points.iter().skip(i + 1) {
            let no_worse = |a: &Value, b: &Value| keys.iter().all(|key| number(a, key) <= number(b, key));
            assert!(!no_worse(one, other) && !no_worse(other, one), "{one} and {other}");
        }
    }
}

#[test]
fn every_step_beside_the_model_is_reported_and_repeats_itself() {
    let room = Room::new();
    room.write("recipe.toml", &whole());
    room.write("small.csv", "id,lower,upper,size\na,0,3,4\nb,3,9,4\nc,0,9,4\n");
    room.attar(&["plan", "recipe.toml"]).exits(0);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let variant = &room.json("out/report.json")["variants"][0];
    assert_products(&room, variant);
    assert_plans(variant);
    let placed = list(&variant["placements"]);
    assert_eq!((&placed[0]["height"], &placed[0]["capacity"]), (&64.into(), &64.into()));
    assert_eq!((&placed[1]["height"], &placed[1]["at_least"]), (&8.into(), &8.into()));
    assert!(room.read("out/placed/placement.csv").starts_with("id,lower,upper,size,offset\n"));
    assert!(room.read("out/placed-2/placement.svg").contains("<title>"));
    let page = room.read("out/report.md");
    for title in ["Matrix products tiled for SRAM", "Pareto front (predicted)", "Plans proven again", "Buffers placed"] {
        assert!(page.contains(&format!("## {title}\n")), "{title}: {page}");
    }
    assert_listed(&room);
    let lock = room.read("recipe.lock");
    assert!(lock.contains("testdata/memory/pieces.csv") && lock.contains("small.csv"), "{lock}");
    let files = room.files("out");
    room.attar(&["run", "recipe.toml", "--quiet", "--locked", "--threads", "1"]).exits(0);
    assert_same_files(&room.files("out"), &files, "the same recipe gives the same files");
}

/// Four blocks, four products each, for many tokens and for one; none below its bound, none that does not fit.
fn assert_products(room: &Room, variant: &Value) {
    let products = list(&variant["tilings"][0]["products"]);
    assert_eq!(products.iter().map(|product| number(product, "kernels")).collect::<Vec<_>>(), [4.0; 8]);
    assert!(products.iter().all(|product| product.get("front").is_none()), "the report has the best alone");
    let file = room.json("out/tiled/tiles.json");
    let text = room.read("out/tiled/tiles.txt");
    for (product, told) in list(&file["products"]).iter().zip(products) {
        let (best, bound) = (&product["best"], number(product, "lower_bound"));
        assert_eq!((best, &product["product"]), (&told["best"], &told["product"]));
        let front = list(&product["front"]);
        assert_front(front, &["dram_bytes", "sram_bytes", "cycles"]);
        for tiling in front.iter().chain([best]) {
            let bytes = number(tiling, "dram_bytes");
            assert!(bytes >= bound && number(tiling, "sram_bytes") <= SRAM as f64, "{product}");
            assert!((number(tiling, "distance") - bytes / bound).abs() < 1e-12, "{tiling}");
        }
        let least = front.iter().map(|tiling| number(tiling, "dram_bytes")).fold(f64::INFINITY, f64::min);
        assert!(least <= number(best, "dram_bytes"), "{product}");
        let [m, k, n] = [0, 1, 2].map(|at| product["product"][at].to_string());
        assert!(text.contains(&format!("{m} x {k} x {n}")), "{text}");
    }
}

/// What was proven when it was compiled is proven again, at the same cost; the front is one, and beats every candidate.
fn assert_plans(variant: &Value) {
    let compilation = &variant["compilations"][0];
    let simulations = list(&variant["simulations"]);
    assert_eq!(simulations.len(), 2);
    for (phase, simulation) in list(&compilation["phases"]).iter().zip(simulations) {
        let name = phase["name"].as_str().expect("it has a name");
        assert_eq!(simulation["plan"], format!("compiled/{name}.proof.plan"));
        assert_eq!(simulation["proven"], true);
        assert_eq!((&simulation["macs"], &simulation["dram_bytes"]), (&phase["proof"]["macs"], &phase["proof"]["dram_bytes"]));
    }
    let (front, costs) = (list(&compilation["front"]), ["dram_bytes", "cycles", "peak_sram"]);
    assert_front(front, &["dram_bytes", "cycles", "peak_sram", "energy"]);
    assert!(front.iter().all(|point| point["exact"] == true && point["goal"].is_string()), "{front:?}");
    for candidate in list(&compilation["chunks"]) {
        let beats = |point: &Value| costs.iter().all(|key| number(point, key) <= number(candidate, key));
        assert!(front.iter().any(beats), "{candidate} of {front:?}");
    }
}

/// The manifest has every file of these folders, with the digest that it has.
fn assert_listed(room: &Room) {
    let manifest = room.json("out/manifest.json");
    let folders = list(&manifest["folders"]);
    let names: Vec<_> = folders.iter().map(|folder| (folder["step"].as_str(), folder["folder"].as_str())).collect();
    let wanted = [("tile", "tiled"), ("compile", "compiled"), ("memory-plan", "placed"), ("memory-plan", "placed-2")];
    assert_eq!(names, wanted.map(|(step, folder)| (Some(step), Some(folder))));
    for folder in folders {
        let there = room.files(&format!("out/{}", folder["folder"].as_str().expect("it has a name")));
        let listed = list(&folder["files"]);
        assert_eq!(listed.len(), there.len());
        for file in listed {
            let bytes = &there[file["name"].as_str().expect("it has a name")];
            assert_eq!(file["bytes"], bytes.len());
            assert_eq!(file["digest"], attar_tensor::Digest::of(bytes).to_string());
        }
    }
}

/// A product for itself is cut by the compiler as by the step; behind a prefill, weights lie as that has them.
#[test]
fn the_step_cuts_as_the_compiler_does() {
    let room = Room::new();
    let apart = compile("join = false\nkeep = false\nrecompute = false\nchunk = 40\nprove = 0");
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &tile(""), &apart]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let tiles = room.json("out/tiled/tiles.json");
    let mut compared = 0;
    for phase in ["prefill", "decode"] {
        let report = room.json(&format!("out/compiled/{phase}.json"));
        for call in list(&report["calls"]).iter().filter(|call| call["kind"] == "linear") {
            let cut = list(&tiles["products"]).iter().find(|product| product["product"] == call["shape"]);
            let cut = cut.expect("every product is listed");
            let moved = number(call, "read") + number(call, "written");
            assert!(moved >= number(cut, "lower_bound"), "{call}");
            if phase == "prefill" {
                let [m, k, n] = [0, 1, 2].map(|at| cut["best"]["tile"][at].to_string());
                assert_eq!(call["tile"], format!("{m} x {k} x {n}"), "{call}");
                assert!(moved >= number(&cut["best"], "dram_bytes"), "{call}");
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 2 * 4 * 4);
}

#[test]
fn the_verb_cuts_a_model_as_the_step_does() {
    let room = Room::new();
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &tile("pareto = true"), CHECKPOINT]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let flags = ["--set", "sram=48KiB", "--seq", "40", "--pareto"];
    let verb = |more: &[&str]| room.attar(&[&["tile-for-sram", "out/checkpoint"], &flags[..], more].concat()).exits(0);
    assert_eq!(verb(&["--json"]).json(), room.json("out/tiled/tiles.json"));
    assert!(verb(&[]).stdout.contains("4 x b*.qkv"));
    let long = room.attar(&["tile", "out/checkpoint", "--seq", "1000000000"]).exits(2);
    long.says("the model's context is");
    verb(&["--out", "alone", "--quiet"]);
    assert_eq!(room.files("alone/tiled"), room.files("out/tiled"));
    assert!(verb(&["--out", "alone", "--print-recipe"]).stdout.contains("kind = \"tile\""));
}

/// A proof that is not of this plan: every file is whole, and the run fails with the rule that was broken.
#[test]
fn a_plan_that_is_not_proven_fails_the_run() {
    let room = Room::new();
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &compile("")]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    for (from, to) in [("prefill.proof.plan", "good.plan"), ("prefill.proof.data", "good.data")] {
        std::fs::copy(room.path(&format!("out/compiled/{from}")), room.path(to)).expect("there is room");
    }
    let other = |plans: &str| recipe(&[&simulate(&format!("plans = {plans}"))]).replace("\"out\"", "\"again\"");
    room.write("again.toml", &other("[\"good.plan\"]"));
    room.attar(&["run", "again.toml", "--quiet"]).exits(0);
    let simulation = &room.json("again/report.json")["variants"][0]["simulations"][0];
    let proof = &room.json("out/report.json")["variants"][0]["compilations"][0]["phases"][0]["proof"];
    assert_eq!((&simulation["plan"], &simulation["macs"]), (&"good.plan".into(), &proof["macs"]));
    assert!(room.read("again.lock").contains("good.data"), "what a plan is proven on is an input");

    std::fs::copy(room.path("out/compiled/prefill.proof.plan"), room.path("mixed.plan")).expect("there is room");
    std::fs::copy(room.path("out/compiled/decode.proof.data"), room.path("mixed.data")).expect("there is room");
    room.write("again.toml", &other("[\"good.plan\", \"mixed.plan\"]"));
    room.attar(&["plan", "again.toml"]).exits(0);
    let failed = room.attar(&["run", "again.toml", "--quiet"]).exits(3);
    failed.says("`mixed.plan` is not proven");
    failed.says("again.toml:");
    let verb = room.attar(&["simulate", "mixed.plan"]).exits(3);
    let cause = verb.stderr.lines().find(|line| line.contains("caused by")).expect("the verb says why");
    failed.says(cause.trim_start_matches(['|', ' ', '=']));
    assert!(!room.path("again/manifest.json").exists(), "nothing is promised");
}

#[test]
fn mistakes_about_steps_beside_the_model() {
    let mut session = Session::new("beside-mistakes");
    let room = Room::new();
    room.write("tangle.csv", "id,lower,upper,size\na,0,9,4\nb,1,7,4\nc,5,9,4\n");
    room.write("text.csv", "these are no buffers\n");
    room.write("text.plan", "this is no plan\n");
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &compile("decode = false")]).replace("\"out\"", "\"made\""));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let integers = [QUANTIZE, ACTIVATIONS].concat();
    let dynamic = QUANTIZE.to_owned() + &ACTIVATIONS.replace("mode = \"static\"\n", "");
    let on = |steps: &str| integers.clone() + steps;
    let device = |settings: &str| on(&format!("[[step]]\nkind = \"tile\"\n{settings}\n"));
    let folder = |name: &str| format!("[[export]]\ntarget = \"checkpoint\"\nfolder = \"{name}\"\n");
    let cases: [(&str, String, i32); 27] = [
        ("a float model is cut", tile(""), 2),
        ("activations with dynamic scales", dynamic + &tile(""), 2),
        ("no device of that name", device("device = \"generic-npuu\""), 2),
        ("too little SRAM", device("set = [\"sram=1536 B\"]"), 2),
        ("no tokens", device("seq = 0"), 2),
        ("more tokens than the model's context", device("seq = 1000000000"), 2),
        ("a goal that is none", device("goal = \"speed\""), 2),
        ("a chunk, as `compile` has it", device("chunk = 32"), 2),
        ("nothing to prove", integers.clone() + &simulate(""), 2),
        ("a compiler that proves nothing", on(&(compile("prove = 0") + &simulate(""))), 2),
        ("proofs that are yet to come", on(&(simulate("") + &compile(""))), 2),
        ("a plan that is missing", simulate("plans = [\"none.plan\"]"), 3),
        ("the second plan is none", simulate("plans = [\"made/compiled/prefill.proof.plan\", \"text.plan\"]"), 3),
        ("a plan without data", simulate("plans = [\"made/compiled/prefill.plan\"]"), 3),
        ("a plan of this very run", simulate("plans = [\"out/compiled/prefill.proof.plan\"]"), 2),
        ("plans that are a word", simulate("plans = \"good.plan\""), 2),
        ("no file", memory_plan(""), 2),
        ("a file that is missing", memory_plan("file = \"none.csv\""), 3),
        ("a file without buffers", memory_plan("file = \"text.csv\""), 3),
        ("too little memory", memory_plan("file = \"tangle.csv\"\ncapacity = \"11 B\""), 2),
        ("too little patience", memory_plan(&format!("{PIECES}\nnodes = 10")), 2),
        ("no patience", memory_plan(&format!("{PIECES}\nnodes = 0")), 2),
        ("a capacity that is none", memory_plan("file = \"tangle.csv\"\ncapacity = \"much\""), 2),
        ("a misspelt key", memory_plan("file = \"tangle.csv\"\ncapasity = 12"), 2),
        ("an export in the folder of tiles", on(&(tile("") + &folder("tiled"))), 2),
        ("an export in the folder of the second", on(&(compile("") + &compile("") + &folder("compiled-2/model"))), 2),
        ("an export in the folder of buffers", memory_plan(PIECES) + &folder("placed"), 2),
    ];
    for (title, sections, code) in cases {
        room.write("recipe.toml", &recipe(&[&sections]));
        session.note(title, &room.attar(&["plan", "recipe.toml"]).exits(code));
        assert!(!room.path("out").exists());
    }
    session.check();
}

/// A fused graph hides its layers from steps that look for them; these do not.
#[test]
fn steps_that_look_at_no_layer_stand_behind_fuse() {
    let room = Room::new();
    room.write("recipe.toml", &recipe(&["[[step]]\nkind = \"fuse\"\n", &memory_plan(PIECES)]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    assert_eq!(room.json("out/report.json")["variants"][0]["placements"][0]["height"], 64);
}
