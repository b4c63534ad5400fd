//! Float models that learn from a teacher or from text, and what is said where they cannot.

use crate::{
    checkpoint::{copy, edit},
    room::Room,
};

const TEACHER: &str = "teacher = \"testdata/models/shakespeare-1m\"\n";
const TEXT: &str = "[data.train]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 40\nlength = 64\nheld_out = 4\n";

/// A room with a model whose MLPs give half of what they should, and a recipe that trains it.
fn ready(text: &str, step: &str) -> Room {
    let room = Room::new();
    copy(&room, "shakespeare-1m");
    edit(&room, |raw| {
        for layer in 0..4 {
            let range = raw.range(&format!("model.layers.{layer}.mlp.down_proj.weight"));
            for pair in raw.data[range].chunks_exact_mut(2) {
                let half = half(u16::from_le_bytes([pair[0], pair[1]]));
                pair.copy_from_slice(&half.to_le_bytes());
            }
        }
    });
    let rate = if step.contains("learning_rate") { "" } else { "learning_rate = 1e-3\n" };
    let step = format!("[[step]]\nkind = \"distill\"\n{rate}{step}");
    let export = "[[export]]\ntarget = \"checkpoint\"\n";
    room.write("recipe.toml", &format!("recipe = 1\nmodel = \"model\"\noutput = \"out\"\n{text}{step}{export}"));
    room
}

/// Half of a bf16: one less in its exponent.
fn half(bits: u16) -> u16 {
    if bits & 0x7f80 > 0x0080 { bits - 0x0080 } else { bits & 0x8000 }
}

const RUN: [&str; 3] = ["run", "recipe.toml", "--quiet"];

#[test]
fn a_student_comes_close_to_its_teacher() {
    let room = ready(TEXT, &format!("{TEACHER}batch = 2\nepochs = 2\nselect = [\"blocks.*.mlp.down\"]\n"));
    room.attar(&RUN).exits(0);
    let report = room.json("out/report.json");
    let learned = &report["variants"][0]["distillations"][0];
    let held_out = learned["held_out"].as_array().expect("a list");
    let kl = |at: usize| held_out[at]["kl"].as_f64().expect("a number");
    assert_eq!((&learned["steps"], &learned["tokens"]), (&40.into(), &(40 * 2 * 64).into()));
    assert!(kl(held_out.len() - 1) < 0.5 * kl(0), "{learned}");
    assert!(room.read("out/distilled/loss.svg").contains("held-out KL"));
    let model = attar_model::Model::open(&room.path("out/checkpoint")).expect("it was just written");
    let encoding = |name: &str| model.source.info(name).expect("it is there").encoding.to_string();
    assert_eq!(encoding("blocks.0.mlp.down"), "bf16", "the number format stays");
}

/// What does not learn is as it was, and weights that only get worse on the held-out windows are not kept.
#[test]
fn the_start_is_kept_where_nothing_is_better() {
    let step = "labels = 1.0\nkl = 0.0\nlearning_rate = 1.0\nclip = 1000.0\nwarmup = 1\nbatch = 4\nsteps = 3\nevaluate = 1\npatience = 2\n";
    let room = ready(TEXT, step);
    room.attar(&RUN).exits(0);
    let learned = &room.json("out/report.json")["variants"][0]["distillations"][0];
    assert_eq!((&learned["best_step"], &learned["steps"]), (&0.into(), &2.into()), "{learned}");
    let [before, after] =
        ["model", "out/checkpoint"].map(|path| attar_model::Model::open(&room.path(path)).expect("it is there"));
    let weight = |model: &attar_model::Model, name: &str| {
        let (_, _, expr) = model.graph.weights().find(|(_, value, _)| value.name == name).expect("every block has it");
        let mut values = vec![0.0; 128 * 384];
        expr.read(&*model.source, 0..128, &mut values).expect("it is whole");
        values
    };
    assert!(weight(&before, "blocks.2.mlp.down") == weight(&after, "blocks.2.mlp.down"));
}

