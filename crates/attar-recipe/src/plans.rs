//! Exports of a folder of plans, without a recipe: what such a target writes is made from the plans alone.

use std::{collections::BTreeMap, path::Path};

use attar_export::{Artifact, C, Content, compiled_files};
use attar_tensor::Digest;

use crate::{
    Error, Result,
    described::{ARTIFACT, Described},
    json::json,
    output::Output,
};

/// Writes the C of the compiled model in `folder`, or in its folder `compiled`, as `out`, and compares every weight of it with the
/// folder's. Returns how many numbers were compared, too.
///
/// # Errors
/// A folder without plans, or with plans that cannot be used; an output that holds other things.
pub fn export_plans(
    folder: &Path,
    options: &C,
    out: &Path,
    made_by: &str,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Artifact, u64)> {
    let files = plans(folder)?;
    let output = Output::claim(out, made_by)?;
    output.withdraw_promises()?;
    let partial = output.unfinished()?;
    let artifact = options.emit(&files, &partial, progress)?;
    let verified_weights = options.compare(&files, &partial)?;
    let described = Described { key: key(&files)?, verified_weights, zeros: Default::default(), artifact };
    let path = partial.join(ARTIFACT);
    std::fs::write(&path, json(&described)).map_err(|source| attar_tensor::Error::Io { action: "write", path, source })?;
    output.publish(".")?;
    Ok((described.artifact, verified_weights))
}

/// Whether there is a compiled model in `folder`, or in its folder `compiled`.
///
/// # Errors
/// A folder that cannot be read.
pub fn holds_plans(folder: &Path) -> Result<bool> {
    Ok(compiled_files(folder)?.is_some())
}

/// Writes the C of the compiled model in `folder` into `out`, a folder for the moment.
///
/// # Errors
/// Those of [`export_plans`], but for the output.
pub fn emit_plans(folder: &Path, options: &C, out: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
    options.emit(&plans(folder)?, out, progress)?;
    Ok(())
}

fn plans(folder: &Path) -> Result<BTreeMap<String, Content>> {
    compiled_files(folder)?.ok_or_else(|| {
        let message = format!("`{}` holds no compiled model", folder.display());
        Error::input(message).hint("`attar compile` writes one: give its output folder, or `compiled` in it".to_owned())
    })
}

/// Of everything that was read.
fn key(files: &BTreeMap<String, Content>) -> Result<Digest> {
    let mut text = String::new();
    for (name, content) in files {
        text += &format!("{name} {}\n", content.digest()?);
    }
    Ok(Digest::of(text.as_bytes()))
}
