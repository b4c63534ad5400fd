//! Files that verbs and steps read: buffers to place, plans to prove. Messages name the file.

use std::path::{Path, PathBuf};

use attar_compile::{
    Plan,
    memory::{Effort, Entries, Planned, read_csv},
    plan::Proof,
    simulate::Simulation,
};

use crate::{Error, Result};

/// Buffers with their lifetimes, a CSV file.
pub fn read_buffers(path: &Path) -> Result<Entries> {
    let bytes = std::fs::read(path).map_err(|e| Error::input(cannot_be_used(path)).because(&e))?;
    read_csv(&bytes).map_err(|e| unusable(path, &e))
}

/// Places buffers within a capacity in bytes, or as low as can be.
pub fn place_buffers(entries: &Entries, capacity: Option<u64>, effort: Effort) -> Result<Planned> {
    Planned::find(entries, capacity, effort).map_err(|e| Error::input("the buffers cannot be placed").because(&e))
}

/// A plan file.
pub fn read_plan(path: &Path) -> Result<Plan> {
    Plan::from_bytes(&read(path)?).map_err(|e| unusable(path, &e))
}

/// The numbers of a proof.
pub fn read_proof(path: &Path) -> Result<Proof> {
    Proof::from_bytes(&read(path)?).map_err(|e| unusable(path, &e))
}

/// The file of a plan's proof, if it is there: `.data` in place of `.plan`.
pub fn data_beside(plan: &Path) -> Option<PathBuf> {
    Some(plan.with_extension("data")).filter(|data| data.exists() && data != plan)
}

/// Runs the plan that is called `name` on the numbers of a proof: what it costs, if every access is in order and every result
/// is the reference's.
pub fn prove_plan(name: &str, plan: &Plan, proof: &Proof) -> Result<Simulation> {
    proof.prove(plan).map_err(|e| Error::input(format!("`{name}` is not proven")).because(&e))
}

/// A file that does not hold what it should.
pub fn unusable(path: &Path, error: &attar_compile::Error) -> Error {
    Error::input(cannot_be_used(path)).because(error).hint(error.hint())
}

fn cannot_be_used(path: &Path) -> String {
    format!("`{}` cannot be used", path.display())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| Error::input(format!("cannot read `{}`", path.display())).because(&e))
}

/// The last part of a path.
pub(crate) fn name_of(path: &Path) -> String {
    path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned())
}
