//! Plans for devices: what is proven, what is foretold, what cannot be compiled.

use attar_compile::{Plan, plan::Placed, program::Role};
use serde_json::Value;

use crate::{
    room::{Room, assert_same_files},
    snapshot::Session,
};

const MODEL: &str = "testdata/models/shakespeare-1m";

pub(crate) const QUANTIZE: &str = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 32\nscale_dtype = \"int6\"\n\n";

pub(crate) const ACTIVATIONS: &str = "[[step]]\nkind = \"activations\"\nmode = \"static\"\n\n";

/// A recipe of these sections on a little text.
pub(crate) fn recipe(sections: &[&str]) -> String {
    let data = "[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 2\nlength = 96\n";
    format!("recipe = 1\nmodel = \"{MODEL}\"\noutput = \"out\"\n\n{data}\n{}", sections.concat())
}

pub(crate) fn compile(settings: &str) -> String {
    format!("[[step]]\nkind = \"compile\"\nset = [\"sram=48KiB\"]\nseq = 40\n{settings}\n")
}

#[test]
fn a_model_is_compiled_and_every_block_is_proven() {
    let room = Room::new();
    let gates =
        "[[gate]]\nmetric = \"device/latency\"\nat_most = 1\n\n[[gate]]\nmetric = \"device/peak-sram\"\nat_most = 49152\n";
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &compile(""), gates]));
    room.attar(&["plan", "recipe.toml"]).exits(0);
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    let phases = report["variants"][0]["compilations"][0]["phases"].as_array().expect("there are phases");
    assert_eq!(phases.len(), 2);
    for phase in phases {
        let proof = &phase["proof"];
        assert_eq!(proof["blocks"], 4);
        assert_eq!((&proof["macs"], &proof["dram_bytes"]), (&phase["macs"], &phase["dram_bytes"]), "all blocks were proven");
        assert!(proof["snr_db"].as_f64().is_some_and(|snr| snr > 15.0), "{proof}");
    }
    // What rests on assumed numbers of the device says so, wherever it stands; bytes rest on none.
    let reasons: Vec<&str> =
        report["gates"].as_array().into_iter().flatten().filter_map(|gate| gate["reason"].as_str()).collect();
    assert!(reasons[0].ends_with(", predicted from assumed numbers of the device"), "{reasons:?}");
    assert!(reasons[1].ends_with(", predicted"), "{reasons:?}");
    let text = room.read("out/report.md");
    assert!(text.contains("## Compiled (predicted)") && text.contains(" ms*") && text.contains("\\* generic-npu: "), "{text}");
    assert!(room.read("out/report.html").contains("* rests on assumed numbers of the device"));

    let proven = room.attar(&["simulate", "out/compiled/prefill.proof.plan", "--json"]).exits(0);
    let simulated: Value = serde_json::from_str(&proven.stdout).expect("it is JSON");
    assert_eq!((&simulated["proven"], &simulated["dram_bytes"]), (&true.into(), &phases[0]["dram_bytes"]));
    // All blocks were proven, so the proof's plan is the plan: with the same constants, and tensors at the same places.
    let plan = |name: &str| {
        let bytes = std::fs::read(room.path(&format!("out/compiled/{name}.plan"))).expect("it was written");
        Plan::from_bytes(&bytes).expect("it is a plan")
    };
    let [prefill, proof, decode] = ["prefill", "prefill.proof", "decode"].map(plan);
    assert!(prefill.calls == proof.calls && prefill.bodies == proof.bodies && prefill.tensors == proof.tensors);
    let lasting = |plan: &Plan| -> Vec<Placed> {
        let roles = [Role::Weight, Role::Constant, Role::State];
        plan.tensors.iter().filter(|tensor| roles.contains(&tensor.role)).cloned().collect()
    };
    assert!(lasting(&prefill) == lasting(&decode), "weights, tables and states are shared");
    let stored = lasting(&prefill).iter().filter(|tensor| tensor.role != Role::State).map(|t| t.address + t.bytes()).max();
    let image = std::fs::metadata(room.path("out/compiled/dram.bin")).expect("weights are written").len();
    assert_eq!(Some(image), stored, "up to the last weight or table");
    assert!(room.attar(&["inspect", "out"]).exits(0).stdout.contains("compiled/dram.bin"));
    let counted = room.attar(&["simulate", "out/compiled/decode.plan", "--json"]).exits(0);
    let counted: Value = serde_json::from_str(&counted.stdout).expect("it is JSON");
    assert_eq!((&counted["proven"], &counted["macs"]), (&false.into(), &phases[1]["macs"]));
    let text = room.attar(&["simulate", "out/compiled/prefill.plan", "--text"]).exits(0);
    assert_eq!(text.stdout.trim_end(), room.read("out/compiled/prefill.txt").trim_end());
}

