//! Artifacts: written to a temporary folder, verified, then moved into place; kept when nothing that decides them has changed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    path::{Component, Path},
};

use attar_export::{Artifact, FileEntry, Input, Side};
use attar_model::Model;
use attar_tensor::Digest;

use crate::{
    Error, Export, Recipe, Result,
    described::{ARTIFACT, Described},
    extras::Folder,
    json::{TOOL, json},
    model::Working,
    output::Output,
    session::Session,
    side::side,
};

/// Writes and verifies an artifact, unless it is there already. Returns how many weights were verified, too.
pub(crate) fn write_artifact(
    recipe: &Recipe,
    export: &Export,
    folder: &str,
    base: &Model,
    working: &Working,
    output: &Output,
    session: &Session<'_>,
) -> Result<(Artifact, u64)> {
    let observer = session.observer;
    let compiled = working.folders.iter().rfind(|folder| folder.kind == "compile").map(Folder::contents).unwrap_or_default();
    let side = Side { compiled, ..side(base, &working.graph)? };
    let key = artifact_key(export, &side, working)?;
    if let Some(there) = read_artifact(&output.root().join(folder), &key) {
        return Ok((there.artifact, there.verified_weights));
    }
    let partial = output.unfinished()?;
    let input = Input { graph: &working.graph, source: &*working.source, side: &side };
    observer.stage(&format!("{}: write {}", working.title, export.target.name), 0);
    let mut artifact = export
        .format
        .write(&input, &partial, &mut |done, total| {
            if done == 0 {
                observer.stage(&format!("{}: write {}", working.title, export.target.name), total);
            }
            observer.advance(done, "");
        })
        .map_err(|e| input_or_refused(recipe, export, e))?;
    observer.stage(&format!("{}: verify {}", working.title, export.target.name), 0);
    let original = |name: &str, rows: std::ops::Range<usize>, out: &mut [f32]| working.float.read(name, rows, out);
    let verification = export.format.verify(&input, &artifact, &partial, Some(&original))?;
    artifact.record(&verification);
    artifact.notes.iter().for_each(|note| observer.note(&format!("note: {note}")));
    let described = Described { key, verified_weights: verification.weights, zeros: working.zeros.clone(), artifact };
    let path = partial.join(ARTIFACT);
    std::fs::write(&path, json(&described)).map_err(|source| attar_tensor::Error::Io { action: "write", path, source })?;
    session.check_inputs()?;
    output.publish(folder)?;
    Ok((described.artifact, described.verified_weights))
}

fn input_or_refused(recipe: &Recipe, export: &Export, error: attar_export::Error) -> Error {
    match &error {
        attar_export::Error::Weight { .. }
        | attar_export::Error::Node { .. }
        | attar_export::Error::Model(_)
        | attar_export::Error::Overflow { .. } => recipe.refused_export(export, error),
        _ => error.into(),
    }
}

fn artifact_key(export: &Export, side: &Side, working: &Working) -> Result<Digest> {
    let (name, version, options) = (export.target.name, export.target.version, export.format.options());
    let mut text = format!("{TOOL} {name} {version} {options}\n{}\n{}", working.graph, side.config);
    for (name, content) in &side.files {
        text += &format!("\n{name} {}", content.digest()?);
    }
    for (name, content) in side.compiled.iter().filter(|_| export.format.needs_plans()) {
        text += &format!("\ncompiled/{name} {}", content.digest()?);
    }
    working.zeros.iter().for_each(|name| text += &format!("\nzeros {name}"));
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
    let described = Described::read(folder).ok()??;
    let whole = described.artifact.files.iter().all(|file| damage(folder, file).is_none());
    (described.key == *key && whole && !described.artifact.files.is_empty()).then_some(described)
}

/// Fails if attar wrote the artifact in `folder` and a file of it is not what was written.
pub(crate) fn check_whole(folder: &Path) -> Result<()> {
    let files = Described::read(folder)?.map(|described| described.artifact.files).unwrap_or_default();
    let Some((file, found)) = files.iter().find_map(|file| Some((file, damage(folder, file)?))) else { return Ok(()) };
    let path = folder.join(&file.name);
    let message =
        format!("`{}` {found}; `{ARTIFACT}` has it with {} bytes and digest {}", path.display(), file.bytes, file.digest.short());
    Err(Error::input(message).hint("export it again; something has changed it since it was written and verified".to_owned()))
}

/// What is wrong with a file of an artifact, as a predicate.
fn damage(folder: &Path, file: &FileEntry) -> Option<String> {
    let path = folder.join(&file.name);
    if file.name.is_empty() || !Path::new(&file.name).components().all(|part| matches!(part, Component::Normal(_))) {
        return Some("is no name of a file in it".into());
    }
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Some("is missing".into()),
        Ok(found) if found.len() != file.bytes => return Some(format!("has {} bytes", found.len())),
        _ => {}
    }
    match Digest::of_file(&path) {
        Ok(digest) if digest == file.digest => None,
        Ok(digest) => Some(format!("has the digest {}", digest.short())),
        Err(error) => Some(format!("cannot be read: {error}")),
    }
}
