//! JSON Schema of recipes, put together from the registries, in a form that editors follow.
//!
//! Where a word says what a table is, such as `kind`, the schema says `if` that word `then` these keys: an editor marks a wrong
//! value at the value. With a choice of all tables it could only say that none fits.

use attar_eval::{DEFAULT_TASK, PRESETS, TASKS, Task, WrittenGate};
use attar_export::TARGETS;
use serde_json::{Value, json};

use crate::{
    predict::Predict,
    profile::PROFILES,
    recipe::{EvalHead, ExportHead, Head, VariantHead},
    settings::of,
    step::STEPS,
};

/// The schema of a whole recipe.
pub fn schema() -> Value {
    let steps = STEPS.iter().map(|kind| (kind.name, tagged("kind", kind.name, &[(kind.schema)()]))).collect();
    let step_list = json!({ "type": "array", "items": either("kind", None, steps), "description": "Steps to run, in order." });
    let mut variant = of::<VariantHead>();
    variant["properties"]["step"] = json!({ "$ref": "#/$defs/steps" });
    variant["additionalProperties"] = json!(false);
    let export = |name, schema: fn() -> Value| tagged("target", name, &[of::<ExportHead>(), schema()]);
    let exports: Vec<(&str, Value)> = TARGETS.iter().map(|target| (target.name, export(target.name, target.schema))).collect();
    let export_items = for_devices(either("target", None, exports.clone()), &exports);
    let presets = PRESETS.iter().map(|preset| (preset.name, preset.task));
    let evals = TASKS.iter().map(|task| (task.name, *task)).chain(presets).map(|(name, task)| (name, eval(task))).collect();
    let mut root = of::<Head>();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["$id"] = json!(ID);
    root["title"] = json!("attar recipe");
    root["properties"]["recipe"]["const"] = json!(1);
    root["oneOf"] = json!([{ "required": ["model"] }, { "required": ["artifact"] }]);
    root["properties"]["step"] = json!({ "$ref": "#/$defs/steps" });
    root["properties"]["variant"] = json!({ "type": "array", "items": variant, "description": "Variants of the model: each runs the recipe's steps, then its own." });
    root["properties"]["export"] =
        json!({ "type": "array", "items": export_items, "description": "What is written of each variant." });
    root["properties"]["eval"] = json!({ "type": "array", "items": either("task", Some(DEFAULT_TASK), evals), "description": "What is measured of each variant." });
    root["properties"]["predict"] =
        json!({ "type": "array", "items": of::<Predict>(), "description": "What compilers of vendors predict of each variant." });
    root["properties"]["gate"] = json!({ "type": "array", "items": of::<WrittenGate>(), "description": "Conditions that must hold for the run to succeed." });
    root["additionalProperties"] = json!(false);
    root["$defs"] = json!({ "steps": step_list });
    forget_null(&mut root);
    root
}

/// The schema's own name. It is found in `recipes/recipe.schema.json`, or printed by `attar schema`.
const ID: &str = concat!(env!("CARGO_PKG_REPOSITORY"), "/raw/main/recipes/recipe.schema.json");

/// A table that is one of several, as the word in `tag` says; `default` is that of a table without one.
fn either(tag: &str, default: Option<&str>, tables: Vec<(&str, Value)>) -> Value {
    let words: Vec<&str> = tables.iter().map(|(word, _)| *word).collect();
    let branch = |(word, table): (&str, Value)| {
        let required = if default == Some(word) { json!([]) } else { json!([tag]) };
        json!({ "if": { "properties": { tag: { "const": word } }, "required": required }, "then": table })
    };
    let required = if default.is_some() { json!([]) } else { json!([tag]) };
    let branches: Vec<Value> = tables.into_iter().map(branch).collect();
    json!({ "type": "object", "properties": { tag: { "enum": words } }, "required": required, "allOf": branches })
}

