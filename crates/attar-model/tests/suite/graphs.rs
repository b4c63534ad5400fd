//! The graph of every model in `testdata/models` prints as `testdata/ir/NAME.ir`; `BLESS=1` rewrites them.

use std::{fs, path::Path};

use attar_graph::Graph;
use attar_model::Model;

#[test]
fn every_model_prints_as_its_golden_text() {
    let testdata = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
    for entry in fs::read_dir(testdata.join("models")).unwrap().flatten() {
        let golden = testdata.join("ir").join(entry.file_name()).with_extension("ir");
        let text = Model::open(&entry.path()).unwrap().graph.to_string();
        assert_eq!(Graph::parse(&text).unwrap().to_string(), text);
        if std::env::var_os("BLESS").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        assert_eq!(text, fs::read_to_string(&golden).unwrap_or_default(), "{}; `BLESS=1` rewrites it", golden.display());
    }
}
