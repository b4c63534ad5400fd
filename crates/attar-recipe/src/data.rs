//! The texts of a recipe.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Texts that steps read.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Data {
    /// Text for steps that observe activations.
    #[serde(default)]
    pub(crate) calibration: Option<attar_compress::Calibration>,
    /// Text for steps that train on more than the calibration text.
    #[serde(default)]
    pub(crate) train: Option<attar_compress::TrainingText>,
}

/// Which texts activations are seen on, and how many windows of each.
pub(crate) fn described(length: usize, of: &[(String, usize)]) -> String {
    let of: Vec<String> = of.iter().map(|(name, windows)| format!("{windows} of {name}")).collect();
    format!("calibration: windows of {length} tokens, {}", of.join(", "))
}
