//! Sparse models: zeros that every later step keeps, what is refused, what a device gains.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
};

use attar_compress::QUANTIZERS;
use attar_model::Model;

use crate::{
    room::{Room, assert_same_files, repository, skip},
    snapshot::Session,
};

const MODEL: &str = "testdata/models/shakespeare-1m";
const TEXT: &str = "testdata/evals/shakespeare-train.txt";
const QUANTIZE: &str = "kind = \"quantize\"\ngrid = \"int4\"\ngroup = 32";

fn head(model: &str) -> String {
    format!(
        "recipe = 1\nmodel = \"{model}\"\noutput = \"out\"\n\n[data.calibration]\npath = \"{TEXT}\"\nsamples = 16\nlength = 64\n"
    )
}

/// A run of the small model through steps.
fn recipe(steps: &[&str]) -> String {
    steps.iter().fold(head(MODEL), |all, step| format!("{all}\n[[step]]\n{step}\n"))
}

fn export(target: &str) -> String {
    format!("\n[[export]]\ntarget = \"{target}\"\n")
}

/// The numbers of every matrix of the blocks, by canonical name.
fn matrices(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let model = Model::open(folder).expect("attar opens what it wrote");
    let of_blocks =
        model.graph.weights().filter(|(_, value, _)| value.name.starts_with("blocks.") && !value.name.contains("norm"));
    let read = |(_, value, expr): (_, &attar_graph::Value, &attar_graph::Expr)| {
        let dims = value.fact.constant_dims().expect("a weight has a shape");
        let mut numbers = vec![1.0; dims.iter().product()];
        expr.read(&*model.source, 0..dims[0], &mut numbers).expect("it is there");
        (value.name.clone(), numbers)
    };
    of_blocks.map(read).collect()
}

/// Every number that is zero in `sparse` is zero in `found`, and most others are not.
#[track_caller]
fn assert_zeros_stay(sparse: &BTreeMap<String, Vec<f32>>, found: &BTreeMap<String, Vec<f32>>, what: &str) {
    for (name, sparse) in sparse {
        let found = &found[name];
        let filled = sparse.iter().zip(found).filter(|(sparse, found)| **sparse == 0.0 && **found != 0.0).count();
        assert_eq!(filled, 0, "{what}: zeros of `{name}` that were filled, of {}", found.len());
        let left = found.iter().filter(|w| **w != 0.0).count();
        assert!(4 * left > found.len(), "{what}: {left} of {} weights of `{name}` are left", found.len());
    }
}

/// What may follow, a variant each.
fn followers() -> Vec<(String, String)> {
    let step = |text: &str| format!("[[variant.step]]\n{text}\n");
    let mut all: Vec<(String, String)> =
        QUANTIZERS.iter().map(|q| (q.name().into(), step(&format!("{QUANTIZE}\nalgorithm = \"{}\"", q.name())))).collect();
    let mut more = |name: &str, steps: &[&str]| all.push((name.into(), steps.iter().map(|text| step(text)).collect()));
    more("sparse", &[]);
    more(
        "asymmetric",
        &["kind = \"quantize\"\ngrid = \"int3\"\ngroup = 32\nasymmetric = true\nalgorithm = \"gptq\"\nscales = \"mse\""],
    );
    more("table", &["kind = \"quantize\"\ngrid = \"nf4\"\ngroup = 32\nalgorithm = \"gptaq\""]);
    more("budget", &["kind = \"quantize\"\nbits = 4.25\nalgorithm = \"gptq\""]);
    more("coded", &[&coded(3.0)]);
    more("smooth", &["kind = \"smooth\"\nmethod = \"awq\"\ngrid = \"int4\"\ngroup = 32", QUANTIZE]);
    more("autoround", &[QUANTIZE, "kind = \"autoround\"\niterations = 4\nrounding = 0.2"]);
    more("recover", &[QUANTIZE, "kind = \"recover\"\nepochs = 1\nrounding = 0.2"]);
    more("lora", &[QUANTIZE, "kind = \"recover\"\nepochs = 1\nmethod = \"lora\"\nrounding = 0.2"]);
    more("distill", &["kind = \"distill\"\nlearning_rate = 1e-3\nsteps = 3\ndecay = 0.1"]);
    more("matched", &["kind = \"distill\"\nlearning_rate = 1e-3\nlocal = 1\nsteps = 2\ndecay = 0.1"]);
    more("more", &["kind = \"prune\"\nsparsity = 0.6\nmethod = \"wanda\""]);
    all
}