#[test]
fn what_cannot_be_learned_from_is_refused_with_a_way_out() {
    let refuse = |text: &str, step: &str, code: i32, says: &[&str]| {
        let room = ready(text, step);
        let said = room.attar(&RUN).exits(code);
        says.iter().for_each(|words| said.says(words));
    };
    let other = "teacher = \"testdata/models/tiny-qwen2\"\n";
    refuse(TEXT, other, 2, &["the teacher has", "of the same family"]);
    refuse(TEXT, "teacher = \"testdata/models/tiny-bert\"\n", 2, &["it is an encoder"]);
    refuse(TEXT, "teacher = \"nowhere\"\n", 3, &["nowhere"]);
    refuse(TEXT, "batch = 64\nlabels = 1.0\n", 2, &["40 windows of 64", "lower `batch`"]);
    let long = TEXT.replace("samples = 40", "samples = 100000");
    refuse(&long, "labels = 1.0\n", 3, &["training wants 6400256"]);
    refuse("", "", 2, &["trains on text", "`[data.train]`"]);
    refuse(TEXT, "", 2, &["the teacher is the model itself", "name a `teacher`"]);
    refuse(
        TEXT,
        "learning_rate = 1e12\nclip = 1e9\nlabels = 1.0\nwarmup = 1\n",
        2,
        &["the loss is not finite any more", "`blocks.", "lower `learning_rate`"],
    );
    refuse(TEXT, "kl = 0.0\n", 2, &["give one of them a weight above 0"]);
    refuse(TEXT, "steps = 3\nepochs = 1\n", 2, &["leave the other out"]);
    refuse(TEXT, "rank = 4\n", 2, &["matches no quantized weight"]);
    refuse(TEXT, "rank = 4\nhidden = 1.0\n", 2, &["`hidden` does not go with `rank = 4`"]);
    refuse(TEXT, "rank = 4\ndtype = \"f16\"\n", 2, &["leave `dtype` out"]);
    refuse(&TEXT.replace("held_out = 4", "held_out = 1.5"), "labels = 1.0\n", 2, &["a share between 0 and 1"]);
    let lines = TEXT.replace("shakespeare-train.txt", "plays.jsonl");
    refuse(&lines, "labels = 1.0\n", 2, &["holds JSON objects", "`field` names the text"]);
    refuse(TEXT, "select = [\"blocks.*.mlp.dawn\"]\n", 2, &["matches no weight", ".mlp.down"]);
    let room = ready(TEXT, "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n");
    let text = room.read("recipe.toml");
    let (head, steps) = text.split_once("[[step]]").expect("it has steps");
    let (distill, quantize) = steps.split_once("[[step]]").expect("it has two");
    let (quantize, export) = quantize.split_once("[[export]]").expect("it has an export");
    room.write("recipe.toml", &format!("{head}[[step]]{quantize}[[step]]{distill}[[export]]{export}"));
    let said = room.attar(&RUN).exits(2);
    said.says("is quantized to int4");
    said.says("give a `rank`: adapters learn next to codes");
}

#[test]
fn texts_of_json_lines_are_trained_on() {
    let lines = |key: &str| -> String {
        let line = |at: usize| format!("{{\"id\": {at}, \"{key}\": \"ROMEO:\\nBut soft, what light is number {at}?\"}}\n");
        (0..60).map(line).collect()
    };
    let text = "[data.train]\npath = \"text.jsonl\"\nfield = \"text\"\nlength = 32\nheld_out = 2\n";
    let room = ready(text, "steps = 2\nlabels = 1.0\n");
    room.write("text.jsonl", &lines("text"));
    room.attar(&RUN).exits(0);
    room.write("text.jsonl", &format!("{}{}", lines("text"), lines("words")));
    room.attar(&RUN).exits(3).says("line 61: no `text` among `id`, `words`");
    room.write("text.jsonl", "{\"text\": \"a\"}\n[1]\n");
    room.attar(&RUN).exits(3).says("line 2: no JSON object");
}

