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

/// What to do where a step looks at activations, and there is no text.
pub(crate) const GIVE_TEXT: &str = "add `[data.calibration]` with the `path` of a text, or without for attar's own mixture";
