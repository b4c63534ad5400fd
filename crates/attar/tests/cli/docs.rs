//! The documentation is true: its commands run, and its generated pages are what the program says.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::room::Room;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The commands in blocks that start with ```` ```sh ````, a line each.
fn commands(page: &Path) -> Vec<String> {
    let text = fs::read_to_string(page).unwrap();
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => commands.push(command.to_owned()),
            _ => {}
        }
    }
    commands
}

/// Where the documentation's commands write is cleared first: the pages are read by people who start from nothing.
#[test]
fn every_command_of_the_documentation_runs() {
    let root = root();
    let _ = fs::remove_dir_all(root.join("target/try"));
    let mut ran = 0;
    for page in ["README.md", "docs/guide.md"] {
        for command in commands(&root.join(page)) {
            // Commands that begin with cargo are CI's own stages, and the guide's need the large model.
            let Some(arguments) = command.strip_prefix("attar ") else {
                assert!(command.starts_with("cargo "), "{page}: {command}");
                continue;
            };
            let line = format!("\"$ATTAR\" {arguments}");
            let output = Command::new("sh")
                .args(["-c", &line])
                .env("ATTAR", env!("CARGO_BIN_EXE_attar"))
                .current_dir(&root)
                .output()
                .unwrap();
            assert!(output.status.success(), "{page}: {command}\n{}", String::from_utf8_lossy(&output.stderr));
            ran += 1;
        }
    }
    assert!(ran >= 6, "the README has commands");
}

/// The recipe of the guide is a recipe.
#[test]
fn every_recipe_of_the_documentation_can_be_planned() {
    let root = root();
    let text = fs::read_to_string(root.join("docs/guide.md")).unwrap();
    let recipes: Vec<&str> = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(!recipes.is_empty());
    for recipe in recipes {
        let room = Room::new();
        room.write("recipe.toml", recipe);
        room.attar(&["plan", "recipe.toml"]).exits(0);
    }
}

/// The lock beside the quickstart is the one that this attar would write.
#[test]
fn the_committed_lock_agrees() {
    let root = root();
    let output = Command::new(env!("CARGO_BIN_EXE_attar"))
        .args(["run", "recipes/quickstart.toml", "--locked", "--quiet"])
        .current_dir(&root)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn attar(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_attar")).args(arguments).env("COLUMNS", "100").output().unwrap();
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn assert_golden(path: &str, text: &str) {
    let path = root().join(path);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let there = fs::read_to_string(&path).unwrap_or_default();
    assert!(there == text, "{} is not what the program says now; `cargo xtask bless` rewrites it", path.display());
}

/// The verbs that a help page lists.
fn verbs(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| line.starts_with("  "));
    let names = list.filter_map(|line| line.split_whitespace().next());
    names.filter(|verb| *verb != "help").map(str::to_owned).collect()
}

#[test]
fn generated_pages_are_current() {
    assert_golden("recipes/recipe.schema.json", &attar(&["schema"]));
    let help = attar(&["--help"]);
    assert!(verbs(&help).len() >= 10, "{help}");
    let mut page = format!("# The command line\n\nGenerated from `--help`.\n\n```text\n{help}```\n");
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