/// The model's own template makes texts of dialogues, whose special tokens are single tokens.
#[test]
fn dialogues_are_trained_on_in_the_models_own_words() {
    let text = "[data.train]\npath = \"chats.jsonl\"\nmessages = \"turns\"\nlength = 32\nheld_out = 0.1\n";
    let room = ready(text, "steps = 2\nlabels = 1.0\n");
    let line = |at: usize| {
        format!(
            "{{\"turns\": [{{\"role\": \"user\", \"content\": \"Who is number {at}?\"}}, {{\"role\": \"assistant\", \"content\": \"Romeo.\"}}]}}\n"
        )
    };
    let lines: String = (0..60).map(line).collect();
    room.write("chats.jsonl", &lines);
    room.attar(&RUN).exits(2).says("the model has no chat template");
    room.write(
        "model/chat_template.jinja",
        "{% for m in messages %}{{ m.role | upper }}:\n{{ m.content }}\n{% if m.role == 'fool' %}{{ raise_exception('no fools') }}{% endif %}{% endfor %}",
    );
    room.attar(&RUN).exits(0);
    let learned = &room.json("out/report.json")["variants"][0]["distillations"][0];
    let kept = learned["held_out_tokens"].as_u64().expect("a number");
    assert!(kept >= 64 && kept.is_multiple_of(32), "a tenth of some hundred windows: {learned}");
    room.write("chats.jsonl", &format!("{lines}{{\"turns\": [{{\"role\": \"fool\", \"content\": \"\"}}]}}\n"));
    room.attar(&RUN).exits(3).says("line 61: `turns` is refused by the model's chat template: no fools");
    room.write("chats.jsonl", &format!("{lines}{{\"turns\": [{{\"content\": \"\"}}]}}\n"));
    room.attar(&RUN).exits(3).says("line 61: `turns` has no `role` in its message 1");
}

/// Codes stay as they are, and adapters beside them learn what rounding lost.
#[test]
fn a_student_in_codes_learns_by_adapters() {
    let room = Room::new();
    let steps = "[[step]]\nkind = \"quantize\"\ngrid = \"int3\"\n[[step]]\nkind = \"distill\"\nrank = 8\nlearning_rate = 1e-2\nbatch = 2\n";
    let head = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n";
    room.write("recipe.toml", &format!("{head}{TEXT}{steps}[[export]]\ntarget = \"checkpoint\"\n"));
    room.attar(&RUN).exits(0);
    let learned = room.json("out/report.json")["variants"][0]["distillations"][0].clone();
    let held_out = learned["held_out"].as_array().expect("a list").clone();
    let kl = |at: usize| held_out[at]["kl"].as_f64().expect("a number");
    assert!(kl(held_out.len() - 1) < 0.95 * kl(0), "{learned}");
    let matrices = [(128, 128), (64, 128), (64, 128), (128, 128), (384, 128), (384, 128), (128, 384)];
    let factors: u64 = matrices.iter().map(|(rows, columns)| 4 * 8 * (rows + columns)).sum();
    assert_eq!(learned["weights"], factors);
    assert_eq!(room.json("out/adapters/adapter_config.json")["r"], 8);
    let codes = room.json("out/checkpoint/artifact.json").to_string();
    assert!(codes.contains("int3"), "{codes}");
}

/// A table that is the head, too, learns from both uses and stays one tensor.
#[test]
fn a_tied_table_learns_as_one_tensor() {
    let room = ready(TEXT, "labels = 1.0\nkl = 0.0\nselect = [\"lm_head\"]\nbatch = 2\n");
    room.attar(&RUN).exits(0);
    let learned = room.json("out/report.json")["variants"][0]["distillations"][0].clone();
    let held_out = learned["held_out"].as_array().expect("a list").clone();
    let loss = |at: usize| held_out[at]["labels"].as_f64().expect("a number");
    let best = (0..held_out.len()).map(loss).fold(f64::INFINITY, f64::min);
    assert!(best < loss(0) - 0.01, "{learned}");
    assert_eq!(learned["weights"], 1024 * 128);
    let model = attar_model::Model::open(&room.path("out/checkpoint")).expect("it was just written");
    let expr = |name: &str| model.graph.weights().find(|(_, value, _)| value.name == name).expect("it is there").2.clone();
    assert_eq!(expr("lm_head"), expr("embedding"));
}

/// Without held-out text, a loss that rises is an error: the weights are worse than at the start.
#[test]
fn what_training_ruined_is_not_written() {
    let step = "labels = 1.0\nkl = 0.0\nlearning_rate = 0.03\nclip = 1000.0\nwarmup = 1\nbatch = 1\nsteps = 32\n";
    let room = ready(&TEXT.replace("held_out = 4", "held_out = 0"), step);
    let said = room.attar(&RUN).exits(2);
    said.says("the loss on the first text rose from");
    said.says("`held_out` of `[data.train]`");
    assert!(!room.path("out/checkpoint").exists());
}

