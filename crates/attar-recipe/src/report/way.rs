//! Ways out where a gate failed.

use serde::{Deserialize, Serialize};

use crate::{shown::in_markdown, table::Table};

/// A change of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Way {
    /// What to do.
    pub what: String,
    /// The gate that failed, `EVAL/METRIC`.
    pub gate: String,
    /// The variant that failed, if it has a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// What the gate is predicted to measure then.
    pub predicted: f64,
    /// Whether the gate passes by that prediction, with some caution.
    pub passes: bool,
    /// Bytes of the model's weights more than now.
    pub bytes: i64,
    /// What else it takes.
    pub cost: String,
    /// The changed part of the recipe.
    pub snippet: String,
    /// The whole recipe, in the output folder: `attar run` takes it.
    pub recipe: String,
}

/// The ways as a table, in the words of reports.
pub(super) fn table(ways: &[Way]) -> Table {
    let row = |way: &Way| {
        let mark = if way.passes { "passes" } else { "still fails" };
        vec![
            way.what.clone(),
            way.variant.as_ref().map_or_else(|| way.gate.clone(), |variant| format!("{} of {variant}", way.gate)),
            format!("{:.4}, {mark}", way.predicted),
            format!("{:+.2} MB", way.bytes as f64 * 1e-6),
            way.cost.clone(),
            way.recipe.clone(),
        ]
    };
    Table { head: &["way out", "gate", "predicted", "weights", "takes", "recipe"], rows: ways.iter().map(row).collect() }
}

/// The changed parts of the recipes.
pub(super) fn snippets(ways: &[Way]) -> String {
    let snippet =
        |way: &Way| format!("{} (`{}`):\n\n```toml\n{}\n```\n\n", in_markdown(&way.what), way.recipe, way.snippet.trim());
    ways.iter().map(snippet).collect()
}
