//! The seeds of the fuzz target `ir`, once each: every text is refused, or what is printed of it is the same graph.

use std::{
    fs,
    path::{Path, PathBuf},
};

use attar_graph::Graph;

/// The seeds of a fuzz target, and what it found once.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/fuzz").join(target);
    let files: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder of seeds").map(|entry| entry.expect("it can be listed").path()).collect();
    assert!(!files.is_empty(), "no seeds of {target}");
    files.into_iter().map(|path| (path.clone(), fs::read(path).expect("it can be read"))).collect()
}

#[test]
fn ir() {
    let mut graphs = 0;
    for (path, bytes) in seeds("ir") {
        let Some(graph) = std::str::from_utf8(&bytes).ok().and_then(|text| Graph::parse(text).ok()) else { continue };
        let printed = graph.to_string();
        assert_eq!(Graph::parse(&printed).unwrap().to_string(), printed, "{}", path.display());
        graphs += 1;
    }
    assert!(graphs > 0);
}