/// The teacher's hidden states lead a narrower student, through matrices that are no part of it; the run repeats itself.
#[test]
fn hidden_states_lead_a_narrower_student() {
    let room = Room::new();
    let data = "[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 16\nlength = 64\n";
    let run = |weight: f64, out: &str| {
        let steps = format!(
            "[[step]]\nkind = \"prune\"\nhidden = 96\n[[step]]\nkind = \"distill\"\nhidden = {weight}\nlearning_rate = 3e-4\nbatch = 2\n"
        );
        let head = format!("recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"{out}\"\n");
        room.write("recipe.toml", &format!("{head}{data}{TEXT}{steps}[[export]]\ntarget = \"safetensors\"\n"));
        room.attar(&RUN).exits(0);
        room.json(&format!("{out}/report.json"))["variants"][0]["distillations"][0].clone()
    };
    let (led, alone) = (run(1.0, "led"), run(0.0, "alone"));
    let first = |of: &serde_json::Value| of["losses"][0][1].as_f64().expect("a number");
    assert!(first(&led) > first(&alone) + 0.01, "the states count: {led}, {alone}");
    let held_out = led["held_out"].as_array().expect("a list").clone();
    let kl = |at: usize| held_out[at]["kl"].as_f64().expect("a number");
    assert!(kl(held_out.len() - 1) < 0.95 * kl(0), "{led}");
    let again = run(1.0, "again");
    assert_eq!(led, again);
    room.attar(&["eval", "led/safetensors", "--data", "testdata/evals/shakespeare-valid.txt", "--tokens", "256", "--quiet"])
        .exits(0);
}

/// A teacher whose hidden states count comes to its last block at every step, so it is not asked before; the first text can still be compared.
#[test]
fn a_teacher_of_hidden_states_is_not_asked_twice() {
    let step = format!("{TEACHER}hidden = 1.0\nbatch = 2\nsteps = 4\nselect = [\"blocks.*.mlp.down\"]\n");
    let text = TEXT.replace("held_out = 4", "held_out = 0");
    let asks = |step: &str| {
        let said = ready(&text, step).attar(&["run", "recipe.toml"]).exits(0).stderr;
        said.contains("run the teacher")
    };
    assert!(!asks(&step));
    assert!(asks(&step.replace("hidden = 1.0", "hidden = 0.0")));
}

/// The teacher's most probable tokens teach nearly what its whole distribution does, and a second run does not ask it again.
#[test]
fn the_teachers_top_is_kept_in_place_of_the_teacher() {
    let step = format!("{TEACHER}batch = 2\nepochs = 2\nselect = [\"blocks.*.mlp.down\"]\n");
    let learned = |room: &Room| {
        room.attar(&RUN).exits(0);
        room.json("out/report.json")["variants"][0]["distillations"][0].clone()
    };
    let last = |of: &serde_json::Value| {
        of["held_out"].as_array().expect("a list").last().expect("measured")["kl"].as_f64().expect("a number")
    };
    let whole = last(&learned(&ready(TEXT, &step)));
    let room = ready(TEXT, &format!("{step}teacher_top = 32\n"));
    let top = learned(&room);
    assert!((last(&top) - whole).abs() < 0.1 * whole, "{whole}, {top}");
    let text = room.read("recipe.toml");
    room.write("recipe.toml", &text.replace("learning_rate = 1e-3", "learning_rate = 2e-3"));
    let said = room.attar(&["run", "recipe.toml"]).exits(0).stderr;
    assert!(!said.contains("keep what the teacher says"), "{said}");
    room.write("recipe.toml", &text.replace("teacher_top = 32", "teacher_top = 32\nhidden = 1.0"));
    room.attar(&RUN).exits(2).says("hidden states take the teacher at every step");
    room.write("recipe.toml", &text.replace("teacher_top = 32", "teacher_top = 100000"));
    room.attar(&RUN).exits(2).says("100000 tokens of a vocabulary of ");
}

/// Blocks that were matched one by one start nearer to the teacher.
#[test]
fn a_first_stage_matches_blocks_one_by_one() {
    let room = Room::new();
    let data = "[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 16\nlength = 64\n";
    let write = |more: &str| {
        let steps = format!("[[step]]\nkind = \"distill\"\nlearning_rate = 3e-4\nbatch = 2\nsteps = 2\nwarmup = 1\n{more}");
        let head = "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"out\"\n";
        room.write("recipe.toml", &format!("{head}{data}{TEXT}{steps}[[export]]\ntarget = \"checkpoint\"\n"));
    };
    let start = |more: &str| {
        write(more);
        room.attar(&RUN).exits(0);
        let report = room.json("out/report.json");
        report["variants"][0]["distillations"][0]["held_out"][0]["kl"].as_f64().expect("a number")
    };
    let (pruned, matched) = (start("student = { mlp = 128 }\n"), start("student = { mlp = 128 }\nlocal = 3\n"));
    assert!(matched < 0.95 * pruned, "{matched} matched, {pruned} pruned alone");
    write("student = { blocks = 3, ends = 1 }\nlocal = 1\n");
    room.attar(&RUN).exits(2).says("they cannot be matched one by one");
    write("student = {}\n");
    room.attar(&RUN).exits(2).says("the student has no shape of its own");
    write("student = { hidden = 96 }\nlocal = 1\n");
    room.attar(&RUN).exits(2).says("has 96 channels and the teacher's 128");
}