/// Three chunks and a token find weights in DRAM and flash at the same places, and every block is proven from there.
#[test]
fn weights_behind_dram_are_read_from_flash() {
    let room = Room::new();
    let device =
        "set = [\"sram=48KiB\", \"dram=400KiB\", \"flash=4MiB\", \"flash.read=1GB/s\"]\nseq = 40\nchunk = 16\nprove = 4\n";
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &format!("[[step]]\nkind = \"compile\"\n{device}")]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let sizes = ["dram.bin", "flash.bin"]
        .map(|name| std::fs::metadata(room.path(&format!("out/compiled/{name}"))).expect("it was written").len());
    assert!(sizes[0] <= 400 << 10 && sizes[1] > 0, "{sizes:?}");
    let report = room.json("out/report.json");
    let phases = report["variants"][0]["compilations"][0]["phases"].as_array().expect("there are phases");
    assert_eq!(phases.len(), 4);
    for phase in phases {
        assert_eq!(phase["proof"]["dram_bytes"], phase["dram_bytes"], "all blocks were proven");
    }
}

#[test]
fn plans_are_the_same_bytes_at_any_thread_count() {
    let room = Room::new();
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &compile("")]));
    room.attar(&["run", "recipe.toml", "--output", "one", "--quiet", "--threads", "1"]).exits(0);
    room.attar(&["run", "recipe.toml", "--output", "two", "--quiet", "--threads", "2"]).exits(0);
    assert_same_files(&room.files("one/compiled"), &room.files("two/compiled"), "threads decide nothing");
}

