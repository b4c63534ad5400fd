//! Mistakes in recipes and in usage: exit code 2, the place of the mistake, the way out, and no output folder.

use std::fs;

use crate::{
    checkpoint::Llama,
    room::{Room, Said},
    snapshot::Session,
};

/// A good first step, and where the second one goes.
const HEAD: &str = r#"recipe = 1
model = "testdata/models/shakespeare-1m"
output = "out"

[[step]]
kind = "quantize"
select = ["blocks.*.attention.*"]
grid = "int8"
group = 64

[[step]]
"#;

/// Runs `recipe`, which fails with its mistake shown at the last place where `wanted` stands.
#[track_caller]
fn mistaken(room: &Room, recipe: &str, wanted: &str) -> Said {
    room.write("recipe.toml", recipe);
    let said = room.attar(&["run", "recipe.toml"]).exits(2);
    assert!(!room.path("out").exists(), "nothing is made for a recipe with mistakes");
    assert!(!room.path("recipe.lock").exists(), "nothing is locked for a recipe with mistakes");
    let at = recipe.rfind(wanted).expect("the recipe has it");
    let line = recipe[..at].matches('\n').count() + 1;
    let column = at - recipe[..at].rfind('\n').map_or(0, |newline| newline + 1) + 1;
    assert!(said.stderr.contains(&format!(" recipe.toml:{line}:{column}\n")), "wanted {line}:{column}\n{}", said.stderr);
    let place = &room.attar(&["run", "recipe.toml", "--json"]).exits(2).json()["place"];
    assert_eq!((place["line"].as_u64(), place["column"].as_u64()), (Some(line as u64), Some(column as u64)));
    said
}

#[test]
fn mistakes_in_the_second_step() {
    let mut session = Session::new("second-step");
    let room = Room::new();
    let mut second = |title: &str, lines: &str, wanted: &str| {
        session.note(title, &mistaken(&room, &format!("{HEAD}{lines}\n"), wanted));
    };
    second("a misspelt key", "kind = \"quantize\"\ngrid = \"int4\"\ngruop = 32", "gruop");
    second("a key like no other", "kind = \"quantize\"\ngrid = \"int4\"\nxyzzy = 32", "xyzzy");
    second("no kind", "grid = \"int4\"", "[[step]]");
    second("a misspelt kind", "kind = \"quantise\"\ngrid = \"int4\"", "\"quantise\"");
    second("a kind that is a number", "kind = 4", "4");
    second("no grid", "kind = \"quantize\"\ngroup = 32", "[[step]]");
    second("a misspelt grid", "kind = \"quantize\"\ngrid = \"imt4\"", "\"imt4\"");
    second("a grid that is a number", "kind = \"quantize\"\ngrid = 4", "4");
    second("a group of nothing", "kind = \"quantize\"\ngrid = \"int4\"\ngroup = 0", "0");
    second("a negative group", "kind = \"quantize\"\ngrid = \"int4\"\ngroup = -32", "-32");
    second("a group that is a fraction", "kind = \"quantize\"\ngrid = \"int4\"\ngroup = 32.5", "32.5");
    second("a group in words", "kind = \"quantize\"\ngrid = \"int4\"\ngroup = \"column\"", "\"column\"");
    second("a switch that is text", "kind = \"quantize\"\ngrid = \"int4\"\nasymmetric = \"yes\"", "\"yes\"");
    second("a misspelt way to find scales", "kind = \"quantize\"\ngrid = \"int4\"\nscales = \"msee\"", "\"msee\"");
    second("a list that is text", "kind = \"quantize\"\ngrid = \"int4\"\nselect = \"blocks.*\"", "\"blocks.*\"");
    second("a pattern that is none", "kind = \"quantize\"\ngrid = \"int4\"\nselect = [\"blocks.{mlp\"]", "[\"blocks.{mlp\"]");
    second("a key twice", "kind = \"quantize\"\ngrid = \"int4\"\ngrid = \"int8\"", "grid");
    second(
        "a misspelt key in an override",
        "kind = \"quantize\"\ngrid = \"int4\"\n[[step.override]]\nselect = [\"blocks.*.mlp.down\"]\ngird = \"int8\"",
        "gird",
    );
    session.check();
}

