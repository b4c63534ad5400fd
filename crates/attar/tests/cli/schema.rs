//! The JSON Schema of recipes, held against the recipes of the repository by a validator of the part that it uses.

use serde_json::{Value, json};

use crate::room::{Room, repository};

#[test]
fn the_recipes_of_the_repository_fit_the_schema() {
    let schema = Room::new().attar(&["schema"]).exits(0).json();
    let mut recipes = 0;
    for entry in std::fs::read_dir(repository().join("recipes")).unwrap().flatten() {
        if entry.path().extension().is_some_and(|e| e == "toml") {
            let recipe = recipe(&std::fs::read_to_string(entry.path()).unwrap());
            assert_eq!(mistake(&schema, &schema, &recipe, ""), None, "{}", entry.path().display());
            recipes += 1;
        }
    }
    assert!(recipes > 0);
}

#[test]
fn what_a_run_refuses_does_not_fit_the_schema() {
    let schema = Room::new().attar(&["schema"]).exits(0).json();
    let good = recipe(&std::fs::read_to_string(repository().join("recipes/quickstart.toml")).unwrap());
    let mut bad = Vec::new();
    let mut change = |pointer: &str, value: Value| {
        let mut recipe = good.clone();
        *recipe.pointer_mut(pointer).unwrap() = value;
        bad.push((pointer.to_owned(), recipe));
    };
    change("/recipe", json!(2));
    change("/variant/0/step/0", json!({ "kind": "quantize" }));
    change("/variant/0/step/0", json!({ "kind": "quantize", "grid": "int4", "bits": 3.5 }));
    change("/variant/0/step/0/kind", json!("quantise"));
    change("/variant/0/step/0/grid", json!("int7"));
    change("/variant/0/step/0/group", json!(0));
    change("/variant/0/step/0", json!({ "kind": "quantize", "grid": "int4", "gruop": 32 }));
    change("/export/0/target", json!("onxn"));
    change("/eval/0", json!({ "name": "text", "task": "perplexity" }));
    change("/gate/0/worse_at_most", json!([]));
    for (pointer, recipe) in bad {
        // Where an editor would mark it: at the value, or at the table that lacks a key or has one too many.
        let found = mistake(&schema, &schema, &recipe, "").unwrap_or_default();
        assert!(found.starts_with(&format!("{pointer}:")), "{pointer}; {found}");
    }
}

fn recipe(text: &str) -> Value {
    serde_json::to_value(toml::from_str::<toml::Table>(text).expect("recipes are TOML")).expect("TOML is JSON")
}

/// Where `value` does not fit `schema`, if anywhere. An unknown keyword of the schema is a mistake of this validator.
fn mistake(root: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
    let keywords = schema.as_object()?;
    keywords.iter().find_map(|(keyword, wanted)| keyword_mistake(root, schema, keyword, wanted, value, at))
}

fn keyword_mistake(root: &Value, schema: &Value, keyword: &str, wanted: &Value, value: &Value, at: &str) -> Option<String> {
    let no = |fits: bool| (!fits).then(|| format!("{at}: {keyword} {wanted}, found {value}"));
    let fitting = || wanted.as_array().into_iter().flatten().filter(|branch| mistake(root, branch, value, at).is_none()).count();
    match keyword {
        "$ref" => {
            let target = wanted.as_str().and_then(|path| root.pointer(path.strip_prefix('#')?));
            mistake(root, target.expect("references are in the document"), value, at)
        }
        "type" => no(wanted.as_array().map_or_else(|| is(value, wanted), |kinds| kinds.iter().any(|kind| is(value, kind)))),
        "const" => no(value == wanted),
        "enum" => no(wanted.as_array().is_some_and(|words| words.contains(value))),
        "minimum" => no(value.as_f64().is_none_or(|n| n >= wanted.as_f64().expect("a number"))),
        "oneOf" => no(fitting() == 1),
        "anyOf" => no(fitting() > 0),
        "allOf" => wanted.as_array().into_iter().flatten().find_map(|part| mistake(root, part, value, at)),
        "if" if mistake(root, wanted, value, at).is_none() => mistake(root, &schema["then"], value, at),
        "if" | "then" => None,
        "required" => no(!value.is_object()
            || wanted.as_array().is_some_and(|keys| keys.iter().all(|k| value.get(k.as_str().expect("a key")).is_some()))),
        "items" => {
            let mut items = value.as_array().into_iter().flatten().enumerate();
            items.find_map(|(i, item)| mistake(root, wanted, item, &format!("{at}/{i}")))
        }
        "properties" => {
            let mut properties = wanted.as_object().into_iter().flatten();
            properties.find_map(|(key, schema)| value.get(key).and_then(|v| mistake(root, schema, v, &format!("{at}/{key}"))))
        }
        "additionalProperties" => {
            let mut unknown = value.as_object().into_iter().flatten().filter(|(key, _)| schema["properties"].get(key).is_none());
            no(wanted != &json!(false) || unknown.next().is_none())
        }
        "$schema" | "$id" | "$defs" | "title" | "description" | "default" | "format" => None,
        _ => panic!("the validator of this test does not know `{keyword}`"),
    }
}

fn is(value: &Value, kind: &Value) -> bool {
    match kind.as_str().expect("a type is a word") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("`{other}` is no type"),
    }
}
