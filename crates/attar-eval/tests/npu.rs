//! What the worker of Intel's NPU compiler makes of the compiler's log: `npu/log.txt` is its own, of SmolLM2-135M on platform 4000 for prompts
//! of 128 tokens and answers of 32, without the lines that say nothing here. Whole runs need Wine: where the compiler is in `ATTAR_ENGINES`, it
//! compiles.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{io::Write, path::Path, process::Command};

use attar_eval::{Artifact, Ask, COMPILERS, Mode, Places};
use serde_json::Value;

const SESSION: &str = include_str!("../src/engine/openvino_npu.py");

/// Runs Python behind the session's own code; the value that it prints.
fn python(code: &str, folder: &Path) -> Value {
    let program = format!("import json\nimport os\nimport sys\n{SESSION}\n{code}\n");
    let output = Command::new("python3").args(["-I", "-c", &program]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A plan with a first part, so many repeated ones, and a last part.
fn plan(repeated: usize) -> String {
    let group = |repeats: &str| format!("<group{repeats}><output name=\"x\"/></group>");
    let repeated = group(" repeated=\"REP1\"").repeat(repeated);
    format!("<plan><partitioning>{}{repeated}{}</partitioning></plan>", group(""), group(""))
}

#[test]
fn the_compilers_log_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in [("generate", plan(28)), ("prefill", plan(28))] {
        std::fs::write(folder.path().join(format!("{name}.xml")), text).unwrap();
    }
    std::fs::write(folder.path().join("head.xml"), "<plan><partitioning><group/></partitioning></plan>").unwrap();
    std::fs::write(folder.path().join("log"), include_str!("npu/log.txt")).unwrap();
    let read = "compiler, estimates, unknown, doubts = read_log(open('log').read())\n\
                planned = read_plans(Path('.'))\n\
                passes = [seconds(planned, estimates, parts) for parts in (('generate', 'head'), ('prefill', 'head'))]\n\
                print(json.dumps([compiler, estimates, unknown, doubts, [list(plan) for plan in planned], passes]))";
    let found = python(read, folder.path());
    assert_eq!(found[0], "version 8.4, 2026.5.0-1-a4b1ef7632b-0922.132427-DCI-f45de310cbf.7.10");
    assert_eq!(found[1].as_array().unwrap().len(), 7);
    assert!(
        found[2].as_array().unwrap().contains(&"builtin_DynamicDequantize".into()) && found[3].as_array().unwrap().is_empty()
    );
    assert_eq!((&found[4][1], &found[4][6]), (&serde_json::json!(["generate", 28]), &serde_json::json!(["head", 1])));
    // 1063.48 + 28 * 349.83 + 289.78 and the head's 566.44 microseconds.
    let token = found[5][0].as_f64().unwrap();
    assert!((token - 11_714.94e-6).abs() < 1e-9, "{token}");
}

#[test]
fn what_went_wrong_is_in_the_compilers_words() {
    let folder = tempfile::tempdir().unwrap();
    let reasons = "print(json.dumps([\n\
                   reason(1, 'npuc: OpenVINO 1\\nnpuc: failed: compile: Unknown value\\n  for platform: 5000\\n'),\n\
                   reason(0, 'wine: Unhandled page fault on read access'),\n\
                   reason(3, '[ERROR] 20:59:12.3 [x] pass failed\\nnonsense')]))";
    let found = python(reasons, folder.path());
    assert_eq!(found[0], "compile: Unknown value for platform: 5000");
    assert_eq!(found[1], "the compiler crashed before it could say why");
    assert!(
        found[2].as_str().unwrap().starts_with("Wine ended with status 3: ")
            && found[2].as_str().unwrap().ends_with("; [x] pass failed")
    );
}

/// A model without a decoder's cache is compiled as it is; one that is none is refused in the compiler's words.
#[test]
fn the_compiler_compiles_where_it_is_installed() {
    let places = Places::read(COMPILERS.iter().copied(), |_| None, |name| std::env::var_os(name));
    let Ok(installation) = places.find(COMPILERS[0]) else {
        let _ = writeln!(std::io::stderr(), "skipped: there is no {} in ATTAR_ENGINES", COMPILERS[0].title);
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("openvino_model.xml"), include_str!("npu/sum.xml")).unwrap();
    std::fs::write(folder.path().join("openvino_model.bin"), [0; 8]).unwrap();
    let artifact = |installation| Artifact::new(installation, folder.path(), Mode::Default, "unused");
    let predicted = artifact(installation.clone()).predict(Ask { prompt: 64, answer: 64 }).unwrap();
    assert!(predicted.latency.unwrap() > 0.0 && predicted.compiled_bytes.unwrap() > 0 && predicted.decode_latency.is_none());
    assert!(predicted.notes.iter().any(|note| note.contains("without a device")), "{:?}", predicted.notes);
    std::fs::write(folder.path().join("openvino_model.xml"), "<net").unwrap();
    let refused = artifact(installation).predict(Ask { prompt: 64, answer: 64 }).unwrap_err().to_string();
    assert!(refused.contains("Intel's NPU compiler failed at compiling the model: "), "{refused}");
}