#[test]
fn patterns_and_groups_that_do_not_fit_the_model() {
    let mut session = Session::new("does-not-fit");
    let room = Room::new();
    let mut second = |title: &str, lines: &str, wanted: &str| {
        let said = mistaken(&room, &format!("{HEAD}kind = \"quantize\"\ngrid = \"int4\"\n{lines}\n"), wanted);
        assert_eq!(room.attar(&["plan", "recipe.toml"]).exits(2).stderr, said.stderr, "a plan says the same");
        session.note(title, &said);
    };
    second("a pattern that matches nothing", "select = [\"blocks.*.mlp.gaet\"]", "\"blocks.*.mlp.gaet\"");
    second("the second pattern matches nothing", "select = [\"blocks.*.mlp.*\", \"blocks.9.mlp.*\"]", "\"blocks.9.mlp.*\"");
    second("nothing to keep", "select = [\"blocks.*.mlp.*\"]\nkeep = [\"lm_haed\"]", "\"lm_haed\"");
    second("nothing left", "select = [\"blocks.*.mlp.*\"]\nkeep = [\"blocks.**\"]", "[\"blocks.**\"]");
    second("quantized twice", "select = [\"blocks.*.attention.query\"]", "[\"blocks.*.attention.query\"]");
    second("a group that does not divide", "select = [\"blocks.*.mlp.gate\"]\ngroup = 96", "96");
    second("a group larger than a row", "select = [\"blocks.*.mlp.gate\"]\ngroup = 256", "256");
    second(
        "an override that matches nothing",
        "select = [\"blocks.*.mlp.*\"]\n[[step.override]]\nselect = [\"blocks.0.attention.*\"]\ngrid = \"int8\"",
        "\"blocks.0.attention.*\"",
    );
    second(
        "an override with a group that does not divide",
        "select = [\"blocks.*.mlp.*\"]\n[[step.override]]\nselect = [\"blocks.0.mlp.down\"]\ngroup = 80",
        "80",
    );
    session.check();
}

#[test]
fn mistakes_about_activations() {
    let mut session = Session::new("activations");
    let room = Room::new();
    let text = "[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 2\nlength = 64\n\n";
    let head = HEAD.replace("[[step]]\nkind = \"quantize\"\nselect", &format!("{text}[[step]]\nkind = \"quantize\"\nselect"));
    let mut second = |title: &str, head: &str, lines: &str, wanted: &str| {
        let said = mistaken(&room, &format!("{head}kind = \"activations\"\n{lines}\n"), wanted);
        assert_eq!(room.attar(&["plan", "recipe.toml"]).exits(2).stderr, said.stderr, "a plan says the same");
        session.note(title, &said);
    };
    second("a width that no NPU has", &head, "bits = 7", "7");
    second("a misspelt mode", &head, "mode = \"statik\"", "\"statik\"");
    second("a misspelt observer", &head, "mode = \"static\"\nobserver = \"minimax\"", "\"minimax\"");
    second("a misspelt key", &head, "granuarity = \"tensor\"", "granuarity");
    second("a cache that is none", &head, "kv = \"int3\"", "\"int3\"");
    second("an observer for scales that are dynamic", &head, "observer = \"mse\"", "\"mse\"");
    second("channels for scales that are dynamic", &head, "granularity = \"channel\"", "\"channel\"");
    second("zeros for scales that are dynamic", &head, "asymmetric = true", "true");
    second("a percentile for another observer", &head, "mode = \"static\"\npercentile = 99.0", "99.0");
    second("a percentile that is a share", &head, "mode = \"static\"\nobserver = \"percentile\"\npercentile = 0.999", "0.999");
    second("a pattern that matches nothing", &head, "select = [\"blocks.*.mlp.gaet\"]", "\"blocks.*.mlp.gaet\"");
    second("nothing selected", &head, "select = []", "[]");
    second("twice", &head, "\n[[step]]\nkind = \"activations\"\nselect = [\"blocks.0.mlp.up\"]", "[\"blocks.0.mlp.up\"]");
    second("a cache twice", &head, "kv = \"int8\"\n\n[[step]]\nkind = \"activations\"\nselect = []\nkv = \"int4\"", "\"int4\"");
    session.check();
}

/// The shape of stories260k: 172 columns, which 64 does not divide.
const STORIES: Llama = Llama { hidden: 64, intermediate: 172, blocks: 2, vocabulary: 128, shards: 1 };

