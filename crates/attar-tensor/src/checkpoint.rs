//! What a path on disk is: a Hugging Face folder, a GGUF file, or a folder that attar wrote.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{Defect, Encoding, Error, Result, Source, gguf, safetensors::Shards};

/// The file that makes a folder attar's own.
pub const MANIFEST: &str = "attar.json";

/// A checkpoint whose headers are read.
pub struct Checkpoint {
    /// The folder or file.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Its tensors.
    pub source: Arc<dyn Source>,
    /// Every file that its meaning depends on, sorted.
    pub files: Vec<PathBuf>,
}

/// The kinds of checkpoint.
pub enum Format {
    /// `config.json` and safetensors.
    HuggingFace,
    /// One GGUF file and what its header says.
    Gguf(gguf::Metadata),
    /// A graph in text form, and tensors under the graph's own names.
    Attar(Manifest),
}

/// `attar.json`: what a folder written by attar holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// 1.
    pub attar: u32,
    /// The program that wrote it, with its version.
    pub tool: String,
    /// File names of the tensors.
    pub shards: Vec<String>,
    /// Names and schemes of the tensors stored as codes, scales and zeros.
    pub quantized: BTreeMap<String, QuantizedEntry>,
}

/// One quantized tensor of a [`Manifest`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizedEntry {
    /// [`crate::Scheme`] in text form.
    pub scheme: String,
    /// Rows and columns.
    pub dims: [usize; 2],
}

impl Checkpoint {
    /// Opens whatever `path` is. Reads headers only.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let kind = fs::metadata(path).map_err(Error::io("open", path))?;
        if kind.is_file() {
            return match path.extension().and_then(|e| e.to_str()) {
                Some("gguf") => Checkpoint::gguf(path),
                _ => Err(Error::NotACheckpoint {
                    path: path.into(),
                    wanted: "a `.gguf` file or a folder with safetensors was expected",
                }),
            };
        }
        if path.join(MANIFEST).exists() {
            return Checkpoint::attar(path);
        }
        Checkpoint::hugging_face(path)
    }

    fn gguf(path: &Path) -> Result<Checkpoint> {
        let file = gguf::File::open(path)?;
        let format = Format::Gguf(file.metadata().clone());
        Ok(Checkpoint { path: path.into(), format, source: Arc::new(file), files: vec![path.into()] })
    }

    fn attar(path: &Path) -> Result<Checkpoint> {
        let manifest: Manifest = read_json(&path.join(MANIFEST))?;
        let malformed = |defect| Error::Malformed { path: path.join(MANIFEST), format: "attar manifest", defect };
        if manifest.attar != 1 {
            return Err(malformed(Defect::Version { found: u64::from(manifest.attar), known: "1" }));
        }
        let mut quantized = BTreeMap::new();
        for (name, entry) in &manifest.quantized {
            if entry.dims.contains(&0) || entry.dims[0].checked_mul(entry.dims[1]).is_none_or(|n| n > 1 << 48) {
                let dims = entry.dims.iter().map(|d| *d as u64).collect();
                return Err(malformed(Defect::Shape { tensor: name.clone(), dims }));
            }
            quantized.insert(name.clone(), (entry.scheme.parse()?, entry.dims));
        }
        let shards: Vec<PathBuf> = manifest.shards.iter().map(|s| path.join(s)).collect();
        let source = Shards::open(&shards, &quantized)?;
        Ok(Checkpoint {
            path: path.into(),
            format: Format::Attar(manifest),
            source: Arc::new(source),
            files: with_side_files(path, shards, &[MANIFEST, "graph.ir"]),
        })
    }

    fn hugging_face(path: &Path) -> Result<Checkpoint> {
        let index = path.join("model.safetensors.index.json");
        let (shards, placed) = if index.exists() {
            let index: Index = read_json(&index)?;
            let names: BTreeSet<&String> = index.weight_map.values().collect();
            for name in &names {
                if !path.join(name).exists() {
                    let tensor = index.weight_map.iter().find(|(_, shard)| shard == name).map(|(t, _)| t.clone());
                    return Err(Error::MissingShard {
                        folder: path.into(),
                        shard: name.to_string(),
                        tensor: tensor.unwrap_or_default(),
                    });
                }
            }
            (names.into_iter().map(|name| path.join(name)).collect(), index.weight_map)
        } else if path.join("model.safetensors").exists() {
            (vec![path.join("model.safetensors")], BTreeMap::new())
        } else {
            // In a folder that may not be read, nothing seems to exist.
            fs::read_dir(path).map_err(Error::io("read", path))?;
            return Err(Error::NotACheckpoint {
                path: path.into(),
                wanted: "`model.safetensors`, `model.safetensors.index.json` or `attar.json` was expected in it",
            });
        };
        let source = Shards::open(&shards, &BTreeMap::new())?;
        for (tensor, shard) in &placed {
            if matches!(source.info(tensor), Err(Error::UnknownTensor { .. })) {
                return Err(Error::MissingShard { folder: path.into(), shard: shard.clone(), tensor: tensor.clone() });
            }
        }
        Ok(Checkpoint {
            path: path.into(),
            format: Format::HuggingFace,
            source: Arc::new(source),
            files: with_side_files(path, shards, &["model.safetensors.index.json"]),
        })
    }

    /// Whether it is, in all or in part, already quantized by attar.
    pub fn is_quantized(&self) -> bool {
        self.source.tensors().values().any(|t| matches!(t.encoding, Encoding::Quantized(_)))
    }

    /// A JSON file beside the tensors, if there is one.
    pub fn json(&self, name: &str) -> Result<Option<serde_json::Value>> {
        let path = self.path.join(name);
        if self.path.is_dir() && path.exists() { read_json(&path).map(Some) } else { Ok(None) }
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn with_side_files(folder: &Path, shards: Vec<PathBuf>, more: &[&str]) -> Vec<PathBuf> {
    let side = ["config.json", "generation_config.json", "tokenizer.json"];
    let mut files: Vec<PathBuf> = side.iter().chain(more).map(|name| folder.join(name)).filter(|p| p.exists()).collect();
    files.extend(shards);
    files.sort();
    files
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read(path).map_err(Error::io("read", path))?;
    serde_json::from_slice(&text).map_err(|e| Error::Malformed { path: path.into(), format: "JSON", defect: Defect::Json(e) })
}
