//! The documentation is true: its commands run, its recipes can be planned, its links lead somewhere, and its generated
//! parts are what the program says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, PoisonError},
};

use attar_compile::device::{Confidence, Device};
use attar_eval::{DEVICE, DEVICE_METRICS, TASKS, Task};

use crate::room::{ATTAR, Room, repository, skip};

/// Commands of the documentation that this test does not run, each with the reason. A line is meant if it starts so.
const NOT_RUN: &[(&str, &str)] = &[
    ("git clone ", "fetches this repository"),
    ("cargo install ", "builds the binary that is under test here"),
    ("cargo build --release", "builds the binary that is under test here"),
    ("cargo xtask", "the project's own commands; CI runs them, and one of them runs this test"),
    (".ci/run", "CI itself"),
    ("target/engines/vela/bin/python benches/vela/compare.py", "a bench; Vela is not everywhere"),
    ("cargo run --release -- run recipes/smollm2-gguf.toml", "needs a model that `cargo xtask smollm2` downloads"),
    ("cargo run --release -- generate target/smollm2-gguf/onnx", "needs a model that `cargo xtask smollm2` downloads"),
];

/// Held by whoever runs the quickstart, whose output folder takes one run at a time.
static QUICKSTART: Mutex<()> = Mutex::new(());

/// Every page that people write: README, CONTRIBUTING and `docs/*.md`.
fn pages() -> Vec<PathBuf> {
    let root = repository();
    let mut pages: Vec<PathBuf> = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.extend(["README.md", "CONTRIBUTING.md"].map(|name| root.join(name)));
    pages.sort();
    pages
}

/// The text of each fenced block of a language.
fn blocks(page: &Path, language: &str) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let opening = format!("```{language}\n");
    text.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

/// Commands: every line of a shell block, and the lines of a CI job that call attar.
fn commands(page: &Path) -> Vec<String> {
    let shell = blocks(page, "sh").join("").replace("\\\n", " ");
    let lines = shell.lines().map(|line| line.split("  #").next().unwrap().trim().to_owned());
    let jobs = blocks(page, "yaml").join("");
    let steps = jobs.lines().map(|line| line.trim().trim_start_matches("- ").trim_start_matches("run: ").to_owned());
    lines.filter(|line| !line.is_empty()).chain(steps.filter(|line| line.starts_with("attar "))).collect()
}

/// A shell in `folder`, in which `attar` is the binary under test.
fn shell(line: &str, folder: &Path) -> Output {
    let bin = Path::new(ATTAR).parent().unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    Command::new("sh").args(["-ec", line]).env("PATH", path).current_dir(folder).output().unwrap()
}

/// The folder to which the documentation's commands write is removed first: readers start without it.
#[test]
fn every_command_of_the_documentation_runs() {
    let _turn = QUICKSTART.lock().unwrap_or_else(PoisonError::into_inner);
    let root = repository();
    let _ = fs::remove_dir_all(root.join("target/try"));
    let (mut ran, mut left) = (0, Vec::new());
    for page in pages() {
        for command in commands(&page) {
            if let Some((start, _)) = NOT_RUN.iter().find(|(start, _)| command.starts_with(start)) {
                left.push(*start);
                continue;
            }
            let line = command.replace("cargo run --release -- ", "attar ");
            assert!(line.starts_with("attar "), "{}: neither attar nor in NOT_RUN: {command}", page.display());
            let output = shell(&line, &root);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {command}\n{said}", page.display());
            ran += 1;
        }
    }
    assert!(ran >= 15, "only {ran} commands were found");
    let stale: Vec<_> = NOT_RUN.iter().filter(|(start, _)| !left.contains(start)).collect();
    assert!(stale.is_empty(), "no page has these commands of NOT_RUN any more: {stale:?}");
}

/// The examples of every command's help run, in the order of the help, in a folder that has the files they name.
#[test]
fn every_example_of_the_help_runs() {
    let room = Room::new();
    let link = |from: &str, to: &str| symlink(repository().join("testdata").join(from), room.path(to)).unwrap();
    link("models/shakespeare-1m", "model");
    link("evals/shakespeare-train.txt", "text.txt");
    link("memory/pieces.csv", "buffers.csv");
    room.write("recipe.toml", RECIPE);
    room.write("budget.toml", BUDGET);
    for verb in verbs(&attar(&["--help"])) {
        let help = attar(&[&verb, "--help"]);
        let examples: Vec<&str> = help.lines().skip_while(|line| *line != "Examples:").skip(1).map(str::trim).collect();
        assert!(!examples.is_empty(), "`attar {verb} --help` has no examples");
        for example in examples {
            assert!(example.starts_with(&format!("attar {verb} ")) || example == format!("attar {verb}"), "{verb}: {example}");
            let output = shell(example, &room.path("."));
            let said = String::from_utf8_lossy(&output.stderr);
            let absent = ["ONNX Runtime", "Intel's NPU compiler"].into_iter().find(|title| said.contains(title));
            if let (Some(title), Some(3)) = (absent, output.status.code()) {
                skip(&format!("`{example}`: {title} is not installed"));
                continue;
            }
            assert!(output.status.success(), "{example}\n{said}");
        }
    }
}