#[test]
fn a_width_that_the_group_does_not_divide_wants_a_short_tail() {
    let mut session = Session::new("short-tail");
    let room = Room::new();
    STORIES.write(&room.path("model"));
    let recipe = |tail: &str| {
        let step = format!("[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\n{tail}");
        format!(
            "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n\n{step}\n[[export]]\ntarget = \"checkpoint\"\nfolder = \".\"\n"
        )
    };
    let said = mistaken(&room, &recipe(""), "64");
    assert!(said.stderr.contains("tail = \"short\""), "{}", said.stderr);
    session.note("64 does not divide 172", &said);
    room.write("recipe.toml", &recipe("tail = \"short\"\n"));
    room.attar(&["run", "recipe.toml"]).exits(0);
    let flags = ["quantize", "model", "--grid", "int4", "--group", "64", "--tail", "short", "--out", "flags"];
    room.attar(&flags).exits(0);
    assert!(room.files("out")["model.safetensors"] == room.files("flags")["model.safetensors"]);
    session.note("the same as a verb, without the tail", &room.attar(&[&flags[..6], &["--out", "other"]].concat()).exits(2));
    assert!(!room.path("other").exists());
    let inspected = room.attar(&["inspect", "out", "--json"]).exits(0).json();
    let down = inspected["tensors"].as_array().unwrap().iter().find(|t| t["name"] == "blocks.0.mlp.down").unwrap();
    // Three scales a row: 64, 64 and 44 columns.
    assert_eq!(down["true_bits"], 64 * (172 * 4 + 3 * 16));
    session.check();
}

#[test]
fn mistakes_around_the_steps() {
    let mut session = Session::new("around-the-steps");
    let room = Room::new();
    let step = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n";
    let head = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n\n";
    let eval = "[[eval]]\nname = \"text\"\ntask = \"perplexity\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 64\n";
    let variants =
        "[[variant]]\nname = \"one\"\n[[variant.step]]\nkind = \"quantize\"\ngrid = \"int8\"\n\n[[variant]]\nname = \"two\"\n";
    let mut around = |title: &str, recipe: String, wanted: &str| session.note(title, &mistaken(&room, &recipe, wanted));
    around("another format", head.replace("recipe = 1", "recipe = 2") + step, "2\nmodel");
    around("no format", head.replace("recipe = 1\n", "") + step, "model = ");
    around("no TOML", head.to_owned() + "[[step]\nkind = \"quantize\"\n", "\nkind");
    around("text without an end", head.to_owned() + "[[step]]\nkind = \"quantize\n", "\n");
    around("a misspelt section", head.to_owned() + "[[steps]]\nkind = \"quantize\"\n", "steps");
    around("a step that is no list", head.to_owned() + "[step]\nkind = \"quantize\"\n", "[step]");
    around("two variants of one name", head.to_owned() + &variants.replace("two", "one"), "\"one\"");
    around("a name that is none", head.to_owned() + &variants.replace("two", "../two"), "\"../two\"");
    around("a misspelt target", head.to_owned() + step + "[[export]]\ntarget = \"onxn\"\n", "\"onxn\"");
    around(
        "a misspelt layout",
        head.to_owned() + step + "[[export]]\ntarget = \"onnx\"\nlayout = \"matmul-nbit\"\n",
        "\"matmul-nbit\"",
    );
    let export = |folder: &str| format!("[[export]]\ntarget = \"onnx\"\nfolder = \"{folder}\"\n");
    around("a folder outside", head.to_owned() + step + &export("../onnx"), "\"../onnx\"");
    around("a folder in place of the report", head.to_owned() + step + &export("report.json"), "\"report.json\"");
    around("several variants in one folder", head.to_owned() + variants + &export("."), "\".\"");
    around("two exports in one folder", head.to_owned() + step + &"[[export]]\ntarget = \"onnx\"\n".repeat(2), "[[export]]");
    around("a folder in the other's", head.to_owned() + step + &export("onnx/small") + &export("onnx"), "\"onnx\"\n");
    around("an engine without its artifact", head.to_owned() + step + eval + "runners = [\"onnxruntime\"]\n", "[[eval]]");
    around("an unknown runner", head.to_owned() + step + eval + "runners = [\"onnxruntim\"]\n", "\"onnxruntim\"");
    around("a misspelt task", head.to_owned() + step + &eval.replace("perplexity", "perplexety"), "\"perplexety\"");
    around("a window longer than the context", head.to_owned() + step + &eval.replace("64", "4096"), "4096");
    session.check();
}