#[test]
fn what_cannot_be_compiled_is_said_before_the_work() {
    let mut session = Session::new("compile-mistakes");
    let room = Room::new();
    let f16 = QUANTIZE.replace("scale_dtype = \"int6\"\n", "");
    let dynamic = ACTIVATIONS.replace("mode = \"static\"\n", "");
    let device = |settings: &str| format!("[[step]]\nkind = \"compile\"\nseq = 40\n{settings}\n");
    let gate = "[[gate]]\nmetric = \"device/latncy\"\nat_most = 1\n";
    let cases: [(&str, &[&str]); 22] = [
        ("a float model", &[&compile("")]),
        ("weights with scales in f16", &[&f16, ACTIVATIONS, &compile("")]),
        ("activations in f32", &[QUANTIZE, &compile("")]),
        ("activations with dynamic scales", &[QUANTIZE, &dynamic, &compile("")]),
        ("too little SRAM", &[QUANTIZE, ACTIVATIONS, &device("set = [\"sram=2KiB\"]")]),
        ("too little DRAM", &[QUANTIZE, ACTIVATIONS, &device("set = [\"dram=100KiB\"]")]),
        ("no bandwidth", &[QUANTIZE, ACTIVATIONS, &device("set = [\"dram.bandwidth=0\"]")]),
        ("an unknown device", &[QUANTIZE, ACTIVATIONS, &device("device = \"generic-npuu\"")]),
        ("an unknown number of a device", &[QUANTIZE, ACTIVATIONS, &device("set = [\"srm=2MiB\"]")]),
        ("no tokens", &[QUANTIZE, ACTIVATIONS, &device("").replace("seq = 40", "seq = 0")]),
        ("a draft of one token", &[QUANTIZE, ACTIVATIONS, &device("verify = 1")]),
        ("a draft longer than the prompt", &[QUANTIZE, ACTIVATIONS, &device("verify = 41")]),
        ("drafts of a batch", &[QUANTIZE, ACTIVATIONS, &device("verify = 4\nbatch = 2")]),
        (
            "a gate that nothing measures",
            &[QUANTIZE, ACTIVATIONS, &device("quality = 0"), "\n[[gate]]\nmetric = \"device/kl\"\nat_most = 1\n"],
        ),
        (
            "a gate on decoding that is not planned",
            &[QUANTIZE, ACTIVATIONS, &device("decode = false"), "\n[[gate]]\nmetric = \"device/decode-latency\"\nat_most = 1\n"],
        ),
        ("a cache in codes of its own", &[QUANTIZE, &ACTIVATIONS.replace("\n\n", "\nkv = \"int4\"\n\n"), &device("")]),
        ("a batch of nothing", &[QUANTIZE, ACTIVATIONS, &device("batch = 0")]),
        ("a batch beyond any", &[QUANTIZE, ACTIVATIONS, &device("batch = 65")]),
        ("more tokens than the model takes", &[QUANTIZE, ACTIVATIONS, &device("").replace("seq = 40", "seq = 513")]),
        ("chunks of no tokens", &[QUANTIZE, ACTIVATIONS, &device("chunk = 0")]),
        ("a gate on what is not foretold", &[QUANTIZE, ACTIVATIONS, &compile(""), gate]),
        ("a gate without a compiler", &[QUANTIZE, &gate.replace("latncy", "latency")]),
    ];
    for (title, sections) in cases {
        room.write("recipe.toml", &recipe(sections));
        session.note(title, &room.attar(&["plan", "recipe.toml"]).exits(2));
        assert!(!room.path("out").exists());
    }
    session.check();
}

#[test]
fn files_that_are_no_plans_are_refused() {
    let mut session = Session::new("simulate-mistakes");
    let room = Room::new();
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &compile("decode = false")]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let plan = std::fs::read(room.path("out/compiled/prefill.proof.plan")).expect("it was written");
    let data = std::fs::read(room.path("out/compiled/prefill.proof.data")).expect("it was written");
    let changed = |bytes: &[u8], at: usize| {
        let mut bytes = bytes.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let cases: [(&str, Vec<u8>); 5] = [
        ("empty", Vec::new()),
        ("text", b"id,lower,upper,size\n".to_vec()),
        ("cut in its header", plan[..30].to_vec()),
        ("of another version", changed(&plan, 8)),
        ("tampered with", changed(&plan, plan.len() / 2)),
    ];
    for (title, bytes) in cases {
        std::fs::write(room.path("bad.plan"), bytes).expect("there is room");
        session.note(title, &room.attar(&["simulate", "bad.plan"]).exits(3));
    }
    std::fs::write(room.path("cut.plan"), &plan[..plan.len() - 1]).expect("there is room");
    room.attar(&["simulate", "cut.plan"]).exits(3);
    std::fs::write(room.path("bad.data"), changed(&data, data.len() - 9)).expect("there is room");
    let damaged = room.attar(&["simulate", "out/compiled/prefill.proof.plan", "--data", "bad.data"]).exits(3);
    assert!(damaged.stderr.contains("digest"), "{}", damaged.stderr);
    session.note("missing", &room.attar(&["simulate", "none.plan"]).exits(3));
    session.check();
}