#[test]
fn whatever_follows_zeros_stay_exactly_zero() {
    for sparsity in ["0.5", "\"2:4\""] {
        let room = Room::new();
        let variants: String = followers()
            .into_iter()
            .map(|(name, steps)| {
                let prune = format!("[[variant.step]]\nkind = \"prune\"\nsparsity = {sparsity}\nfit = \"residual\"\n");
                format!("\n[[variant]]\nname = \"{name}\"\n{prune}{steps}")
            })
            .collect();
        room.write("recipe.toml", &(head(MODEL) + &variants + &export("checkpoint")));
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        let sparse = matrices(&room.path("out/sparse/checkpoint"));
        let whole = matrices(&room.path(MODEL));
        for (name, numbers) in &sparse {
            let zeros = numbers.iter().filter(|w| **w == 0.0).count();
            assert_eq!(2 * zeros, numbers.len(), "half of `{name}`");
            assert!(whole[name].iter().all(|w| *w != 0.0), "no zero of `{name}` was there before");
            if sparsity.contains(':') {
                assert!(numbers.chunks(4).all(|group| group.iter().filter(|w| **w != 0.0).count() == 2), "2 of 4 of `{name}`");
            }
        }
        for (name, _) in followers() {
            // Smoothed weights are scaled, and so is what they are compared with; zeros are not moved.
            assert_zeros_stay(&sparse, &matrices(&room.path(&format!("out/{name}/checkpoint"))), &format!("{sparsity} {name}"));
        }
    }
}

#[test]
fn a_sparse_checkpoint_is_opened_as_one() {
    let room = Room::new();
    for target in ["safetensors", "checkpoint"] {
        room.write(
            "recipe.toml",
            &(recipe(&["kind = \"prune\"\nsparsity = 0.5"]) + &export(target)).replace("\"out\"", &format!("\"first-{target}\"")),
        );
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        let sparse = format!("first-{target}/{target}");
        let later = format!("{}\n[[step]]\n{QUANTIZE}\nalgorithm = \"gptaq\"\n{}", head(&sparse), export("checkpoint"));
        room.write("later.toml", &later.replace("\"out\"", &format!("\"later-{target}\"")));
        room.attar(&["run", "later.toml", "--quiet"]).exits(0);
        assert_zeros_stay(&matrices(&room.path(&sparse)), &matrices(&room.path(&format!("later-{target}/checkpoint"))), target);
        room.write("rotated.toml", &format!("{}\n[[step]]\nkind = \"rotate\"\n", head(&sparse)));
        let said = room.attar(&["plan", "rotated.toml"]).exits(2).stderr;
        assert!(said.contains("is sparse, and mixing its inputs or outputs would fill its zeros"), "{said}");
    }
}

#[test]
fn fitting_helps_and_the_second_stream_helps_more() {
    let room = Room::new();
    let kl = |method: &str, fit: &str| {
        let step = format!("kind = \"prune\"\nsparsity = \"2:4\"\nmethod = \"{method}\"\nfit = \"{fit}\"");
        room.write("recipe.toml", &recipe(&[&step]).replace("samples = 16", "samples = 64"));
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        let found = room.json("out/report.json")["variants"][0]["sparsities"][0].clone();
        assert_eq!(found["zeros"].as_u64().map(|zeros| 2 * zeros), found["weights"].as_u64(), "{found}");
        found["divergence"].as_f64().expect("it is measured")
    };
    for method in ["obs", "wanda", "magnitude"] {
        let [none, layer, residual] = ["none", "layer", "residual"].map(|fit| kl(method, fit));
        assert!(layer < 0.8 * none && residual < layer, "{method}: {none} as it is, {layer}, {residual}");
    }
}

