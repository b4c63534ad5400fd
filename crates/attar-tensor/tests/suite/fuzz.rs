//! The seeds of the fuzz targets, once each: every file is read or refused.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use attar_tensor::{Source, gguf, safetensors::Shards};

/// The seeds of a fuzz target, and what it found once.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz").join(target);
    let files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder of seeds").map(|entry| entry.expect("it can be listed").path()).collect();
    assert!(!files.is_empty(), "no seeds of {target}");
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("it can be read"))).collect()
}

/// The first row of every tensor.
fn read(source: &dyn Source) -> usize {
    let rows = source.tensors().iter().filter(|(name, info)| {
        let [_, columns] = info.matrix();
        source.read(name, 0..1, &mut vec![0.0; columns]).is_ok()
    });
    rows.count()
}

#[test]
fn safetensors() {
    let mut tensors = 0;
    for (path, _) in seeds("safetensors") {
        for scheme in ["int4/g4/asymmetric", "int3/g4/int6"] {
            let codes = BTreeMap::from([("w".to_owned(), (scheme.parse().unwrap(), [2, 8]))]);
            for quantized in [BTreeMap::new(), codes] {
                tensors += Shards::open(std::slice::from_ref(&path), &quantized).map_or(0, |shards| read(&shards));
            }
        }
    }
    assert!(tensors > 0);
}

#[test]
fn gguf() {
    let read = seeds("gguf").into_iter().map(|(path, _)| gguf::File::open(&path).map_or(0, |file| read(&file)));
    assert!(read.sum::<usize>() > 0);
}
