//! Perplexities and continuations that others computed: transformers and our own numpy, in float32.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use attar_eval::{
    Generation, Output, Perplexity, Reference, Runner, Window,
    perplexity::{self, Scores},
};
use attar_model::Model;

/// The goldens are given to 5 digits.
const DIGITS: f64 = 3e-5;

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata")
}

fn present(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "skipped: {} is absent", path.display());
    None
}

/// Material beside the checkout, where there is any.
fn shared(name: &str) -> Option<PathBuf> {
    let Some(root) = std::env::var_os("ATTAR_SHARED") else {
        let _ = writeln!(std::io::stderr(), "skipped: ATTAR_SHARED is not set");
        return None;
    };
    present(PathBuf::from(root).join(name))
}

fn smollm2() -> Option<PathBuf> {
    present(testdata().join("../target/models/smollm2-135m"))
}

fn measure(model: &Model, windows: &[Window]) -> Scores {
    let runner = Reference::new(model);
    let mut logits = runner.start(Output::Logits.into(), windows, &|_, _| {}).unwrap();
    perplexity::alone(windows, &mut *logits, None, &|_, _| {}).unwrap()
}

fn assert_close(got: f64, want: f64, relative: f64) {
    assert!((got / want - 1.0).abs() <= relative, "{got} should be {want}");
}

#[test]
fn shakespeare_has_the_perplexity_of_transformers() {
    let model = Model::open(&testdata().join("models/shakespeare-1m")).unwrap();
    let data = testdata().join("evals/shakespeare-valid.txt");
    // Windows of 256 inputs, each with a target: the last target of one window is the first input of the next.
    let text = Perplexity { window: 257, stride: Some(256), ..Perplexity::of(data) };
    let measured = measure(&model, &text.windows(&model).unwrap());
    assert_eq!(measured.tokens, 24_538);
    assert_close(measured.perplexity.value, 24.061, DIGITS);
    assert!(measured.perplexity.standard_error.unwrap() < 2.0);
}

#[test]
fn stories_have_the_perplexity_of_transformers() {
    let (Some(folder), Some(data)) = (shared("models/stories260k"), shared("data/lm/tinystories_sample.txt")) else { return };
    let model = Model::open(&folder).unwrap();
    let text = Perplexity { bos: true, split: Some("<|endoftext|>".into()), ..Perplexity::of(data) };
    let measured = measure(&model, &text.windows(&model).unwrap());
    assert_eq!(measured.tokens, 1_804);
    assert_close(measured.perplexity.value, 3.5482, DIGITS);
}

/// Two windows; the goldens for 10 and 20 take minutes, see the next test.
#[test]
fn smollm2_predicts_two_windows_of_wikitext() {
    let (Some(folder), Some(data)) = (smollm2(), shared("data/lm/wikitext2-test.firsthalf.txt")) else { return };
    let model = Model::open(&folder).unwrap();
    let text = Perplexity { tokens: Some(1024), ..Perplexity::of(data) };
    let measured = measure(&model, &text.windows(&model).unwrap());
    assert_eq!((measured.tokens, measured.windows), (1022, 2));
    assert_close(measured.perplexity.value, TWO_WINDOWS, DIGITS);
}

const TWO_WINDOWS: f64 = 20.452_975_7;

#[test]
#[ignore = "a minute of two cores"]
fn smollm2_has_the_perplexity_of_transformers() {
    let (Some(folder), Some(data)) = (smollm2(), shared("data/lm/wikitext2-test.firsthalf.txt")) else { return };
    let model = Model::open(&folder).unwrap();
    let text = Perplexity { tokens: Some(10_240), ..Perplexity::of(data) };
    let windows = text.windows(&model).unwrap();
    assert_close(measure(&model, &windows[..10]).perplexity.value, 30.011, DIGITS);
    assert_close(measure(&model, &windows).perplexity.value, 29.300, DIGITS);
}

#[test]
fn shakespeare_continues_greedily_as_transformers_does() {
    let model = Model::open(&testdata().join("models/shakespeare-1m")).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let wanted = "They are the city of my soul and my soul,";
    let prompt = tokenizer.encode("KING HENRY:\n").unwrap();
    let mut heard = Vec::new();
    let limit = tokenizer.encode(wanted).unwrap().len();
    let said = Reference::new(&model).generate(&prompt, &Generation::greedy(limit, &[]), &mut |token| heard.push(token)).unwrap();
    assert_eq!(tokenizer.decode(&said).unwrap(), wanted);
    assert_eq!(heard, said);
}

#[test]
fn smollm2_names_the_capital_of_france_and_stops() {
    let Some(folder) = smollm2() else { return };
    let model = Model::open(&folder).unwrap();
    let tokenizer = model.tokenizer().unwrap();
    let prompt = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let prompt = tokenizer.encode(prompt).unwrap();
    let stop = tokenizer.token("<|im_end|>").unwrap();
    let said = Reference::new(&model).generate(&prompt, &Generation::greedy(30, &[stop]), &mut |_| {}).unwrap();
    assert_eq!(tokenizer.decode(&said).unwrap(), "The capital of France is Paris.<|im_end|>");
}

#[test]
fn thread_counts_change_no_bit() {
    let model = Model::open(&testdata().join("models/shakespeare-1m")).unwrap();
    let text = Perplexity { window: 100, tokens: Some(2050), ..Perplexity::of(testdata().join("evals/shakespeare-valid.txt")) };
    let windows = text.windows(&model).unwrap();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| serde_json::to_string(&measure(&model, &windows)).unwrap())
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn strides_give_every_token_once_and_more_context() {
    let model = Model::open(&testdata().join("models/shakespeare-1m")).unwrap();
    let text = Perplexity { window: 128, tokens: Some(2000), ..Perplexity::of(testdata().join("evals/shakespeare-valid.txt")) };
    let plain = measure(&model, &text.windows(&model).unwrap());
    let sliding = Perplexity { stride: Some(32), ..text }.windows(&model).unwrap();
    let sliding = measure(&model, &sliding);
    assert_eq!(sliding.tokens, 1999);
    assert!(sliding.perplexity.value < plain.perplexity.value, "context helps");
}

#[test]
fn texts_that_hold_nothing_to_measure_are_errors() {
    let model = Model::open(&testdata().join("models/shakespeare-1m")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    let windows = |text: &[u8], change: fn(&mut Perplexity)| {
        std::fs::write(&path, text).unwrap();
        let mut settings = Perplexity::of(&path);
        change(&mut settings);
        settings.windows(&model).unwrap_err().to_string()
    };
    let shown = path.display();
    assert_eq!(windows(b"", |_| {}), format!("`{shown}` has no text to measure"));
    assert_eq!(windows(b" -- ", |s| s.split = Some("--".into())), format!("`{shown}` has no text to measure"));
    assert!(windows(b"a", |_| {}).starts_with(&format!("`{shown}` has no window of 2 tokens: 1 in 1 document(s)")));
    assert_eq!(windows(b"\xff\xfe", |_| {}), format!("cannot read `{shown}`"));
    assert_eq!(windows(b"a b", |s| s.window = 1), "`window = 1`: a window has at least 2 tokens");
    assert_eq!(windows(b"a b", |s| s.window = 513), "`window = 513`: the model's context is 512 tokens");
    assert_eq!(
        windows(b"a b", |s| s.stride = Some(0)),
        "`stride = 0`: expected 1 to 512, the window, so that no token is left out"
    );
    assert!(Perplexity::of(folder.path().join("none.txt")).windows(&model).is_err());
}