#[test]
fn a_product_is_tiled() {
    let mut session = Session::new("tile");
    let room = Room::new();
    let cases: [(&str, &[&str], i32); 9] = [
        ("the best", &["tile", "512,2048,2048", "--set", "sram=256KiB"], 0),
        ("int4 on a small device", &["tile-for-sram", "128x576x1536", "--weights", "4", "--device", "ethos-u85-1024"], 0),
        ("for machines", &["tile", "32,64,64", "--set", "sram=16KiB", "--json"], 0),
        ("all that are best in some way", &["tile", "32,64,64", "--set", "sram=16KiB", "--pareto"], 0),
        ("no product", &["tile", "512,2048"], 2),
        ("what is for models", &["tile", "512,2048,2048", "--seq", "64"], 2),
        ("what is for products", &["tile", MODEL, "--weights", "4"], 2),
        ("no such device", &["tile", "32,64,64", "--device", "ethos-u86-1024"], 2),
        ("less SRAM than a tile", &["tile", "32,64,64", "--set", "sram=1KiB"], 2),
    ];
    for (title, arguments, code) in cases {
        session.note(title, &room.attar(arguments).exits(code));
    }
    session.check();
}

/// Two plans that differ in their settings, and a plan beside itself.
#[test]
fn plans_are_compared() {
    let room = Room::new();
    for (name, sram) in [("large", "64KiB"), ("small", "24KiB")] {
        let settings = compile("prove = 0\nquality = 0\ngoal = \"latency\"").replace("48KiB", sram);
        room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &settings]));
        room.attar(&["run", "recipe.toml", "--output", name, "--quiet"]).exits(0);
    }
    let compared = room.attar(&["compare", "large", "small/compiled", "--json"]).exits(0);
    let compared: Value = serde_json::from_str(&compared.stdout).expect("it is JSON");
    let both = compared["compared"].as_array().expect("prefill and decode are compared");
    assert_eq!(both.len(), 2);
    for (run, found) in ["prefill", "decode"].into_iter().zip(both) {
        for (side, folder) in ["large", "small"].into_iter().enumerate() {
            let simulated = room.attar(&["simulate", &format!("{folder}/compiled/{run}.plan"), "--json"]).exits(0);
            let simulated: Value = serde_json::from_str(&simulated.stdout).expect("it is JSON");
            let plan = &found["plans"][side];
            assert_eq!((&plan["predicted"]["cycles"], &plan["macs"]), (&simulated["cycles"], &simulated["macs"]));
            assert_eq!(plan["read"].as_u64().zip(plan["written"].as_u64()).map(|(r, w)| r + w), simulated["dram_bytes"].as_u64());
            assert_eq!((&plan["goal"], &plan["set"][0]), (&"latency".into(), &["sram=64KiB", "sram=24KiB"][side].into()));
            // Every call is part of one operation.
            let side = ["first", "second"][side];
            let sum = |key: &str| -> u64 {
                let operations = found["operations"].as_array().expect("there are operations");
                operations.iter().filter_map(|operation| operation[side][key].as_u64()).sum()
            };
            assert_eq!((Some(sum("macs")), Some(sum("bytes"))), (simulated["macs"].as_u64(), simulated["dram_bytes"].as_u64()));
        }
    }
    let bytes = |side: usize| both[0]["plans"][side]["read"].as_u64().expect("it is a number");
    assert!(bytes(0) < bytes(1), "less SRAM, more traffic");
    let text = room.attar(&["compare", "large/compiled/prefill.plan", "small/compiled/prefill.plan"]).exits(0).stdout;
    for wanted in ["sram=64KiB", "sram=24KiB", "blocks 0 to 3 / MLP", "predicted latency", "are assumed"] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let itself = room.attar(&["compare", "large/compiled/decode.plan", "large/compiled/decode.plan"]).exits(0).stdout;
    assert!(itself.contains("  same") && !itself.contains("%  ") && !itself.contains("%\n"), "{itself}");
}