#[test]
fn a_verb_makes_sparse_and_repeats_itself() {
    let room = Room::new();
    for (out, threads) in [("one", "1"), ("two", "2")] {
        let arguments =
            ["prune", MODEL, "--sparsity", "2:4", "--fit", "residual", "--calibration", TEXT, "--samples", "16", "--quiet"];
        let mut command = room.command(&[arguments.as_slice(), &["--length", "64", "--out", out]].concat());
        command.env("RAYON_NUM_THREADS", threads);
        room.finish(command).exits(0);
    }
    assert_same_files(&room.files("one"), &room.files("two"), "the same command gives the same files");
}

/// A sparsity, a device, what that gains, and what it does not.
type OnDevice<'a> = (&'a str, Option<&'a str>, &'a [&'a str], Option<&'a str>);

#[test]
fn a_plan_and_a_report_say_what_a_device_gains_and_what_it_does_not() {
    let room = Room::new();
    let cases: &[OnDevice<'_>] = &[
        ("0.5", None, &[], Some("zeros bring nothing by themselves")),
        ("0.5", Some("ethos-u55-256"), &["about 4.58 bits for an int8 weight, and 7.06"], None),
        ("0.6", Some("ethos-u65-512"), &["about 3.80 bits"], None),
        ("0.9", Some("ethos-u55-256"), &["fewer bits for zeros"], None),
        ("\"2:4\"", Some("ethos-u55-256"), &["about 4.58 bits"], Some("`ethos-u55-256` skips no zeros of 2:4")),
        ("\"2:4\"", Some("ethos-u85-1024"), &["about 4.58 bits", "the array skips the zeros of 2:4"], None),
        ("\"4:8\"", Some("ethos-u85-1024"), &["about 4.58 bits"], Some("`ethos-u85-1024` skips no zeros of 4:8")),
        ("0.75", Some("apple-ane-m4"), &["25% of the weights and a mask of 1 bit"], None),
        ("\"2:4\"", Some("generic-npu"), &[], Some("`generic-npu` gains nothing from `sparsity = 2:4`")),
    ];
    for (sparsity, device, gains, warning) in cases {
        let device = device.map(|device| format!("\ndevice = \"{device}\"")).unwrap_or_default();
        room.write("recipe.toml", &recipe(&[&format!("kind = \"prune\"\nsparsity = {sparsity}\nfit = \"none\"{device}")]));
        let planned = room.attar(&["plan", "recipe.toml"]).exits(0).stdout;
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        let (report, written) = (room.json("out/report.json"), room.read("out/report.md"));
        let found = &report["variants"][0]["sparsities"][0];
        assert_eq!(found["gains"].as_array().map_or(0, Vec::len), gains.len(), "{found}");
        assert_eq!(found["warning"].is_string(), warning.is_some(), "{found}");
        assert_eq!(planned.contains("WARNING"), warning.is_some(), "{planned}");
        for said in gains.iter().chain(warning) {
            assert!(planned.contains(said) && written.contains(said), "{sparsity}{device}: {said}");
        }
    }
}

#[test]
fn a_text_that_is_too_short_to_fit_on_is_noted() {
    let room = Room::new();
    for (fit, noted) in [("residual", true), ("none", false)] {
        room.write("recipe.toml", &recipe(&[&format!("kind = \"prune\"\nsparsity = 0.5\nfit = \"{fit}\"")]));
        let said = room.attar(&["run", "recipe.toml"]).exits(0).stderr;
        assert_eq!(said.contains("layers of 384 inputs are fitted on 896 tokens"), noted, "{said}");
        assert!(said.contains("WARNING: zeros bring nothing by themselves"), "{said}");
    }
}

