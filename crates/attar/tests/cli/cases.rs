//! The inputs of `shared/cases`, which public bug reports of other tools describe: each is read as what it says, or refused
//! with a reason. Their scripts make the inputs, run the binary and compute the right values with numpy. They need the shared
//! folder (`ATTAR_SHARED`) and a Python with numpy, `ml_dtypes`, tokenizers and gguf (`ATTAR_CASES_PYTHON`, or `python3`).

use std::{env, path::PathBuf, process::Command};

use crate::room::{Room, repository, skip};

/// What the script of a case printed, or nothing where it cannot run.
fn case(number: &str) -> Option<String> {
    let python = env::var("ATTAR_CASES_PYTHON").unwrap_or_else(|_| "python3".into());
    let shared = PathBuf::from(env::var_os("ATTAR_SHARED").unwrap_or_default());
    let script = shared.join(format!("cases/case_{number}.py"));
    if !script.exists() {
        skip(&format!("{} is absent", script.display()));
        return None;
    }
    let has_packages = Command::new(&python).args(["-c", "import numpy, ml_dtypes, tokenizers, gguf"]).output();
    if !has_packages.is_ok_and(|tried| tried.status.success()) {
        skip(&format!("`{python}` lacks the packages that shared/cases need"));
        return None;
    }
    let room = Room::new();
    let ran = Command::new(&python)
        .arg(&script)
        .env("ATTAR", env!("CARGO_BIN_EXE_attar"))
        .env("PROJECT", repository())
        .env("SHARED", &shared)
        .env("ROOMS", room.path("rooms"))
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("the interpreter was just found");
    let (out, errors) = (String::from_utf8_lossy(&ran.stdout).into_owned(), String::from_utf8_lossy(&ran.stderr).into_owned());
    assert!(ran.status.success(), "{out}\n{errors}");
    for serde in ["untagged", "invalid type", "expected a nonzero", "duplicate field", "missing field", "expected value"] {
        assert!(!out.contains(serde), "{out}");
    }
    Some(out)
}

/// The number that follows `words`, from the place where `from` stands.
fn number(out: &str, from: &str, words: &str) -> f64 {
    let at = out.find(from).unwrap_or_else(|| panic!("`{from}` is not in {out}"));
    let rest = &out[at..];
    let rest = rest[rest.find(words).unwrap_or_else(|| panic!("`{words}` is not in {rest}")) + words.len()..].trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && !".e-".contains(c)).unwrap_or(rest.len());
    rest[..end].parse().unwrap_or_else(|_| panic!("no number after `{words}` in {rest}"))
}

/// The first perplexity after `from` is that of numpy after `words`.
fn assert_agrees(out: &str, from: &str, words: &str) {
    let (found, wanted) = (number(out, from, "\"value\": "), number(out, from, words));
    assert!((found / wanted - 1.0).abs() < 1e-4, "{from}: {found} is not {wanted}");
}

fn exits(out: &str, code: i32) -> usize {
    out.matches(&format!("[exit code {code}]")).count()
}

#[test]
fn a_model_without_a_head_is_refused_with_the_right_hint() {
    let Some(out) = case("02") else { return };
    assert_eq!((exits(&out, 3), out.matches("\"tie_word_embeddings\": true").count()), (3, 3), "{out}");
}

#[test]
fn biases_and_norms_are_applied_or_refused() {
    let Some(out) = case("03") else { return };
    assert!(out.contains("attar: 3") && out.contains("q_norm/k_norm present: 3"), "{out}");
    let out = out.replace("\\n", "\n").replace("\\\"", "\"");
    let (found, wanted) =
        (number(&out, "attention_bias true: 0", "\"value\": "), number(&out, "numpy with biases", "numpy with biases"));
    assert!((found / wanted - 1.0).abs() < 1e-3, "{found} is not {wanted}");
}

#[test]
fn rotary_settings_are_applied_or_refused() {
    let Some(out) = case("05") else { return };
    assert_eq!(exits(&out, 0), 3, "{out}");
    let Some(out) = case("06") else { return };
    for name in ["plain 0", "truncate 0", "fast 0", "att 0"] {
        assert_agrees(&out, name, "numpy ");
    }
    assert!(out.contains("nested 3") && out.contains("rope_parameters.full_attention"), "{out}");
}

#[test]
fn texts_end_where_the_generation_config_says() {
    let Some(out) = case("07") else { return };
    assert_eq!(out.matches("'tokens': [354, 90, 431, 268, 279],").count(), 2, "{out}");
}

