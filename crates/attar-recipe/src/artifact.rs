//! Artifacts: written to a temporary folder, verified, then moved into place; kept when nothing that decides them has changed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::Path,
};

use attar_export::{Artifact, Input};
use attar_model::Model;
use attar_tensor::Digest;
use serde::Serialize;

use crate::{
    Error, Export, Observer, Recipe, Result,
    json::{TOOL, json},
    model::Working,
    output::Output,
};

/// The file in which an artifact describes itself.
const ARTIFACT: &str = "artifact.json";

/// An artifact with the digest of all that decides it.
#[derive(Serialize, serde::Deserialize)]
struct Described {
    key: Digest,
    verified_weights: u64,
    #[serde(flatten)]
    artifact: Artifact,
}

/// Writes and verifies an artifact, unless it is there already. Returns how many weights were verified, too.
pub(crate) fn write_artifact(
    recipe: &Recipe,
    export: &Export,
    folder: &str,
    base: &Model,
    working: &Working,
    output: &Output,
    observer: &dyn Observer,
) -> Result<(Artifact, u64)> {
    let key = artifact_key(export, base, working)?;
    if let Some(there) = read_artifact(&output.root().join(folder), &key) {
        return Ok((there.artifact, there.verified_weights));
    }
    let partial = output.unfinished()?;
    let input = Input { graph: &working.graph, source: &*working.source };
    observer.stage(&format!("{}: write {}", working.title, export.target.name()), 0);
    let mut artifact = export
        .target
        .write(&input, &export.options, &partial, &mut |done, total| {
            if done == 0 {
                observer.stage(&format!("{}: write {}", working.title, export.target.name()), total);
            }
            observer.advance(done, "");
        })
        .map_err(|e| input_or_refused(recipe, export, e))?;
    observer.stage(&format!("{}: verify {}", working.title, export.target.name()), 0);
    let original = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| working.float.read(name, rows, out);
    let verification = export.target.verify(&input, &artifact, &partial, Some(&original))?;
    artifact.record(&verification);
    side_files(base, &partial)?;
    let described = Described { key, verified_weights: verification.weights, artifact };
    let path = partial.join(ARTIFACT);
    std::fs::write(&path, json(&described)).map_err(|source| attar_tensor::Error::Io { action: "write", path, source })?;
    output.publish(folder)?;
    Ok((described.artifact, described.verified_weights))
}

fn input_or_refused(recipe: &Recipe, export: &Export, error: attar_export::Error) -> Error {
    match &error {
        attar_export::Error::Weight { .. } | attar_export::Error::Node { .. } => recipe.refused_export(export, error),
        _ => error.into(),
    }
}

fn artifact_key(export: &Export, base: &Model, working: &Working) -> Result<Digest> {
    let (target, options) = (export.target, serde_json::json!(export.options));
    let (name, version) = (target.name(), target.version());
    let mut text = format!("{TOOL} {name} {version} {options}\n{}\n{}", working.graph, base.config.json);
    let mut seen = BTreeMap::new();
    for (_, _, expr) in working.graph.weights() {
        if let Entry::Vacant(entry) = seen.entry(expr.to_string()) {
            entry.insert(expr.digest(&*working.source)?);
        }
    }
    seen.iter().for_each(|(expr, digest)| text += &format!("\n{expr} {digest}"));
    Ok(Digest::of(text.as_bytes()))
}

/// The artifact in `folder`, if it is of that key and every byte is what it should be.
fn read_artifact(folder: &Path, key: &Digest) -> Option<Described> {
    let described: Described = serde_json::from_slice(&std::fs::read(folder.join(ARTIFACT)).ok()?).ok()?;
    let whole = described.artifact.files.iter().all(|f| Digest::of_file(&folder.join(&f.name)).is_ok_and(|d| d == f.digest));
    (described.key == *key && whole).then_some(described)
}

/// What a runtime needs apart from the weights: configuration and tokenizer.
fn side_files(base: &Model, folder: &Path) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|source| attar_tensor::Error::Io { action: "write", path, source })
    };
    write("config.json", &json(&base.config.json))?;
    for name in ["tokenizer.json", "generation_config.json", "tokenizer_config.json"] {
        let from = base.path.join(name);
        if base.path.is_dir() && from.exists() {
            write(name, &std::fs::read(&from).map_err(|source| attar_tensor::Error::Io { action: "read", path: from, source })?)?;
        } else if name == "tokenizer.json" && base.path.is_file() {
            write(name, base.tokenizer()?.to_json()?.as_bytes())?;
        }
    }
    Ok(())
}
