//! What a path on disk is: a Hugging Face folder, a GGUF file, or a folder that attar wrote.

mod files;
mod foreign;

pub use files::inside;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::{Defect, Encoding, Error, Result, Source, gguf, json, safetensors::Shards};

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
    /// Files and tensors that look like weights and are not read, in words.
    pub left_out: Vec<String>,
}

/// The kinds of checkpoint.
pub enum Format {
    /// `config.json` and safetensors.
    HuggingFace,
    /// A GGUF file, whole or in parts, and what its header says.
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
        let kind = match fs::metadata(path) {
            Ok(kind) => kind,
            Err(error) => return Err(foreign::hub(path).unwrap_or_else(|| Error::io("open", path)(error))),
        };
        match kind.is_file() {
            true => Checkpoint::file(path),
            false if path.join(MANIFEST).exists() => Checkpoint::attar(path),
            false if foreign::by_name(path).is_some() && !path.join("config.json").exists() => {
                Err(foreign::by_name(path).expect("it is"))
            }
            false => Checkpoint::hugging_face(path),
        }
    }

    /// One file: GGUF under any name, or safetensors.
    fn file(path: &Path) -> Result<Checkpoint> {
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        if extension == "gguf" || starts_with(path, b"GGUF")? {
            return Checkpoint::gguf(path);
        }
        if let Some(error) = foreign::by_name(path) {
            return Err(error);
        }
        match &*extension {
            "safetensors" => Checkpoint::of_weights(parent(path), files::lone(path)?),
            _ => {
                let wanted = "a `.gguf` or `.safetensors` file, or a folder with safetensors was expected";
                Err(Error::NotACheckpoint { path: path.into(), wanted })
            }
        }
    }

    fn gguf(path: &Path) -> Result<Checkpoint> {
        let parts = gguf::Parts::open(path)?;
        let (format, files) = (Format::Gguf(parts.metadata().clone()), parts.paths());
        Ok(Checkpoint { path: path.into(), format, source: Arc::new(parts), files, left_out: Vec::new() })
    }

    fn attar(path: &Path) -> Result<Checkpoint> {
        let manifest: Manifest = typed(&path.join(MANIFEST))?;
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
        // A shard that is missing is an error of its own.
        let shard = |name: &String| files::inside(path, name, MANIFEST).map(|found| found.unwrap_or_else(|| path.join(name)));
        let shards: Vec<PathBuf> = manifest.shards.iter().map(shard).collect::<Result<_>>()?;
        let source = Shards::open(&shards, &quantized)?;
        Ok(Checkpoint {
            path: path.into(),
            format: Format::Attar(manifest),
            source: Arc::new(source),
            files: with_side_files(path, shards, &[MANIFEST, "graph.ir"])?,
            left_out: Vec::new(),
        })
    }

    fn hugging_face(path: &Path) -> Result<Checkpoint> {
        Checkpoint::of_weights(path, files::weights(path)?)
    }

    fn of_weights(folder: &Path, weights: files::Weights) -> Result<Checkpoint> {
        let files::Weights { source, shards, left_out } = weights;
        let index = if shards.iter().any(|shard| *shard == folder.join(files::WHOLE)) { &[][..] } else { &[files::INDEX] };
        let files = with_side_files(folder, shards, index)?;
        Ok(Checkpoint { path: folder.into(), format: Format::HuggingFace, source: Arc::new(source), files, left_out })
    }

    /// Whether it is, in all or in part, already quantized by attar.
    pub fn is_quantized(&self) -> bool {
        self.source.tensors().values().any(|t| matches!(t.encoding, Encoding::Quantized(_)))
    }

    /// A JSON file beside the tensors, if there is one.
    pub fn json(&self, name: &str) -> Result<Option<serde_json::Value>> {
        self.side_file(name)?.map(|path| json::read(&path)).transpose()
    }

    /// The file of that name in the folder, if there is one. A name or a link that leads out of the folder is an error.
    pub fn side_file(&self, name: &str) -> Result<Option<PathBuf>> {
        if self.path.is_dir() { files::inside(&self.path, name, "the folder") } else { Ok(None) }
    }
}

/// The folder that a file lies in.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn starts_with(path: &Path, magic: &[u8; 4]) -> Result<bool> {
    use std::io::Read;
    let mut start = Vec::new();
    fs::File::open(path).map_err(Error::io("read", path))?.take(4).read_to_end(&mut start).map_err(Error::io("read", path))?;
    Ok(start == magic)
}

fn with_side_files(folder: &Path, shards: Vec<PathBuf>, more: &[&str]) -> Result<Vec<PathBuf>> {
    let side = ["config.json", "generation_config.json", "tokenizer.json"];
    let mut files = shards;
    for name in side.iter().chain(more) {
        files.extend(files::inside(folder, name, "the folder")?);
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn typed<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let content = |e| Error::Malformed { path: path.into(), format: "JSON", defect: Defect::Content(e) };
    serde_json::from_value(json::read(path)?).map_err(content)
}
