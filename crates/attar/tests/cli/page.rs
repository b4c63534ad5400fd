//! `report.html` and `attar compare`: one file, with everything that a run found, that a browser shows without a complaint.

use std::{fs, process::Command};

use crate::room::{Room, skip};

const RECIPE: &str = r#"
recipe = 1
model = "testdata/models/shakespeare-1m"
output = "out"

[[variant]]
name = "int8"
[[variant.step]]
kind = "quantize"
grid = "int8"
group = 64

[[variant]]
name = "int3"
[[variant.step]]
kind = "quantize"
grid = "int3"
group = 32

[[eval]]
name = "plays"
data = "testdata/evals/shakespeare-valid.txt"
tokens = 512
window = 128

[[eval]]
name = "scenes"
task = "generate"
data = "testdata/evals/prompts.jsonl"
tokens = 12

[[eval]]
name = "quiz"
task = "choice"
data = "testdata/evals/choice.jsonl"

[[gate]]
metric = "plays/perplexity"
worse_at_most = "40%"

[[gate]]
metric = "scenes/same-answers"
at_least = 0.99
variant = "int3"
"#;

fn ran() -> Room {
    let room = Room::new();
    room.write("recipe.toml", RECIPE);
    room.attar(&["run", "recipe.toml", "--junit", "gates.xml"]).exits(1);
    room
}