/// An entropy in bits is at most the width of the codes, and the coder takes a little more than that; groups have no place in its stream.
#[test]
fn a_coded_stream_is_estimated_from_the_codes() {
    let room = Room::new();
    let found = |sparsity: &str, quantize: &str| {
        let prune = format!("kind = \"prune\"\nsparsity = {sparsity}\nfit = \"none\"\ndevice = \"ethos-u55-256\"");
        let step = format!("kind = \"quantize\"\n{quantize}");
        room.write("recipe.toml", &recipe(&[&prune, &step]));
        room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
        room.json("out/report.json")["variants"][0]["coded"][0].clone()
    };
    let mut before = f64::INFINITY;
    for (sparsity, quantize) in [("0.25", INT8), ("0.5", INT8), ("0.75", INT8)] {
        let coded = found(sparsity, quantize);
        let number = |key: &str| coded[key].as_f64().unwrap_or_else(|| panic!("{key}: {coded}"));
        let (entropy, estimate) = (number("entropy"), number("coded_bits_per_weight"));
        assert!(entropy < estimate && estimate < entropy + 0.4 && estimate < before, "{sparsity}: {coded}");
        assert!(number("zeros") >= sparsity.parse::<f64>().expect("a share") * number("weights"), "{coded}");
        assert_eq!((number("bits_per_weight"), number("layers")), (8.0, 28.0));
        before = estimate;
    }
    assert!(room.read("out/report.md").contains("coded bits per weight (estimated)"));
    let four = found("0.5", "grid = \"int4\"\ngroup = \"row\"\nlost = \"report\"");
    assert!(four["coded_bits_per_weight"].as_f64().is_some_and(|bits| bits < 3.5), "{four}");
    assert!(found("0.5", "grid = \"int4\"\ngroup = 32").is_null(), "groups are no stream of the coder");
}

/// A budget of coded bits is kept, is what the report's estimate of the finished model says, and loses less than a mask and a grid that were
/// chosen one after the other.
#[test]
fn coded_bits_choose_steps_and_zeros_together() {
    let room = Room::new();
    let mask = "kind = \"prune\"\nsparsity = 0.5\nfit = \"residual\"\ndevice = \"ethos-u55-256\"";
    let int4 = format!("kind = \"quantize\"\nalgorithm = \"gptq\"\n{}", INT8.replace("int8", "int4"));
    let variant = |name: &str, steps: &[&str]| {
        let steps: String = steps.iter().map(|step| format!("[[variant.step]]\n{step}\n")).collect();
        format!("\n[[variant]]\nname = \"{name}\"\n{steps}")
    };
    let eval = "\n[[eval]]\nname = \"plays\"\ntask = \"perplexity\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 128\ntokens = 1024\n";
    let variants = variant("apart", &[mask, &int4]) + &variant("three", &[&coded(3.0)]) + &variant("two", &[&coded(2.0)]);
    room.write("recipe.toml", &(head(MODEL) + &variants + &export("checkpoint") + eval));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json");
    let divergence = |name: &str| {
        let eval =
            report["evals"].as_array().expect("a list").iter().find(|eval| eval["variant"] == name).expect("it was measured");
        eval.pointer("/outcome/measured/against_base/kl_mean/value").and_then(serde_json::Value::as_f64).expect("a number")
    };
    let of = |name: &str| report["variants"].as_array().expect("a list").iter().find(|v| v["name"] == name).expect("it was made");
    let bits = |name: &str| of(name)["coded"][0]["coded_bits_per_weight"].as_f64().expect("a number");
    for (name, budget) in [("three", 3.0), ("two", 2.0)] {
        let spent = &of(name)["allocations"][0];
        assert_eq!(spent["budget"], format!("coded_bits = {budget}"), "{spent}");
        let predicted = spent["bits_per_weight"].as_f64().expect("a number");
        assert!(predicted <= budget && predicted > budget - 0.1, "{spent}");
        // Predicted of weights that were rounded one at a time, counted of all.
        assert!((bits(name) - predicted).abs() < 0.05, "{name}: {}", bits(name));
        assert!(spent["choices"][0]["zeros"].as_f64().is_some_and(|zeros| zeros > 0.05), "{spent}");
    }
    assert!(bits("three") < bits("apart") && divergence("three") < 0.6 * divergence("apart"), "{}", divergence("three"));
    assert!(divergence("two") > divergence("three"));
    assert!(room.read("out/report.md").contains("coded bits per selected weight"));
    is_what_the_coder_takes(&room, &["three", "two"], &bits);
}

