//! What steps did that change weights and keep what the model computes.

use serde::{Deserialize, Serialize};

use super::finding::Finding;

/// A step that keeps what the model computes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransformReport {
    /// Its kind.
    pub step: String,
    /// How many weights it changed.
    pub weights: usize,
    /// Largest difference of a logit from that before the step, over the largest logit, on a few windows.
    pub logits_off: f64,
    /// More than this fails the run.
    pub logits_off_at_most: f64,
    /// What was scaled, if channels were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteReport>,
}

/// Channels that were scaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteReport {
    /// Canonical name of what makes them.
    pub name: String,
    /// The exponent that was chosen.
    pub alpha: f64,
    /// Error of the outputs that are computed from them, rounded to nearest, as a share of that without scaling; absent where the method
    /// does not look.
    pub error: Option<f64>,
}

impl Finding for TransformReport {}
