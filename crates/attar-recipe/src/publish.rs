//! Everything that a variant leaves in the output folder, each folder written whole, read back and moved into place.

use attar_model::Model;

use crate::{
    Recipe, Result, Variant, adapters, artifact::write_artifact, extras::WrittenFolder, made::Written, model::Working,
    output::Output, session::Session,
};

/// Writes the artifacts of a variant, and its adapters if a step left such.
pub(crate) fn artifacts(
    recipe: &Recipe,
    variant: &Variant,
    working: &Working,
    output: &Output,
    session: &Session<'_>,
) -> Result<Vec<Written>> {
    let base: &Model = session.base();
    let mut written = Vec::new();
    for export in recipe.exports_of(variant) {
        session.check_interrupt()?;
        let folder = recipe.folder(&variant.name, &export.folder);
        let (artifact, verified) = write_artifact(recipe, export, &folder, base, working, output, session)?;
        written.push(Written { folder, artifact, verified });
    }
    if let Some(added) = &working.adapters {
        let folder = recipe.folder(&variant.name, adapters::FOLDER);
        let (artifact, verified) = adapters::write(added, &folder, base, working, output, session)?;
        written.push(Written { folder, artifact, verified });
    }
    Ok(written)
}

/// Writes the folders that the steps of a variant left.
pub(crate) fn extras(
    recipe: &Recipe,
    variant: &Variant,
    working: &Working,
    output: &Output,
    session: &Session<'_>,
) -> Result<Vec<WrittenFolder>> {
    let publish =
        |extra: &crate::extras::Folder| extra.publish(&variant.name, recipe.folder(&variant.name, &extra.name), output, session);
    working.folders.iter().map(publish).collect()
}
