//! `manifest.json`: what the output folder holds and what it was made of.

use attar_export::Artifact;
use attar_tensor::Digest;
use serde::Serialize;

use crate::{
    Lock,
    extras::WrittenFolder,
    json::TOOL,
    lock,
    made::{Made, Written},
    report::ModelReport,
};

/// The manifest of a finished run.
#[derive(Serialize)]
pub(crate) struct Manifest<'a> {
    manifest: u32,
    tool: &'static str,
    recipe: String,
    recipe_digest: Digest,
    model: &'a ModelReport,
    inputs: &'a [lock::Input],
    artifacts: Vec<ManifestArtifact<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    folders: &'a [WrittenFolder],
}

#[derive(Serialize)]
struct ManifestArtifact<'a> {
    variant: &'a str,
    folder: &'a str,
    #[serde(flatten)]
    artifact: &'a Artifact,
}

impl<'a> Manifest<'a> {
    /// What was read.
    pub(crate) fn inputs(&self) -> &'a [lock::Input] {
        self.inputs
    }

    /// Of what was `made`, and the extra `folders` of its steps.
    pub(crate) fn of(
        recipe: String,
        lock: &'a Lock,
        model: &'a ModelReport,
        made: &'a [Made],
        folders: &'a [WrittenFolder],
    ) -> Manifest<'a> {
        let artifact = |made: &'a Made, written: &'a Written| ManifestArtifact {
            variant: &made.name,
            folder: &written.folder,
            artifact: &written.artifact,
        };
        Manifest {
            manifest: 1,
            tool: TOOL,
            recipe,
            recipe_digest: lock.recipe,
            model,
            inputs: &lock.inputs,
            artifacts: made.iter().flat_map(|made| made.artifacts.iter().map(move |written| artifact(made, written))).collect(),
            folders,
        }
    }
}