/// Exports where a device may say the target: then its keys are those of that target.
fn for_devices(mut items: Value, exports: &[(&str, Value)]) -> Value {
    items["required"] = json!([]);
    items["anyOf"] = json!([{ "required": ["target"] }, { "required": ["for"] }]);
    let branches = items["allOf"].as_array_mut().expect("made by `either`");
    for profile in PROFILES.iter() {
        let Some((_, table)) = exports.iter().find(|(target, _)| *target == profile.target()) else { continue };
        let mut table = table.clone();
        table["required"].as_array_mut().expect("made by `tagged`").retain(|key| key != "target");
        let this = json!({ "properties": { "for": { "const": profile.name } }, "required": ["for"] });
        branches.push(json!({ "if": this, "then": table }));
    }
    items
}

/// TOML has no null: what may be left out is not required, and null is no value of it.
fn forget_null(schema: &mut Value) {
    let null = json!({ "type": "null" });
    if let Value::Object(map) = schema {
        if map.get("default").is_some_and(Value::is_null) {
            map.remove("default");
        }
        if let Some(Value::Array(types)) = map.get_mut("type") {
            types.retain(|kind| kind != "null");
            if let [one] = &types[..] {
                map["type"] = one.clone();
            }
        }
        if let Some(Value::Array(words)) = map.get_mut("enum") {
            words.retain(|word| !word.is_null());
        }
        if let Some(Value::Array(choices)) = map.get_mut("anyOf")
            && choices.contains(&null)
        {
            choices.retain(|choice| *choice != null);
            if let [Value::Object(only)] = &choices[..] {
                let only = only.clone();
                map.remove("anyOf");
                for (key, value) in only {
                    map.entry(key).or_insert(value);
                }
            }
        }
        map.values_mut().for_each(forget_null);
    } else if let Value::Array(items) = schema {
        items.iter_mut().for_each(forget_null);
    }
}

fn eval(task: &Task) -> Value {
    let mut eval = tagged("task", task.name, &[of::<EvalHead>(), (task.schema)()]);
    if task.name == DEFAULT_TASK {
        eval["properties"]["task"]["default"] = json!(DEFAULT_TASK);
        eval["required"].as_array_mut().expect("made by `tagged`").retain(|key| key != "task");
    }
    eval
}

/// The settings of one verb on the command line: a step's, or those of all targets of an export.
pub fn verb_schema(kind: &str) -> Option<Value> {
    let step = STEPS.iter().find(|step| step.name == kind).map(|step| (step.schema)());
    step.or_else(|| {
        let options = TARGETS.iter().map(|target| (target.schema)());
        (kind == "export").then(|| merged(&std::iter::once(of::<ExportHead>()).chain(options).collect::<Vec<_>>()))
    })
}

fn merged(parts: &[Value]) -> Value {
    let mut all = json!({ "type": "object", "properties": {}, "required": [] });
    for part in parts {
        for (name, property) in part["properties"].as_object().into_iter().flatten() {
            let mut property = property.clone();
            // Of keys that targets share, no default is that of all.
            if all["properties"].get(name).is_some_and(|known| known.get("default") != property.get("default")) {
                property.as_object_mut().map(|property| property.remove("default"));
            }
            all["properties"][name] = property;
        }
        let required = part["required"].as_array().cloned().unwrap_or_default();
        all["required"].as_array_mut().expect("made above").extend(required);
        if let Some(one) = part.get("oneOf") {
            all["oneOf"] = one.clone();
        }
    }
    all
}

/// The parts as one table with a word that says what it is.
fn tagged(tag: &str, word: &str, parts: &[Value]) -> Value {
    let mut all = merged(parts);
    all["description"] = parts.last().map(|p| p["description"].clone()).unwrap_or_default();
    all["properties"][tag] = json!({ "const": word });
    all["required"].as_array_mut().expect("made by `merged`").push(json!(tag));
    all["additionalProperties"] = json!(false);
    all
}