#[test]
fn gates_on_what_is_not_measured() {
    let mut session = Session::new("gates-unknown");
    let room = Room::new();
    let mut gate = |title: &str, lines: &str, wanted: &str| {
        let recipe = format!(
            "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n\n\
             [[variant]]\nname = \"small\"\n[[variant.step]]\nkind = \"quantize\"\ngrid = \"int4\"\n\n\
             [[eval]]\nname = \"text\"\ntask = \"perplexity\"\ndata = \"testdata/evals/shakespeare-valid.txt\"\nwindow = 64\n\n\
             [[gate]]\nmetric = \"text/perplexity\"\nat_most = 100\n\n[[gate]]\n{lines}\n"
        );
        session.note(title, &mistaken(&room, &recipe, wanted));
    };
    gate("an unknown metric", "metric = \"text/preplexity\"\nat_most = 100", "\"text/preplexity\"");
    gate("an unknown eval", "metric = \"txt/perplexity\"\nat_most = 100", "\"txt/perplexity\"");
    gate("no eval", "metric = \"perplexity\"\nat_most = 100", "\"perplexity\"");
    gate("an unknown variant", "metric = \"text/perplexity\"\nvariant = \"smal\"\nat_most = 100", "\"smal\"");
    gate(
        "a runner that does not run",
        "metric = \"text/perplexity\"\nrunner = \"onnxruntime\"\nat_most = 100",
        "\"onnxruntime\"",
    );
    gate("no bound", "metric = \"text/perplexity\"", "[[gate]]");
    gate("two bounds", "metric = \"text/perplexity\"\nat_most = 100\nat_least = 1", "1");
    gate("a bound that is text", "metric = \"text/perplexity\"\nat_most = \"much\"", "\"much\"");
    gate("a share that is none", "metric = \"text/perplexity\"\ndrop_at_most = \"3 percent\"", "\"3 percent\"");
    session.check();
}

#[test]
fn overrides_mix_precisions() {
    let room = Room::new();
    let overrides = "[[step.override]]\nselect = [\"blocks.*.mlp.down\"]\ngrid = \"int8\"\n\n\
                     [[step.override]]\nselect = [\"blocks.0.**\"]\ngroup = \"row\"\n";
    let step = format!("[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\nkeep = [\"blocks.3.**\"]\n\n{overrides}");
    let head = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n";
    room.write("recipe.toml", &format!("{head}\n{step}\n[[export]]\ntarget = \"checkpoint\"\n"));
    room.attar(&["run", "recipe.toml"]).exits(0);
    let inspected = room.attar(&["inspect", "out/checkpoint", "--json"]).exits(0).json();
    let encoding = |name: &str| {
        let tensors = inspected["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap()["encoding"].as_str().unwrap().to_owned()
    };
    assert_eq!(encoding("blocks.1.mlp.gate"), "int4/g64");
    assert_eq!(encoding("blocks.1.mlp.down"), "int8/g64");
    assert_eq!(encoding("blocks.0.mlp.gate"), "int4/row");
    // The last override that matches counts, whole: what it does not say is the step's.
    assert_eq!(encoding("blocks.0.mlp.down"), "int8/row");
    assert_eq!(encoding("blocks.3.mlp.down"), "bf16");
}

#[test]
fn usage() {
    let mut session = Session::new("usage");
    let room = Room::new();
    room.write("folder.toml", "recipe = 1\n");
    fs::create_dir(room.path("folder")).unwrap();
    let model = "testdata/models/shakespeare-1m";
    let wrong: [(&str, &[&str]); 13] = [
        ("an unknown verb", &["qantize"]),
        ("an unknown flag", &["run", "recipe.toml", "--lock"]),
        ("no recipe", &["run"]),
        ("a recipe that is missing", &["run", "nowhere.toml"]),
        ("a recipe that is a folder", &["run", "folder"]),
        ("a recipe without what it needs", &["run", "folder.toml"]),
        ("no grid", &["quantize", model, "--out", "out"]),
        ("an unknown grid", &["quantize", model, "--grid", "int7", "--out", "out"]),
        ("no output", &["quantize", model, "--grid", "int4"]),
        ("a group that is none", &["quantize", model, "--grid", "int4", "--group", "none", "--out", "out"]),
        ("an unknown target", &["export", model, "--target", "coreml", "--out", "out"]),
        ("a task without data", &["eval", model, "--task", "perplexity"]),
        ("no threads", &["run", "folder.toml", "--threads", "0"]),
    ];
    for (title, arguments) in wrong {
        session.note(title, &room.attar(arguments).exits(2));
    }
    assert!(!room.path("out").exists());
    session.check();
}