#[test]
fn what_is_no_plan_is_not_compared() {
    let mut session = Session::new("compare-mistakes");
    let room = Room::new();
    let settings = compile("prove = 0\nquality = 0\ndecode = false");
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &settings]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let plan = std::fs::read(room.path("out/compiled/prefill.plan")).expect("it was written");
    let mut other = plan.clone();
    other[8] += 1;
    for (name, bytes) in [("good.plan", &plan), ("other.plan", &other), ("empty.plan", &Vec::new())] {
        std::fs::write(room.path(name), bytes).expect("the folder takes files");
    }
    std::fs::create_dir(room.path("nothing")).expect("the folder takes folders");
    let cases: [(&str, &[&str], i32); 7] = [
        ("no plan", &["compare", "good.plan", "recipe.toml"], 3),
        ("nothing in it", &["compare", "empty.plan", "good.plan"], 3),
        ("another version", &["compare", "good.plan", "other.plan"], 3),
        ("a folder without plans", &["compare", "nothing", "out"], 3),
        ("a folder and a file", &["compare", "out", "good.plan"], 2),
        ("one plan", &["compare", "good.plan"], 2),
        ("a page of plans", &["compare", "good.plan", "good.plan", "--out", "page.html"], 2),
    ];
    for (title, arguments, code) in cases {
        session.note(title, &room.attar(arguments).exits(code));
    }
    session.check();
}

/// The table of calls adds up to what the simulation says, and the page says what it is of.
#[test]
fn tables_and_pages_of_plans_say_what_they_are_of() {
    let room = Room::new();
    let settings = compile("prove = 0\nquality = 0\ndecode = false");
    room.write("recipe.toml", &recipe(&[QUANTIZE, ACTIVATIONS, &settings]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let simulated = room.attar(&["simulate", "out/compiled/prefill.plan", "--csv", "calls.csv", "--json"]).exits(0);
    let simulated: Value = serde_json::from_str(&simulated.stdout).expect("it is JSON");
    let table = room.read("calls.csv");
    let head: Vec<&str> = table.lines().next().expect("it has a head").split(',').collect();
    let column = |name: &str| head.iter().position(|head| *head == name).unwrap_or_else(|| panic!("no column {name}"));
    // Names have commas, and no column of numbers after theirs has: counted from the end, cells are in their columns.
    let cell = |line: &str, name: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        cells[cells.len() - head.len() + column(name)].to_owned()
    };
    let sum = |name: &str| -> u64 { table.lines().skip(1).map(|line| cell(line, name).parse::<u64>().expect(name)).sum() };
    let dispatch = cell(table.lines().nth(1).expect("there are calls"), "start").parse::<u64>().expect("a cycle");
    assert_eq!(Some(sum("cycles") + dispatch), simulated["cycles"].as_u64());
    assert_eq!(Some(sum("critical_cycles") + dispatch), simulated["cycles"].as_u64());
    assert_eq!(sum("compute_cycles") + sum("stalled_cycles"), sum("cycles"));
    assert!(table.contains("\"block 3 / attention / norm + query, key, value\""), "{table}");
    let assumed = cell(table.lines().nth(1).expect("there are calls"), "cycles_rest_on_assumed");
    assert!(assumed.contains("engine.lanes"), "{assumed}");
    let page = room.read("out/compiled/prefill.html");
    let version = env!("CARGO_PKG_VERSION");
    let title = format!(
        "<title>shakespeare-1m, prefill: 40 tokens, empty cache, on generic-npu, by recipe.toml, attar {version}</title>"
    );
    assert!(page.contains(&title), "{}", &page[..300]);
    let data = room.json("out/compiled/prefill.json");
    let assumed = data["predicted_from"].as_array().expect("numbers of the device");
    assert!(
        assumed.iter().any(|number| number["confidence"] == "assumed" && number["latency"].as_f64() > Some(0.0)),
        "{assumed:?}"
    );
}