#[test]
fn the_files_that_transformers_would_load_are_the_model() {
    let Some(out) = case("08") else { return };
    assert_eq!((exits(&out, 0), exits(&out, 3)), (3, 0), "{out}");
    let Some(out) = case("09") else { return };
    assert_eq!(exits(&out, 0), 2, "{out}");
}

#[test]
fn gguf_files_mean_what_llama_cpp_says() {
    let Some(out) = case("16") else { return };
    assert!(out.contains("partial rotary: 3") && out.contains("qwen2 with further biases: 3"), "{out}");
    assert!(out.contains("big-endian") && !out.contains("50331648"), "{out}");
    let out = out.replace("\\n", "\n").replace("\\\"", "\"");
    let (found, wanted) =
        (number(&out, "old key rope.scale_linear", "\"value\": "), number(&out, "linear factor 4", "linear factor 4"));
    // Its tokenizer splits words as llama.cpp's `default` does, numpy's as the folder's: 14.22 and 14.15 without scaling. That the
    // logits are right is tested with the model.
    assert!((found / wanted - 1.0).abs() < 0.05, "{found} is not {wanted}");
}

#[test]
fn json_is_read_as_editors_write_it() {
    let Some(out) = case("18") else { return };
    for read in ["bom", "crlf", "infinity", "eosnull", "biasnull"] {
        assert!(out.contains(&format!("{read} (LlamaForCausalLM): 918656 parameters")), "{read}: {out}");
    }
}

#[test]
fn a_token_beyond_the_vocabulary_is_named() {
    let Some(out) = case("14") else { return };
    assert!(out.matches("the token `<|pad|>`, number 1024, is beyond the 1024 rows of the embedding").count() >= 3, "{out}");
}

#[test]
fn what_is_quantized_already_is_read_or_refused_by_name() {
    let Some(out) = case("15") else { return };
    for read in ["fp8 per row, 28 weights", "int8 per row, 28 weights", "int4 per row, 28 weights"] {
        assert!(out.contains(&format!("already quantized: compressed-tensors {read}")), "{read}: {out}");
    }
    for refused in ["quantized with GPTQ, and cannot", "quantized with bitsandbytes, which", "quantized with MLX, which"] {
        assert!(out.contains(refused), "{refused}: {out}");
    }
    assert!(!out.contains("did you mean `") && !out.contains("scaled-bf16 (LlamaForCausalLM)"), "{out}");
}

#[test]
fn odd_texts_are_text_or_named() {
    let Some(out) = case("19") else { return };
    let (plain, marked) = (number(&out, "plain.txt (0", "\"value\": "), number(&out, "bom.txt (0", "\"value\": "));
    assert_eq!(plain.to_bits(), marked.to_bits(), "a byte-order mark is no text");
    for words in ["byte 3 is no UTF-8", "the text is UTF-16", "the model's context is 512 tokens"] {
        assert!(out.contains(words), "{words}: {out}");
    }
}

#[test]
fn side_files_travel_with_the_artifact() {
    let Some(out) = case("20") else { return };
    assert!(out.contains("`m/tokenizer.model` has no usable tokenizer: no SentencePiece model, or a damaged one"), "{out}");
    let travelled = ["LICENSE", "added_tokens.json", "chat_template.jinja", "generation_config.json", "special_tokens_map.json"];
    for name in travelled.iter().chain(&["tokenizer.json", "tokenizer.model", "tokenizer_config.json"]) {
        assert!(out.matches(&format!("'{name}'")).count() >= 3, "{name}: {out}");
    }
}

#[test]
fn odd_sizes_have_hints_that_lead_somewhere() {
    let Some(out) = case("22") else { return };
    assert!(out.contains("group 64 does not divide 172 columns") && out.contains("`--tail short`"), "{out}");
    let Some(out) = case("24") else { return };
    // Rows of 4 bits in an odd, shared vocabulary: neither layout holds them, and neither hint names the other.
    let (first, second) = (out.split("xvrowdequantize-linear").nth(1), out.split("xvrowmatmul-nbits").nth(1));
    let hint = |part: Option<&str>| part.and_then(|part| Some(part.lines().find(|line| line.starts_with("hint: "))?.to_owned()));
    let (first, second) = (hint(first).unwrap_or_default(), hint(second).unwrap_or_default());
    assert!(first.contains("in groups of 32, 64 or 128") && !second.contains("dequantize-linear"), "{first}\n{second}");
    assert!(out.contains("or use `--layout matmul-nbits`"), "where that layout holds it: {out}");
}
