//! JSON Schema of recipes, put together from the registries.

use attar_eval::{DEFAULT_TASK, TASKS, Task, WrittenGate};
use attar_export::TARGETS;
use serde_json::{Value, json};

use crate::{
    recipe::{EvalHead, ExportHead, Head, VariantHead},
    settings::of,
    step::STEPS,
};

/// The schema of a whole recipe.
pub fn schema() -> Value {
    let steps: Vec<Value> = STEPS.iter().map(|kind| tagged("kind", kind.name, &[(kind.schema)()])).collect();
    let step_list = json!({ "type": "array", "items": { "oneOf": steps }, "description": "Steps to run, in order." });
    let mut variant = of::<VariantHead>();
    variant["properties"]["step"] = json!({ "$ref": "#/$defs/steps" });
    variant["additionalProperties"] = json!(false);
    let exports: Vec<Value> =
        TARGETS.iter().map(|target| tagged("target", target.name, &[of::<ExportHead>(), (target.schema)()])).collect();
    let evals: Vec<Value> = TASKS.iter().map(|task| eval(task)).collect();
    let mut root = of::<Head>();
    root["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    root["title"] = json!("attar recipe");
    root["properties"]["recipe"]["const"] = json!(1);
    root["oneOf"] = json!([{ "required": ["model"] }, { "required": ["artifact"] }]);
    root["properties"]["step"] = json!({ "$ref": "#/$defs/steps" });
    root["properties"]["variant"] = json!({ "type": "array", "items": variant, "description": "Variants of the model: each runs the recipe's steps, then its own." });
    root["properties"]["export"] =
        json!({ "type": "array", "items": { "oneOf": exports }, "description": "What is written of each variant." });
    root["properties"]["eval"] =
        json!({ "type": "array", "items": { "oneOf": evals }, "description": "What is measured of each variant." });
    root["properties"]["gate"] = json!({ "type": "array", "items": of::<WrittenGate>(), "description": "Conditions that must hold for the run to succeed." });
    root["additionalProperties"] = json!(false);
    root["$defs"] = json!({ "steps": step_list });
    root
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
            all["properties"][name] = property.clone();
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
