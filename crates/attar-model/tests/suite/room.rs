//! A folder for one test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use attar_tensor::{
    Dtype, Source,
    safetensors::{Entry, Shards, Writer},
};
use serde_json::Value;

/// An empty folder.
pub(crate) struct Room(PathBuf);

/// Tensors by name, with their shapes.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

impl Room {
    pub(crate) fn new(name: &str) -> Room {
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rooms").join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Room(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// A path in it, whose folder is made.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    pub(crate) fn json(&self, name: &str, value: &Value) {
        fs::write(self.file(name), value.to_string()).unwrap();
    }

    /// Writes safetensors in f32.
    pub(crate) fn tensors(&self, name: &str, tensors: &Tensors) {
        let entry = |(name, (dims, _)): (&String, &(Vec<usize>, Vec<f32>))| Entry {
            name: name.clone(),
            dtype: Dtype::F32,
            dims: dims.clone(),
        };
        let entries: Vec<Entry> = tensors.iter().map(entry).collect();
        let mut writer = Writer::new(fs::File::create(self.file(name)).unwrap(), &entries, &Default::default()).unwrap();
        for (_, values) in tensors.values() {
            let mut bytes = Vec::new();
            Dtype::F32.encode(values, &mut bytes);
            writer.append(&bytes).unwrap();
        }
        writer.finish();
    }
}

/// All tensors of a file, as f32.
pub(crate) fn load(path: &Path) -> Tensors {
    let source = Shards::open(&[path.into()], &Default::default()).unwrap();
    let tensor = |(name, info): (&String, &attar_tensor::TensorInfo)| {
        let mut values = vec![0.0; info.elements()];
        source.read(name, 0..info.matrix()[0], &mut values).unwrap();
        (name.clone(), (info.dims.clone(), values))
    };
    source.tensors().iter().map(tensor).collect()
}