/// What a page must hold to work anywhere.
fn check_whole(page: &str) {
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"), "it is whole");
    for outside in ["<script", "http://", "https://", "@import", "url(", "<link rel=\"stylesheet\""] {
        assert!(!page.contains(outside), "the page has `{outside}`");
    }
    for tag in ["svg", "table", "section", "details", "figure", "mark"] {
        assert_eq!(page.matches(&format!("<{tag}")).count(), page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn a_run_leaves_a_page_with_all_that_it_found() {
    let room = ran();
    let page = room.read("out/report.html");
    check_whole(&page);
    let wanted = [
        "<strong>FAILED</strong>: 1 of 3 gates do not hold.",
        "<h2>Sizes and quality</h2>",
        "plays/perplexity-ratio",
        "quiz/acc-change",
        "Damage by layer: int3",
        "Matrices that are not quantized",
        "Answers side by side",
        "<mark>",
        "not at least 0.99",
        "shakespeare-valid.txt",
    ];
    for text in wanted {
        assert!(page.contains(text), "the page should say `{text}`");
    }
    let xml = room.read("gates.xml");
    assert!(xml.contains("tests=\"3\" failures=\"1\" errors=\"0\""), "{xml}");
    assert!(xml.contains("<testcase classname=\"int8, reference\" name=\"plays/perplexity worse_at_most 0.4\"/>"), "{xml}");
}

#[test]
fn runs_are_compared_on_one_page() {
    let room = ran();
    room.attar(&["run", "recipe.toml", "--output", "other", "--set", "variant.2.step.1.grid=int4"]);
    room.attar(&["compare", "out", "other", "--out", "compared.html"]).exits(0);
    let page = room.read("compared.html");
    check_whole(&page);
    for text in ["<title>out · other</title>", "out / int3", "other / int3", "<th scope=\"col\">run</th>"] {
        assert!(page.contains(text), "the page should say `{text}`");
    }
    let said = room.attar(&["compare", "testdata", "--out", "none.html"]).exits(3);
    assert!(said.stderr.contains("`testdata` holds no finished run: there is no `report.json`"), "{}", said.stderr);
    assert!(!room.path("none.html").exists());
    for out in ["out/report.json", "other/report.html"] {
        room.attar(&["compare", "out", "other", "--out", out]).exits(2).says("is a file of the run");
    }
    room.write("out/report.json", "{}");
    assert!(room.attar(&["compare", "out", "--out", "none.html"]).exits(3).stderr.contains("has no version of the format"));
    room.write("out/report.json", "{ \"report\": 1 }");
    assert!(room.attar(&["compare", "out", "--out", "none.html"]).exits(3).stderr.contains("is no report"));
}

#[test]
fn the_file_of_gates_replaces_nothing_that_a_run_reads_or_writes() {
    let room = Room::new();
    room.write("recipe.toml", RECIPE);
    for (file, says) in [
        ("recipe.toml", "this recipe or its lock file"),
        ("recipe.lock", "this recipe or its lock file"),
        ("testdata/evals/prompts.jsonl", "which this recipe reads"),
        ("out/gates.xml", "in the output folder"),
        ("testdata", "a folder"),
    ] {
        room.attar(&["run", "recipe.toml", "--junit", file]).exits(2).says(says);
    }
    room.attar(&["run", "recipe.toml", "--junit", "nowhere/gates.xml"]).exits(3).says("there is no folder `nowhere`");
    assert!(!room.path("out").exists(), "all of it before any work");
    let said = room.attar(&["run", "nothing.toml", "--format", "github"]).exits(2);
    assert!(said.stdout.starts_with("::error title=attar::"), "{}", said.stdout);
}

#[test]
fn what_is_named_is_written_through_links_and_into_pipes() {
    let room = ran();
    room.write("target.html", "");
    std::os::unix::fs::symlink("target.html", room.path("link.html")).expect("it is not there");
    room.attar(&["compare", "out", "--out", "link.html"]).exits(0);
    assert!(room.path("link.html").is_symlink() && room.read("target.html").ends_with("</html>\n"));
    let said = room.attar(&["compare", "out", "--out", "/dev/stdout"]).exits(0);
    assert!(said.stdout.ends_with("</html>\n"), "{}", said.stdout);
}

#[test]
fn names_from_recipes_cannot_become_markup() {
    let room = Room::new();
    room.write("<img src=x>.toml", RECIPE);
    room.attar(&["run", "<img src=x>.toml"]);
    let page = room.read("out/report.html");
    assert!(!page.contains("<img") && page.contains("&lt;img src"), "the recipe's name is text");
}

#[test]
fn github_gets_annotations_and_a_summary() {
    let room = Room::new();
    room.write("recipe.toml", RECIPE);
    let mut command = room.command(&["run", "recipe.toml", "--format", "github"]);
    command.env("GITHUB_STEP_SUMMARY", room.path("summary.md"));
    let said = room.finish(command).exits(1);
    assert!(said.stdout.contains("::error title=gate::FAILED: scenes/same-answers of int3"), "{}", said.stdout);
    assert!(said.stdout.contains("::notice title=attar::recipe.toml: at least one gate failed"), "{}", said.stdout);
    assert_eq!(room.read("summary.md"), room.read("out/report.md"));
}

/// A page around the page, which says how wide its content is in a frame as wide as a phone.
const AROUND: &str = r#"<!DOCTYPE html><body style="margin:0"><iframe id="f" src="out/report.html" style="border:0;width:400px;height:800px"></iframe>
<script>onload = () => { const d = document.getElementById("f").contentDocument; const all = performance.getEntriesByType("resource").length
+ document.getElementById("f").contentWindow.performance.getEntriesByType("resource").length;
document.title = "wide " + d.documentElement.scrollWidth + " words " + (d.body.innerText.length > 500) + " more " + all; }</script>"#;

/// In Chromium, where it is installed: no complaint on the console, nothing asked of the network, nothing wider than a phone.
#[test]
fn a_browser_shows_the_page_without_a_complaint() {
    let Ok(version) = Command::new("chromium").arg("--version").output() else {
        return skip("there is no chromium: `cargo xtask page` installs it");
    };
    assert!(version.status.success());
    let room = ran();
    room.write("around.html", AROUND);
    let mut command = Command::new("chromium");
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--enable-logging=stderr"]);
    command.args(["--virtual-time-budget=4000", "--window-size=800,900", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", room.path("profile").display()));
    let shown = command.arg(format!("file://{}", room.path("around.html").display())).output().expect("chromium starts");
    let (page, said) = (String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
    let complaints: Vec<&str> = said.lines().filter(|line| line.contains(":CONSOLE")).collect();
    assert_eq!(complaints, Vec::<&str>::new());
    let title = page.split("<title>").nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
    let words: Vec<&str> = title.split(' ').collect();
    let ["wide", wide, "words", "true", "more", more] = words[..] else { panic!("the page was not shown: `{title}`, {said}") };
    assert!((300..=400).contains(&wide.parse::<u32>().expect("pixels")), "the page is {wide} wide in a frame of 400");
    assert!(more.parse::<u32>().expect("a count") <= 1, "nothing but the frame is loaded");
    fs::remove_dir_all(room.path("profile")).expect("the browser has ended");
}
