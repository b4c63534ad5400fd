//! Which files of a folder are the model's weights, and that nothing a folder names lies outside it.
//!
//! 1. `model.safetensors` is the model, whatever else is there, unless the index names it as one of its shards. That is what
//!    transformers loads.
//! 2. Otherwise `model.safetensors.index.json` says which tensor lies in which file. A tensor that a file holds and the index
//!    does not place there is not part of the model.
//! 3. Otherwise no rule tells, and the error lists the candidates.
//!
//! Names are relative and have no `..`. What a link leads to lies in the folder, or in the `blobs` of the hub cache that the
//! folder is a snapshot of.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use serde_json::Value;

use super::foreign;
use crate::{Defect, Error, Result, json, safetensors::Shards};

pub(super) const WHOLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The weights of a folder.
pub(super) struct Weights {
    pub(super) source: Shards,
    pub(super) shards: Vec<PathBuf>,
    /// Files and tensors that look like weights and are not read.
    pub(super) left_out: Vec<String>,
}

/// The weights of the Hugging Face folder.
pub(super) fn weights(folder: &Path) -> Result<Weights> {
    let whole = inside(folder, WHOLE, "the folder")?;
    let index = inside(folder, INDEX, "the folder")?.map(|path| Index::read(&path)).transpose()?;
    match (whole, index) {
        (_, Some(index)) if index.files().contains(WHOLE) => indexed(folder, &index),
        (Some(whole), index) => {
            let source = Shards::open(std::slice::from_ref(&whole), &BTreeMap::new())?;
            let left_out = index.map_or(Vec::new(), |index| index.left_out(folder));
            Ok(Weights { source, shards: vec![whole], left_out })
        }
        (None, Some(index)) => indexed(folder, &index),
        (None, None) => Err(no_weights(folder)),
    }
}

/// A safetensors file by itself.
pub(super) fn lone(path: &Path) -> Result<Weights> {
    let (name, folder) = (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), super::parent(path));
    if let Some(index) = inside(folder, INDEX, "the folder")?
        && Index::read(&index)?.files().contains(name.as_str())
    {
        return Err(Error::Foreign { path: path.into(), kind: "one shard of a model", hint: "give the folder that it lies in" });
    }
    let source = Shards::open(&[path.into()], &BTreeMap::new())?;
    Ok(Weights { source, shards: vec![path.into()], left_out: Vec::new() })
}

/// The file of that name below the folder, if it is there. `by` is what names it. A name or a link that leads out of the
/// folder is an error.
pub fn inside(folder: &Path, name: &str, by: &str) -> Result<Option<PathBuf>> {
    let outside = |by: &str| Error::Outside { folder: folder.into(), by: by.into(), name: name.into() };
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    if name.is_empty() || name.contains('\\') || !Path::new(name).components().all(plain) {
        return Err(outside(by));
    }
    let path = folder.join(name);
    if !path.exists() {
        return Ok(None);
    }
    let real = |path: &Path| path.canonicalize().map_err(Error::io("read", path));
    let (home, target) = (real(folder)?, real(&path)?);
    match target.starts_with(&home) || blobs(&home).is_some_and(|blobs| target.starts_with(blobs)) {
        true => Ok(Some(path)),
        false => Err(outside("a link")),
    }
}

/// Where a hub cache keeps the files of its `snapshots/REVISION`.
fn blobs(home: &Path) -> Option<PathBuf> {
    let snapshots = home.ancestors().skip(1).find(|folder| folder.file_name().is_some_and(|name| name == "snapshots"))?;
    Some(snapshots.parent()?.join("blobs"))
}

/// `model.safetensors.index.json`.
struct Index(BTreeMap<String, String>);

