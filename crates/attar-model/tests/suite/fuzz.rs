//! The seeds of the fuzz targets `config`, `quantized`, `tokenizer` and `pieces`, once each: every file is read or refused.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attar_model::{Model, Tokenizer};

/// The seeds of a fuzz target, and what it found once.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz").join(target);
    let files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder of seeds").map(|entry| entry.expect("it can be listed").path()).collect();
    assert!(!files.is_empty(), "no seeds of {target}");
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("it can be read"))).collect()
}

#[test]
fn config() {
    let folder = tempfile::tempdir().unwrap();
    let weights = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/tiny-llama-yarn/model.safetensors");
    fs::copy(weights, folder.path().join("model.safetensors")).unwrap();
    let mut models = 0;
    for (_, bytes) in seeds("config") {
        fs::write(folder.path().join("config.json"), bytes).unwrap();
        models += usize::from(Model::open(folder.path()).is_ok());
    }
    assert!(models > 0);
}

#[test]
fn quantized() {
    let folder = tempfile::tempdir().unwrap();
    let mut weights = 0;
    for (path, bytes) in seeds("quantized") {
        let end = 2 + usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        fs::write(folder.path().join("config.json"), &bytes[2..end]).unwrap();
        fs::write(folder.path().join("model.safetensors"), &bytes[end..]).unwrap();
        let model = Model::open(folder.path()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        weights += model.quantized.expect("it is").weights;
    }
    assert!(weights > 0);
}

#[test]
fn pieces() {
    for (path, _) in seeds("pieces") {
        assert!(!Tokenizer::from_pieces(&path, None).unwrap().encode("to be").unwrap().is_empty(), "{}", path.display());
    }
}

#[test]
fn tokenizer() {
    let mut tokens = 0;
    for (path, _) in seeds("tokenizer") {
        let Ok(tokenizer) = Tokenizer::open(&path) else { continue };
        tokens += tokenizer.encode("to be").unwrap().len();
    }
    assert!(tokens > 0);
}