/// What the examples call `recipe.toml`.
const RECIPE: &str = r#"
recipe = 1
model = "model"
output = "out"

[[step]]
kind = "quantize"
grid = "int4"
group = 64

[[export]]
target = "onnx"

[[eval]]
name = "text"
data = "text.txt"
window = 256
tokens = 1024

[[gate]]
metric = "text/kl"
at_most = 0.1
"#;

/// What the examples call `budget.toml`.
const BUDGET: &str = r#"
recipe = 1
model = "model"
output = "budget"
store = "store"

[[step]]
kind = "quantize"
bits = 4.0
"#;

/// Every recipe of the documentation is one.
#[test]
fn every_recipe_of_the_documentation_can_be_planned() {
    let recipes: Vec<String> = pages().iter().flat_map(|page| blocks(page, "toml")).collect();
    assert!(recipes.len() >= 8, "only {} recipes were found", recipes.len());
    for recipe in recipes {
        let room = Room::new();
        room.write("recipe.toml", &recipe);
        room.attar(&["plan", "recipe.toml"]).exits(0);
    }
}

/// Links to files of the repository lead to files that exist, and every page is listed in `docs/README.md`.
#[test]
fn links_of_the_documentation_lead_somewhere() {
    for page in pages() {
        for target in links(&fs::read_to_string(&page).unwrap()) {
            let file = page.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(file.exists(), "{}: {target}", page.display());
        }
    }
    let index = fs::read_to_string(repository().join("docs/README.md")).unwrap();
    for page in pages().iter().filter(|page| page.parent().unwrap().ends_with("docs")) {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(name == "README.md" || index.contains(&format!("({name})")), "docs/README.md does not list {name}");
    }
}

/// The targets of `[text](target)` that are files.
fn links(text: &str) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.filter(|target| !target.contains("://") && !target.starts_with('#')).map(str::to_owned).collect()
}

/// The lock file of the quickstart is the one that this attar would write.
#[test]
fn the_committed_lock_agrees() {
    let _turn = QUICKSTART.lock().unwrap_or_else(PoisonError::into_inner);
    let output = shell("attar run recipes/quickstart.toml --locked --quiet", &repository());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn attar(arguments: &[&str]) -> String {
    let output = Command::new(ATTAR).args(arguments).env("COLUMNS", "100").output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The whole of a generated file, or under `BLESS=1` the text that it gets.
fn assert_golden(path: &str, text: &str) {
    let path = repository().join(path);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "{} is not what the program says now; `cargo xtask bless` rewrites it", path.display());
}

/// The verbs that a help page lists.
fn verbs(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    // A description that goes on in the next line is indented further.
    let names = list.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
    names.filter(|verb| *verb != "help").map(str::to_owned).collect()
}

#[test]
fn generated_pages_are_current() {
    assert_golden("recipes/recipe.schema.json", &attar(&["schema"]));
    let help = attar(&["--help"]);
    assert!(verbs(&help).len() >= 10, "{help}");
    let mut page = format!("# Command line\n\nGenerated from `--help`.\n\n```text\n{help}```\n");
    for verb in verbs(&help) {
        let help = attar(&[&verb, "--help"]);
        page += &format!("\n## attar {verb}\n\n```text\n{help}```\n");
        for inner in verbs(&help) {
            page += &format!("\n### attar {verb} {inner}\n\n```text\n{}```\n", attar(&[&verb, &inner, "--help"]));
        }
    }
    let page: Vec<&str> = page.lines().map(str::trim_end).collect();
    assert_golden("docs/reference/cli.md", &(page.join("\n") + "\n"));
}

/// `docs/devices.md` has a table of every device of the program, and every file in `devices/` is one of them.
#[test]
fn the_page_of_devices_lists_every_device() {
    let files = fs::read_dir(repository().join("devices")).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<String> = files.filter(|path| path.is_file()).map(|path| stem(&path)).collect();
    let mut names: Vec<String> = Device::names().map(str::to_owned).collect();
    files.sort();
    names.sort();
    assert_eq!(files, names, "files in `devices/`, and the devices that attar knows by name");

    let page = fs::read_to_string(repository().join("docs/devices.md")).unwrap();
    let rows: String = Device::names().map(|name| row(&Device::named(name).unwrap())).collect();
    let page = replaced(&page, "devices", &format!("{HEAD}{rows}"));
    let rows: String = Device::names().map(|name| zeros_row(&Device::named(name).unwrap())).collect();
    let page = replaced(&page, "zeros", &format!("{ZEROS_HEAD}{rows}"));
    let keys: String = Device::keys().map(|(key, meaning)| format!("| `{key}` | {meaning} |\n")).collect();
    let page = replaced(&page, "keys", &format!("| key | meaning |\n|---|---|\n{keys}"));
    assert_golden("docs/devices.md", &page);
}

/// The guide has a table of every metric that a gate can name.
#[test]
fn the_guide_lists_every_metric() {
    let row = |task: &str, name: String, about: &str, unit: &str| format!("| {task} | `{name}` | {about} | {unit} |\n");
    let of = |task: &&'static Task| {
        let rows = task.metrics.iter().map(|metric| row(task.name, format!("EVAL/{}", metric.name), metric.about, metric.unit));
        rows.collect::<String>()
    };
    let measured: String = TASKS.iter().map(of).collect();
    let predicted = DEVICE_METRICS.iter().map(|m| row("(compile)", format!("{DEVICE}/{}", m.name), m.about, m.unit));
    let rows = measured + &predicted.collect::<String>();
    let page = fs::read_to_string(repository().join("docs/guide.md")).unwrap();
    let page = replaced(&page, "metrics", &format!("| task | metric | meaning | unit |\n|---|---|---|---|\n{rows}"));
    assert_golden("docs/guide.md", &page);
}

