//! Every step of the registry is asked for mistakes that its own schema shows how to make: an unknown key, and for every
//! setting a value of another type and one out of its range. What each is answered is `testdata/steps/NAME.txt`.
//!
//! A new step is tested the moment it is registered. `BLESS=1 cargo test -p attar-recipe --test steps` writes its file.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use attar_recipe::{
    Recipe,
    step::{STEPS, StepKind},
};
use serde_json::Value;

const HEAD: &str = "recipe = 1\nmodel = \"model\"\noutput = \"out\"\n\n[[step]]\n";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/steps")
}

/// What a recipe with this step is answered.
fn answer(lines: &[String]) -> String {
    let text = format!("{HEAD}{}\n", lines.join("\n"));
    match Recipe::parse(Path::new("r.toml"), &text) {
        Ok(_) => "parses: whether it can be is judged on the model".into(),
        Err(error) => {
            assert_eq!(error.exit_code(), 2, "a mistake in a recipe is the recipe's: {text}");
            let said = error.render(false);
            assert!(said.contains("r.toml:"), "an error has its place: {said}");
            said.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
        }
    }
}

/// `kind` and the settings that must be there, each with a value that is allowed.
fn smallest(kind: &StepKind, schema: &Value) -> Vec<(String, String)> {
    let names = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
    };
    let one_of = schema["oneOf"].as_array().and_then(|ways| ways.first()).map(|way| names(&way["required"]));
    let required = names(&schema["required"]).into_iter().chain(one_of.unwrap_or_default());
    let mut lines = vec![("kind".to_owned(), format!("\"{}\"", kind.name))];
    lines.extend(required.map(|name| (name.clone(), allowed(&schema["properties"][&name]))));
    lines
}

/// The schema's alternatives, flattened: a setting may be a number or a word.
fn alternatives(schema: &Value) -> Vec<&Value> {
    match schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array) {
        Some(ways) => ways.iter().flat_map(alternatives).collect(),
        None => vec![schema],
    }
}

fn types(schema: &Value) -> BTreeSet<String> {
    let of = |way: &Value| match &way["type"] {
        Value::String(one) => vec![one.clone()],
        Value::Array(some) => some.iter().filter_map(|one| Some(one.as_str()?.to_owned())).collect(),
        _ => Vec::new(),
    };
    alternatives(schema).into_iter().flat_map(of).collect()
}

/// The words that a setting may be; none if it may be any text.
fn words(schema: &Value) -> Vec<&str> {
    let mut words = Vec::new();
    for way in alternatives(schema) {
        let listed = way["enum"].as_array().into_iter().flatten().chain(way.get("const"));
        words.extend(listed.filter_map(Value::as_str));
    }
    words
}

fn allowed(schema: &Value) -> String {
    let kinds = types(schema);
    match words(schema).first() {
        Some(word) => format!("\"{word}\""),
        None if kinds.contains("string") => "\"text\"".into(),
        None if kinds.contains("integer") => "1".into(),
        None if kinds.contains("number") => "1.5".into(),
        None if kinds.contains("boolean") => "true".into(),
        None => "[]".into(),
    }
}

/// A value of a type that a setting does not have.
fn of_another_type(schema: &Value) -> &'static str {
    let kinds = types(schema);
    let others = [("boolean", "true"), ("array", "[1]"), ("string", "\"text\""), ("object", "{}")];
    others.iter().find(|(kind, _)| !kinds.contains(*kind)).expect("no setting is everything").1
}

/// Values outside of a setting's range: numbers past its ends, and words that are none of its own.
fn out_of_range(schema: &Value) -> Vec<String> {
    let mut values = Vec::new();
    for way in alternatives(schema) {
        let bound = |key: &str| way[key].as_f64();
        values.extend(bound("minimum").map(|least| (least - 1.0).to_string()));
        values.extend(bound("exclusiveMinimum").map(|least| format!("{least:?}")));
        values.extend(bound("maximum").map(|most| (most + 1.0).to_string()));
        values.extend(bound("exclusiveMaximum").map(|most| format!("{most:?}")));
        let numbers: Vec<i64> = way["enum"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        values.extend(numbers.iter().max().map(|most| (most + 1).to_string()));
    }
    if !words(schema).is_empty() {
        values.push("\"zebra\"".into());
    }
    let mut seen = BTreeSet::new();
    values.retain(|value| seen.insert(value.clone()));
    values
}

/// The step with one line more, or another value in place of one that it has.
fn with(lines: &[(String, String)], name: &str, value: &str) -> Vec<String> {
    let mut lines = lines.to_vec();
    match lines.iter_mut().find(|(known, _)| known == name) {
        Some(line) => line.1 = value.into(),
        None => lines.push((name.into(), value.into())),
    }
    lines.into_iter().map(|(name, value)| format!("{name} = {value}")).collect()
}

fn snapshot(kind: &StepKind) -> String {
    let schema = (kind.schema)();
    let settings = schema["properties"].as_object().cloned().unwrap_or_default();
    let smallest = smallest(kind, &schema);
    let mut text = String::new();
    let mut note = |title: &str, lines: Vec<String>| text += &format!("# {title}\n{}\n\n", answer(&lines));
    note("unknown key", with(&smallest, &settings.keys().next().map_or("zebra".into(), |name| format!("{name}s")), "1"));
    note("unknown key, like none", with(&smallest, "zebra", "1"));
    for (name, setting) in &settings {
        let wrong = of_another_type(setting);
        note(&format!("wrong type: {name} = {wrong}"), with(&smallest, name, wrong));
        for value in out_of_range(setting) {
            note(&format!("out of range: {name} = {value}"), with(&smallest, name, &value));
        }
    }
    text
}

#[test]
fn every_step_answers_unknown_keys_wrong_types_and_values_out_of_range() {
    let mut wrong = Vec::new();
    for kind in STEPS {
        let (path, found) = (folder().join(format!("{}.txt", kind.name)), snapshot(kind));
        if std::env::var_os("BLESS").is_some() {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, &found).unwrap();
            continue;
        }
        match std::fs::read_to_string(&path) {
            Err(_) => {
                wrong.push(format!("the step `{}` has no `testdata/steps/{}.txt`: `BLESS=1` writes it", kind.name, kind.name))
            }
            Ok(wanted) if wanted != found => {
                let at = wanted.lines().zip(found.lines()).take_while(|(wanted, found)| wanted == found).count();
                let lines: Vec<&str> = found.lines().skip(at.saturating_sub(2)).take(8).collect();
                wrong.push(format!("{} disagrees from line {} on:\n{}", path.display(), at + 1, lines.join("\n")));
            }
            Ok(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_snapshot_belongs_to_a_step() {
    let known: BTreeSet<String> = STEPS.iter().map(|kind| format!("{}.txt", kind.name)).collect();
    let there =
        std::fs::read_dir(folder()).into_iter().flatten().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let orphans: Vec<String> = there.filter(|name| !known.contains(name)).collect();
    assert!(orphans.is_empty(), "no step is called like {orphans:?}");
}

#[test]
fn the_smallest_step_of_every_kind_parses_and_every_name_is_its_own() {
    let mut seen = BTreeSet::new();
    for kind in STEPS {
        assert!(seen.insert(kind.name), "two steps are called `{}`", kind.name);
        assert!(!kind.about.is_empty() && !kind.about.ends_with('.'), "`{}` says in one line what it does", kind.name);
        let lines = smallest(kind, &(kind.schema)());
        let said = answer(&with(&lines, "kind", &format!("\"{}\"", kind.name)));
        assert!(said.starts_with("parses"), "`{}`: {said}", kind.name);
    }
}