/// Weights of another format beside them have their own bits; a tied table counts once; a sweep goes over such budgets, too; and training behind them is told of.
#[test]
fn coded_bits_go_with_other_formats_ties_and_sweeps() {
    let room = Room::new();
    let grouped = "\n[[step.override]]\nselect = [\"blocks.0.**\"]\ngrid = \"int4\"\ngroup = 32\n";
    room.write("recipe.toml", &recipe(&[&(coded(4.0) + grouped)]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let choices = room.json("out/report.json")["variants"][0]["allocations"][0]["choices"].clone();
    let first =
        choices.as_array().expect("a list").iter().find(|choice| choice["scheme"] == "int4/g32").expect("as the override says");
    assert!(first["zeros"].is_null() && first["bits_per_weight"] == 4.5, "{first}");
    room.write("recipe.toml", &recipe(&[&(coded(3.0) + "\nselect = [\"**\"]")]));
    room.attar(&["run", "recipe.toml", "--quiet"]).exits(0);
    let report = room.json("out/report.json")["variants"][0].clone();
    assert_eq!((&report["coded"][0]["weights"], &report["coded"][0]["layers"]), (&917_504.into(), &29.into()), "{report}");
    room.attar(&["sweep", "recipe.toml", "--points", "3"]).exits(0);
    let swept = room.json("out/sweep.json");
    let bits = |at: usize| {
        swept.pointer(&format!("/fronts/0/points/{at}/allocation/bits_per_weight")).and_then(serde_json::Value::as_f64)
    };
    assert!(bits(0) < bits(1) && bits(1) < bits(2) && bits(2) > Some(6.0), "{swept}");
    room.write("recipe.toml", &recipe(&[&coded(3.0), "kind = \"autoround\"\niterations = 4\nrounding = 0.2"]));
    let planned = room.attar(&["plan", "recipe.toml"]).exits(0).stdout;
    assert!(planned.contains("may exceed `coded_bits`"), "{planned}");
}

/// Vela's own coder takes as many bits for the exported codes as the report says, within 5%.
fn is_what_the_coder_takes(room: &Room, variants: &[&str], said: &dyn Fn(&str) -> f64) {
    let python = PathBuf::from(std::env::var_os("ATTAR_ENGINES").unwrap_or_default()).join("vela/bin/python");
    if !python.exists() {
        return skip("there is no Vela in ATTAR_ENGINES: `cargo xtask engines` installs it");
    }
    for name in variants {
        let folder = room.path(&format!("out/{name}/checkpoint"));
        let output = Command::new(&python).arg(repository().join("testdata/oracle/coder.py")).arg(&folder).output();
        let output = output.expect("Python starts");
        let text = String::from_utf8_lossy(&output.stdout);
        let found: f64 = text.trim().parse().unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
        let ratio = said(name) / found;
        assert!((0.95..1.05).contains(&ratio), "{name}: {} bits estimated, {found} taken", said(name));
    }
}

/// The step for a budget of coded bits.
fn coded(bits: f64) -> String {
    format!("kind = \"quantize\"\ncoded_bits = {bits}\ndevice = \"ethos-u55-256\"\nalgorithm = \"gptq\"")
}

const INT8: &str = "grid = \"int8\"\ngroup = \"row\"";

#[test]
fn mistakes_are_found_in_the_plan() {
    let room = Room::new();
    let mut session = Session::new("zeros-mistakes");
    let half = "kind = \"prune\"\nsparsity = 0.5";
    let asked = |sparsity: &str| format!("kind = \"prune\"\nsparsity = {sparsity}");
    let wrong = ["0", "1", "1.5", "-0.5", "\"4:2\"", "\"0:4\"", "\"4:4\"", "\"half\"", "true"];
    for sparsity in wrong {
        room.write("recipe.toml", &recipe(&[&asked(sparsity)]));
        session.note(&format!("sparsity = {sparsity}"), &room.attar(&["plan", "recipe.toml"]).exits(2));
    }
    let cases: &[(&str, &[&str])] = &[
        ("a pattern that does not divide", &["kind = \"prune\"\nsparsity = \"2:5\""]),
        ("an unknown device", &["kind = \"prune\"\nsparsity = 0.5\ndevice = \"ethos-u99\""]),
        ("a shape and zeros", &["kind = \"prune\"\nsparsity = 0.5\nmlp = 192"]),
        ("blocks and zeros", &["kind = \"prune\"\nsparsity = 0.5\nblocks = 3"]),
        ("a selection without zeros", &["kind = \"prune\"\nmlp = 192\nselect = [\"blocks.*.mlp.*\"]"]),
        ("a device without zeros", &["kind = \"prune\"\nmlp = 192\ndevice = \"ethos-u55-256\""]),
        ("a method of units", &["kind = \"prune\"\nsparsity = 0.5\nmethod = \"fluctuation\""]),
        ("a name that nothing has", &["kind = \"prune\"\nsparsity = 0.5\nselect = [\"blocks.*.mpl.*\"]"]),
        ("a table of embeddings", &["kind = \"prune\"\nsparsity = 0.5\nselect = [\"embedding\"]"]),
        ("after quantization", &[QUANTIZE, half]),
        ("rotated afterwards", &[half, "kind = \"rotate\""]),
        ("a shape afterwards", &[half, "kind = \"prune\"\nmlp = 192"]),
        ("a grid without zero", &[half, "kind = \"quantize\"\ngrid = \"gauss4\""]),
        ("a learned table", &[half, "kind = \"quantize\"\ngrid = \"lut4\"\ngroup = \"row\""]),
        (
            "a grid without zero for one weight",
            &[
                half,
                "kind = \"quantize\"\ngrid = \"int4\"\n[[step.override]]\nselect = [\"blocks.2.mlp.down\"]\ngrid = \"gauss4\"\ngroup = 32",
            ],
        ),
        ("choices without zero", &[half, "kind = \"quantize\"\nbits = 4.25\nchoices = [\"gauss4/g32\", \"gauss3/g32\"]"]),
        ("a coder without a device", &["kind = \"quantize\"\ncoded_bits = 3\nalgorithm = \"gptq\""]),
        ("a device without a coder", &["kind = \"quantize\"\ncoded_bits = 3\ndevice = \"generic-npu\"\nalgorithm = \"gptq\""]),
        ("a device and a grid", &["kind = \"quantize\"\ngrid = \"int4\"\ndevice = \"ethos-u55-256\""]),
        ("a device and bits", &["kind = \"quantize\"\nbits = 4\ndevice = \"ethos-u55-256\""]),
        ("coded bits and bits", &["kind = \"quantize\"\nbits = 4\ncoded_bits = 3\ndevice = \"ethos-u55-256\""]),
        ("coded bits and a grid", &["kind = \"quantize\"\ngrid = \"int4\"\ncoded_bits = 3\ndevice = \"ethos-u55-256\""]),
        (
            "coded bits and choices",
            &["kind = \"quantize\"\nchoices = [\"int4/g32\"]\ncoded_bits = 3\ndevice = \"ethos-u55-256\""],
        ),
        ("an algorithm that weighs no bits", &["kind = \"quantize\"\ncoded_bits = 3\ndevice = \"ethos-u55-256\""]),
        (
            "other formats beyond coded bits",
            &[
                "kind = \"quantize\"\ncoded_bits = 3\ndevice = \"ethos-u55-256\"\nalgorithm = \"gptq\"\n[[step.override]]\nselect = [\"blocks.**\"]\ngrid = \"int4\"\ngroup = 32",
            ],
        ),
        ("no bits at all", &["kind = \"quantize\"\ncoded_bits = 0\ndevice = \"ethos-u55-256\"\nalgorithm = \"gptq\""]),
        ("exported adapters", &[half, QUANTIZE, "kind = \"recover\"\nmethod = \"lora\"\nadapters = \"export\""]),
    ];
    for (title, steps) in cases {
        room.write("recipe.toml", &recipe(steps));
        session.note(title, &room.attar(&["plan", "recipe.toml"]).exits(2));
    }
    session.check();
}