/// A student of a shape is what `prune` makes of the model, or new; both learn, and the pruned one knows more from the start.
#[test]
fn a_student_of_a_shape_is_pruned_or_new() {
    let room = Room::new();
    let data = "[data.calibration]\npath = \"testdata/evals/shakespeare-train.txt\"\nsamples = 16\nlength = 64\n";
    let run = |steps: &str, out: &str| {
        let head = format!("recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"{out}\"\n");
        room.write("recipe.toml", &format!("{head}{data}{TEXT}{steps}[[export]]\ntarget = \"safetensors\"\n"));
        room.attar(&RUN).exits(0);
        room.json(&format!("{out}/report.json"))["variants"][0].clone()
    };
    let distill = "[[step]]\nkind = \"distill\"\nbatch = 2\n";
    let apart = run(&format!("[[step]]\nkind = \"prune\"\nmlp = 192\nblocks = 3\nends = 1\n{distill}"), "apart");
    let shape = |init: &str| {
        format!("{distill}student = {{ mlp = 192, blocks = 3, ends = 1, init = \"{init}\" }}\nlearning_rate = 1e-3\n")
    };
    let together = run(&shape("prune").replace("learning_rate = 1e-3\n", ""), "together");
    assert_eq!(apart["distillations"], together["distillations"]);
    assert_eq!(apart["prunings"], together["prunings"]);
    let new = run(&shape("random"), "new")["distillations"][0].clone();
    let kl = |of: &serde_json::Value, at: usize| of["held_out"][at]["kl"].as_f64().expect("a number");
    let last = new["held_out"].as_array().expect("a list").len() - 1;
    assert!(kl(&new, 0) > 2.0 && kl(&new, last) < kl(&new, 0) - 0.3, "{new}");
    assert!(kl(&together["distillations"][0], 0) < 1.0, "{together}");
    let config = room.json("new/safetensors/config.json");
    assert_eq!((&config["num_hidden_layers"], &config["intermediate_size"]), (&3.into(), &192.into()));
    assert_eq!(run(&shape("random"), "again")["distillations"][0], new, "the same seed is the same student");
    room.write(
        "recipe.toml",
        &format!(
            "recipe = 1\nmodel = \"testdata/models/shakespeare-1m\"\noutput = \"bad\"\n{TEXT}{}",
            shape("random").replace("192", "500")
        ),
    );
    room.attar(&RUN).exits(2).says("`mlp = 500` cannot be");
}

#[test]
fn the_verb_is_a_recipe_of_one_step() {
    let room = ready(TEXT, "");
    let arguments = [
        "distill",
        "model",
        "--teacher",
        "testdata/models/shakespeare-1m",
        "--train",
        "testdata/evals/shakespeare-train.txt",
        "--samples",
        "8",
        "--length",
        "32",
        "--held-out",
        "2",
        "--steps",
        "2",
        "--out",
        "student",
    ];
    let told = room.attar(&[&arguments[..], &["--print-recipe"]].concat()).exits(0).stdout;
    let data: toml::Table = told.parse().expect("it is a recipe");
    assert_eq!(
        data["data"].to_string(),
        "{ train = { path = \"testdata/evals/shakespeare-train.txt\", samples = 8, length = 32, held_out = 2 } }",
        "{told}"
    );
    room.attar(&arguments).exits(0);
    assert!(room.path("student/model.safetensors").exists() || room.path("student/manifest.json").exists());
    let arguments =
        ["distill", "model", "--student", "mlp=192", "--train", "testdata/evals/shakespeare-train.txt", "--samples", "16"];
    let more = ["--length", "64", "--held-out", "0.1", "--steps", "2", "--out", "smaller", "--quiet"];
    room.attar(&[&arguments[..], &more].concat()).exits(0);
    let said = room.attar(&["distill", "model", "--out", "again"]).exits(2);
    said.says("add `--train FILE`");
}
