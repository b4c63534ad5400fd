//! A GGUF file, or all parts of one that was split: `NAME-00001-of-00003.gguf` and so on, in one folder. Any part names the
//! others. The metadata are those of the first part; `split.no` (from 0), `split.count` and `split.tensors.count` of each part
//! say whether the parts belong together, as llama.cpp's `gguf-split` writes them.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use super::{File, Metadata, Value, header::FORMAT};
use crate::{Defect, Digest, Error, QuantizedTensor, Result, Source, TensorInfo};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// All parts of a file, their headers read.
pub struct Parts {
    files: Vec<File>,
    /// The part that a tensor is in.
    holders: BTreeMap<String, usize>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Parts {
    /// Opens the file, and if it is a part the others, too.
    pub fn open(path: &Path) -> Result<Parts> {
        let file = File::open(path)?;
        let count = number(&file, COUNT).unwrap_or(1);
        if count <= 1 {
            return Parts::join(vec![file]);
        }
        let names = names(path, count).ok_or_else(|| {
            let found = format!("{count}, and the name of the file does not end in `-00001-of-{count:05}.gguf` or so");
            malformed(path, Defect::Metadata { key: COUNT.into(), found, wanted: "names that lead to the other parts" })
        })?;
        let parts = names.iter().zip(1..).map(|(name, number)| {
            if name.as_path() != path && !is_beside(path, name)? {
                return Err(Error::MissingPart { path: name.clone(), number, count });
            }
            part(name, number, count)
        });
        let parts = Parts::join(parts.collect::<Result<_>>()?)?;
        parts.check_total(path)?;
        Ok(parts)
    }

    /// What the header says about the model.
    pub fn metadata(&self) -> &Metadata {
        self.files[0].metadata()
    }

    /// The files, in order.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.files.iter().map(|file| file.path.clone()).collect()
    }

    fn join(files: Vec<File>) -> Result<Parts> {
        let (mut holders, mut tensors) = (BTreeMap::new(), BTreeMap::new());
        for (at, file) in files.iter().enumerate() {
            for tensor in file.stored.keys() {
                if let Some(other) = holders.insert(tensor.clone(), at) {
                    let other: &File = &files[other];
                    let other = other.path.display().to_string();
                    return Err(malformed(&file.path, Defect::Twice { tensor: tensor.clone(), other }));
                }
            }
            tensors.extend(file.tensors.clone());
        }
        Ok(Parts { files, holders, tensors })
    }

    fn check_total(&self, path: &Path) -> Result<()> {
        match number(&self.files[0], TENSORS) {
            Some(total) if total != self.holders.len() as u64 => {
                let found = format!("{total}, and the parts have {}", self.holders.len());
                Err(malformed(path, Defect::Metadata { key: TENSORS.into(), found, wanted: "as many as there are" }))
            }
            _ => Ok(()),
        }
    }

    fn holder(&self, name: &str) -> Result<&File> {
        self.holders.get(name).map(|at| &self.files[*at]).ok_or_else(|| self.unknown(name))
    }
}

/// The names of all parts, from that of one.
fn names(path: &Path, count: u64) -> Option<Vec<PathBuf>> {
    let name = path.file_name()?.to_str()?;
    let stem = name.strip_suffix(&format!("-of-{count:05}.gguf"))?;
    let (stem, number) = stem.rsplit_once('-')?;
    (number.len() == 5 && number.bytes().all(|digit| digit.is_ascii_digit())).then_some(())?;
    Some((1..=count).map(|number| path.with_file_name(format!("{stem}-{number:05}-of-{count:05}.gguf"))).collect())
}

/// Whether the other part is there, in the folder itself.
fn is_beside(path: &Path, other: &Path) -> Result<bool> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = other.file_name().unwrap_or_default().to_string_lossy();
    Ok(crate::inside(folder, &name, "the folder")?.is_some())
}

fn part(path: &Path, place: u64, count: u64) -> Result<File> {
    let file = File::open(path)?;
    for (key, wanted) in [(NUMBER, place - 1), (COUNT, count)] {
        let found = number(&file, key);
        if found != Some(wanted) {
            let found = found.map_or("missing".into(), |found| found.to_string());
            return Err(malformed(path, Defect::Metadata { key: key.into(), found, wanted: "that of its place by the name" }));
        }
    }
    Ok(file)
}

fn number(file: &File, key: &str) -> Option<u64> {
    match file.metadata().get(key)? {
        Value::Unsigned(n) => Some(*n),
        Value::Signed(n) => u64::try_from(*n).ok(),
        _ => None,
    }
}

fn malformed(path: &Path, defect: Defect) -> Error {
    Error::Malformed { path: path.into(), format: FORMAT, defect }
}

impl Source for Parts {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn unreadable(&self) -> Vec<String> {
        self.files.iter().flat_map(Source::unreadable).collect()
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.holder(name)?.info(name)
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.holder(name)?.read(name, rows, out)
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> Result<QuantizedTensor> {
        self.holder(name)?.read_quantized(name, rows)
    }

    fn digest(&self, name: &str) -> Result<Digest> {
        self.holder(name)?.digest(name)
    }
}