impl Index {
    fn read(path: &Path) -> Result<Index> {
        let malformed = |found: String, wanted| {
            let defect = Defect::Key { key: "weight_map".into(), found, wanted };
            Error::Malformed { path: path.into(), format: "index", defect }
        };
        let json = json::read(path)?;
        let map = json.get("weight_map").and_then(Value::as_object);
        let map =
            map.filter(|map| !map.is_empty()).ok_or_else(|| malformed("missing or empty".into(), "the file of every tensor"))?;
        let entry = |(tensor, file): (&String, &Value)| match file.as_str() {
            Some(file) => Ok((tensor.clone(), file.to_owned())),
            None => Err(malformed(format!("{file} for `{tensor}`"), "the name of a file")),
        };
        map.iter().map(entry).collect::<Result<_>>().map(Index)
    }

    /// The files that it names.
    fn files(&self) -> BTreeSet<&str> {
        self.0.values().map(String::as_str).collect()
    }

    /// Itself and those of its files that are there.
    fn left_out(&self, folder: &Path) -> Vec<String> {
        let there = |name: &&str| matches!(inside(folder, name, INDEX), Ok(Some(_)));
        let files = self.files().into_iter().filter(there).map(|file| format!("`{file}`"));
        std::iter::once(format!("`{INDEX}`")).chain(files).collect()
    }
}

fn indexed(folder: &Path, index: &Index) -> Result<Weights> {
    let files: Vec<&str> = index.files().into_iter().collect();
    let missing =
        |tensor: &str| Error::MissingShard { folder: folder.into(), shard: index.0[tensor].clone(), tensor: tensor.into() };
    let path = |name: &&str| {
        let tensor = index.0.iter().find(|(_, file)| file == name).map_or("", |(tensor, _)| tensor);
        inside(folder, name, INDEX)?.ok_or_else(|| missing(tensor))
    };
    let shards: Vec<PathBuf> = files.iter().map(path).collect::<Result<_>>()?;
    let place = |file: &String| files.binary_search(&file.as_str()).expect("the files are those that the index names");
    let placed = index.0.iter().map(|(tensor, file)| (tensor.clone(), place(file))).collect();
    let source = Shards::placed(&shards, &placed)?.map_err(|tensor| missing(&tensor))?;
    let left_out = source.beside().iter().map(|tensor| format!("`{tensor}` (not in the index)")).collect();
    Ok(Weights { source, shards, left_out })
}

/// The error for a folder without weights under their usual names.
fn no_weights(folder: &Path) -> Error {
    let mut names: Vec<String> = match fs::read_dir(folder) {
        // In a folder that may not be read, nothing seems to exist.
        Err(error) => return Error::io("read", folder)(error),
        Ok(entries) => entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect(),
    };
    names.sort();
    let ending =
        |end: &str| -> Vec<String> { names.iter().filter(|name| name.ends_with(end)).map(|name| format!("`{name}`")).collect() };
    let candidates = |candidates, hint| Error::Candidates { folder: folder.into(), candidates, hint };
    if let Some(adapter) = names.iter().find(|name| *name == "adapter_model.safetensors") {
        return foreign::by_name(&folder.join(adapter)).expect("adapters are among the formats");
    }
    let (safetensors, gguf) = (ending(".safetensors"), ending(".gguf"));
    if names.iter().any(|name| name.ends_with(".safetensors") && name.contains("-of-")) {
        return candidates(
            safetensors,
            "shards need the `model.safetensors.index.json` that says what lies in which: fetch it, too",
        );
    }
    if !safetensors.is_empty() {
        return candidates(safetensors, "give the path of the file that is meant; its `config.json` must lie beside it");
    }
    if !gguf.is_empty() {
        return candidates(gguf, "give the path of the GGUF file that is meant");
    }
    match names.iter().filter(|name| !name.ends_with(".json")).find_map(|name| foreign::by_name(&folder.join(name))) {
        Some(error) => error,
        None => Error::NotACheckpoint {
            path: folder.into(),
            wanted: "`model.safetensors`, `model.safetensors.index.json` or `attar.json` was expected in it",
        },
    }
}
