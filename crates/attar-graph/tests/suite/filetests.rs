//! Runs `testdata/filetests/**/*.ir`.
//!
//! The first line says what is tested, the second why it matters:
//!
//! ```text
//! ; test parse              prints, and parses back to the same
//! ; test error              is refused; the message is the result
//! ; test legalize OP …      without those ops
//! ```
//!
//! The result follows a line `; ---` (`BLESS=1` rewrites it), or parts of it follow `; check:`, in order. Without either, the
//! graph prints as it is written.

use attar_graph::{Graph, OPS};

use crate::texts::{Case, cases, cases_of};

#[test]
fn every_file_gives_what_it_says() {
    let failures: Vec<String> = cases().iter().filter_map(|case| case.judge(&outcome(case)).err()).collect();
    assert!(
        failures.is_empty(),
        "{} files differ; `BLESS=1` rewrites what is below `; ---`\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn outcome(case: &Case) -> String {
    match (case.test.as_str(), Graph::parse(&case.input)) {
        ("error", Err(error)) => format!("{error}\n"),
        ("error", Ok(graph)) => panic!("{}: this should be refused\n{graph}", case.name()),
        (_, Err(error)) => panic!("{}: {error}", case.name()),
        ("parse", Ok(graph)) => reprinted(&graph),
        ("legalize", Ok(graph)) => {
            let legal = graph.legalize(&|op| !case.words.iter().any(|word| word == op.def().name)).unwrap();
            legal.verify().unwrap();
            reprinted(&legal)
        }
        (other, _) => panic!("{}: there is no test `{other}`", case.name()),
    }
}

fn reprinted(graph: &Graph) -> String {
    let text = graph.to_string();
    let again = Graph::parse(&text).unwrap_or_else(|error| panic!("{error}, in what was printed:\n{text}"));
    assert_eq!(again.to_string(), text);
    text
}

#[test]
fn every_op_has_a_file() {
    for def in OPS {
        assert!(!cases_of(def.name).is_empty(), "testdata/filetests/ops/{}.ir is missing", def.name);
    }
}