/// A page with another text between `<!-- generated: NAME -->` and `<!-- end -->`.
fn replaced(page: &str, name: &str, text: &str) -> String {
    let begin = format!("<!-- generated: {name} -->\n");
    let (before, rest) = page.split_once(&begin).unwrap();
    let (_, after) = rest.split_once("<!-- end -->").unwrap();
    format!("{before}{begin}{text}<!-- end -->{after}")
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

const HEAD: &str = "\
| name | device | peak int8 | SRAM | DRAM bandwidth | numbers measured, read, derived, assumed |\n\
|---|---|---|---|---|---|\n";

const ZEROS_HEAD: &str = "| name | zeros anywhere | n:m | source |\n|---|---|---|---|\n";

/// What a device does with weights that are zero.
fn zeros_row(device: &Device) -> String {
    let zeros = &device.zeros;
    let coded = |bits: &[f64]| {
        let bits: Vec<String> = bits.iter().map(ToString::to_string).collect();
        format!("coded: {} bits for an int8 weight with 0, 25, 50, 75% zeros", bits.join(", "))
    };
    let mask = zeros.mask.map(|mask| format!("a mask of {mask} bit per weight, and what stays"));
    let anywhere = (!zeros.coded.is_empty()).then(|| coded(&zeros.coded)).or(mask).unwrap_or("nothing".into());
    let pattern = zeros.skips.map_or("nothing".into(), |[keep, of]| format!("{keep}:{of} is skipped"));
    let sources = device.numbers().filter(|(key, ..)| key.starts_with("sparsity."));
    let sources: Vec<&str> = sources.map(|(_, _, origin)| origin.text.as_str()).collect();
    format!("| `{}` | {anywhere} | {pattern} | {} |\n", device.name, sources.join("; "))
}

/// One device as a row of the table.
fn row(device: &Device) -> String {
    let macs = device.engine.pairs.iter().find(|pair| (pair.weights, pair.activations) == (8, 8)).map_or(0.0, |pair| pair.macs);
    let tops = 2.0 * macs * device.engine.clock / 1e12;
    let counts: Vec<String> = [Confidence::Measured, Confidence::Read, Confidence::Derived, Confidence::Assumed]
        .iter()
        .map(|confidence| device.numbers().filter(|(_, _, origin)| origin.confidence == *confidence).count().to_string())
        .collect();
    format!(
        "| [`{0}`](../devices/{0}.toml) | {1} | {tops:.2} TOPS | {2} KiB | {3:.2} GB/s | {4} |\n",
        device.name,
        device.summary,
        device.sram.usable >> 10,
        device.dram.read / 1e9,
        counts.join(", "),
    )
}
