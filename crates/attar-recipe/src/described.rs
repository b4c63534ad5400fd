//! What an artifact says of itself, in a file of its own.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use attar_export::{Artifact, Port};
use attar_tensor::Digest;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The file in which an artifact describes itself.
pub(crate) const ARTIFACT: &str = "artifact.json";

/// An artifact with the digest of all that decides it.
#[derive(Serialize, Deserialize)]
pub(crate) struct Described {
    pub(crate) key: Digest,
    pub(crate) verified_weights: u64,
    /// Weights whose zeros left by pruning, by canonical name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) zeros: BTreeSet<String>,
    #[serde(flatten)]
    pub(crate) artifact: Artifact,
}

/// Numbers in the weights of the artifact in `folder`, if it describes itself.
pub(crate) fn weights_in(folder: &Path) -> Option<u64> {
    Some(Described::read(folder).ok()??.artifact.totals.weights)
}

/// The target of the artifact in `folder`, if it describes itself.
pub(crate) fn target_of(folder: &Path) -> Option<String> {
    Some(Described::read(folder).ok()??.artifact.target)
}

/// The weights of the checkpoint in `folder` whose zeros stay, by canonical name; none, if it does not describe itself.
pub(crate) fn zeros_in(folder: &Path) -> Result<BTreeSet<String>> {
    Ok(Described::read(folder)?.map(|described| described.zeros).unwrap_or_default())
}

/// The file by which a checkpoint in `folder` describes itself, if it does.
pub(crate) fn description_in(folder: &Path) -> Option<PathBuf> {
    Some(folder.join(ARTIFACT)).filter(|path| path.is_file())
}

/// Whether the artifact in `folder` says that it takes several tokens and returns the logits of the last alone.
pub(crate) fn returns_last(folder: &Path) -> bool {
    let Ok(Some(Described { artifact, .. })) = Described::read(folder) else { return false };
    let is_one = |port: &Port| port.dims.get(1).is_some_and(|dim| dim == "1");
    artifact.outputs.iter().any(|port| port.name == "logits" && is_one(port)) && !artifact.inputs.first().is_some_and(is_one)
}

impl Described {
    /// What the artifact in `folder` says of itself, if it says anything.
    pub(crate) fn read(folder: &Path) -> Result<Option<Described>> {
        let path = folder.join(ARTIFACT);
        match std::fs::read(&path) {
            // A checkpoint may be a file.
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => Ok(None),
            Err(source) => Err(attar_tensor::Error::Io { action: "read", path, source }.into()),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
                let hint = "export it again, or delete that file if attar did not write it";
                Error::input(format!("`{}` does not describe an artifact", path.display())).because(&error).hint(hint.to_owned())
            }),
        }
    }
}
