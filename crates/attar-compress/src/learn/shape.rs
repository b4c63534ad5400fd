//! The shape of a student that `distill` makes itself: smaller than its teacher, and pruned from it or new.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{from_value, json};

use crate::prune::Prune;

/// What the student has; all that the model has, where nothing is said.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StudentShape {
    /// MLP channels of every block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp: Option<usize>,
    /// Query heads of every block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heads: Option<usize>,
    /// Key-value heads of every block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<usize>,
    /// Blocks at the start, and as many at the end, that stay under `blocks` [default: 2].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ends: Option<usize>,
    /// Channels of the residual stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// What its weights start at.
    #[serde(default)]
    pub init: Init,
    /// Seed of random weights.
    #[serde(default)]
    pub seed: u64,
}

/// What a student's weights start at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Init {
    /// What the step `prune` leaves of the model, with its defaults. It looks at the calibration text, or else at that of the training.
    #[default]
    Prune,
    /// Random numbers. It takes a text of millions of tokens to make something of them.
    Random,
}

impl StudentShape {
    /// The steps that make a model that small, in order.
    pub fn prunings(&self) -> Vec<Prune> {
        let StudentShape { mlp, heads, kv_heads, blocks, ends, hidden, .. } = self;
        let shaped = [mlp, heads, kv_heads, blocks].iter().any(|n| n.is_some());
        let narrow = hidden.map(|hidden| json!({ "hidden": hidden }));
        let shape = shaped.then(|| {
            let given = [("mlp", mlp), ("heads", heads), ("kv_heads", kv_heads), ("blocks", blocks), ("ends", ends)];
            given
                .into_iter()
                .filter_map(|(key, n)| Some((key.to_owned(), json!((*n)?))))
                .collect::<serde_json::Map<_, _>>()
                .into()
        });
        let step = |settings| from_value(settings).expect("settings of the step `prune`");
        narrow.into_iter().chain(shape).map(step).collect()
    }
}
