//! Tokenizers built from GGUF metadata, against llama.cpp's answers, a `tokenizer.json` and the algorithm written out.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its files has failed")]

use std::{
    collections::HashMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use attar_model::{Encoder, Tokenizer};
use attar_tensor::gguf::{File, Metadata, Value};

/// For a megabyte of text, many times what it takes on a busy machine; merging in quadratic time would take hours.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// A file in the folder that `ATTAR_SHARED` names, if it is there.
fn shared(name: &str) -> Option<PathBuf> {
    present(PathBuf::from(std::env::var_os("ATTAR_SHARED").unwrap_or_default()).join(name))
}

/// The chat model that `cargo xtask smollm2` makes.
fn smollm2() -> Option<PathBuf> {
    present(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/SmolLM2-135M-Instruct.Q4_1.gguf"))
}

fn present(path: PathBuf) -> Option<PathBuf> {
    if path.exists() {
        return Some(path);
    }
    let _ = writeln!(std::io::stderr(), "skipped: {} is absent", path.display());
    None
}

/// A megabyte of articles, without the one special token in it: it would split the text and decode with a space after it.
fn articles() -> Option<String> {
    Some(std::fs::read_to_string(shared("data/lm/wikitext2-valid.txt")?).unwrap().replace("<unk>", "unknown"))
}

fn from_gguf(path: &Path) -> Tokenizer {
    Tokenizer::from_gguf(path, File::open(path).unwrap().metadata()).unwrap()
}

/// Written as `tokenizer.json` and read again.
fn reloaded(tokenizer: &Tokenizer) -> Tokenizer {
    let test = std::thread::current().name().unwrap().to_owned();
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{test}.json"));
    std::fs::write(&path, tokenizer.to_json().unwrap()).unwrap();
    Tokenizer::open(&path).unwrap()
}

/// Texts and their tokens, from the tests of llama.cpp.
fn cases(vocabulary: &Path) -> Vec<(String, Vec<u32>)> {
    let read = |extension: &str| std::fs::read_to_string(format!("{}.{extension}", vocabulary.display())).unwrap();
    let (texts, answers) = (read("inp"), read("out"));
    let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
    let answers: Vec<Vec<u32>> = answers.lines().map(|l| l.split_whitespace().map(|id| id.parse().unwrap()).collect()).collect();
    // What follows the last separator has no answer.
    assert_eq!(texts.len(), answers.len() + 1);
    texts.into_iter().map(Into::into).zip(answers).collect()
}

fn assert_answers(name: &str) {
    let Some(path) = shared(name) else { return };
    let built = from_gguf(&path);
    for tokenizer in [reloaded(&built), built] {
        for (text, answer) in cases(&path) {
            assert_eq!(tokenizer.encode(&text).unwrap(), answer, "{text:?}");
            assert_eq!(tokenizer.decode(&answer).unwrap(), text);
        }
    }
}

#[test]
fn gpt2_gives_the_tokens_of_llama_cpp() {
    assert_answers("tokenizers/ggml-vocab-gpt-2.gguf");
}

#[test]
fn sentence_piece_gives_the_tokens_of_llama_cpp() {
    assert_answers("tokenizers/ggml-vocab-llama-spm.gguf");
}

#[test]
fn smollm2_gives_the_tokens_of_its_tokenizer_json() {
    let (Some(gguf), Some(json)) = (smollm2(), shared("models/smollm2-135m/tokenizer.json")) else { return };
    let Some(text) = articles() else { return };
    let (gguf, json) = (from_gguf(&gguf), Tokenizer::open(&json).unwrap());
    let chat = "<|im_start|>system\nBe 10 times brief.<|im_end|>\n<|im_start|>user\n ½ ⅷ ٣٤ <|im_end|><|endoftext|> <repo_name>";
    for text in [&*text, chat] {
        let tokens = json.encode(text).unwrap();
        assert_eq!(gguf.encode(text).unwrap(), tokens);
        assert_eq!(reloaded(&gguf).encode(text).unwrap(), tokens);
        assert_eq!(gguf.decode(&tokens).unwrap(), text);
    }
    assert_eq!(gguf.encode("<|im_start|>").unwrap(), [gguf.token("<|im_start|>").unwrap()]);
    assert_eq!(gguf.vocabulary(), json.vocabulary());
}

/// A megabyte a piece at a time: no token differs from those of the whole.
#[test]
fn a_text_in_pieces_has_the_tokens_of_the_whole() {
    let (Some(text), Some(json)) = (articles(), shared("models/smollm2-135m/tokenizer.json")) else { return };
    let vocabularies = ["tokenizers/ggml-vocab-gpt-2.gguf", "tokenizers/ggml-vocab-llama-spm.gguf"].map(shared);
    let tokenizers = vocabularies.into_iter().flatten().map(|path| from_gguf(&path));
    let bert = shared("models/minilm-l6-v2-f16/tokenizer.json").map(|path| Tokenizer::open(&path).unwrap());
    for tokenizer in tokenizers.chain([Tokenizer::open(&json).unwrap()]).chain(bert) {
        let mut encoder = Encoder::of(&tokenizer);
        for line in text.split_inclusive('\n') {
            encoder.push(line).unwrap();
        }
        assert!(encoder.known() > 0, "nothing was cut");
        let (found, wanted) = (encoder.finish().unwrap(), tokenizer.encode(&text).unwrap());
        let differs = found.iter().zip(&wanted).position(|(found, wanted)| found != wanted);
        assert_eq!((found.len(), differs), (wanted.len(), None));
    }
}

/// Models of `testdata/oracle/pieces.py`, with the tokens that SentencePiece makes.
#[test]
fn a_tokenizer_model_gives_the_tokens_of_sentence_piece() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/pieces");
    let answers: HashMap<String, HashMap<String, Vec<u32>>> =
        serde_json::from_str(&fs::read_to_string(folder.join("tokens.json")).unwrap()).unwrap();
    assert_eq!(answers.len(), 4);
    for (name, texts) in answers {
        let built = Tokenizer::from_pieces(&folder.join(format!("{name}.model")), None).unwrap();
        for tokenizer in [reloaded(&built), built] {
            for (text, answer) in &texts {
                assert_eq!(tokenizer.encode(text).unwrap(), *answer, "{name}: {text:?}");
            }
        }
    }
}

#[test]
fn added_tokens_follow_the_pieces() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/pieces");
    let (room, model) = (tempfile::tempdir().unwrap(), folder.join("bpe-llama.model"));
    let added = room.path().join("added_tokens.json");
    fs::write(&added, r#"{"<|b|>": 601, "<|a|>": 600}"#).unwrap();
    let tokenizer = Tokenizer::from_pieces(&model, Some(&added)).unwrap();
    assert_eq!(tokenizer.encode("<|a|><|b|>").unwrap(), [600, 601]);
    for (text, words) in [(r#"{"<|a|>": 700}"#, "the token `<|a|>` with number 700"), ("[1]", "expected texts of tokens")] {
        fs::write(&added, text).unwrap();
        let error = Tokenizer::from_pieces(&model, Some(&added)).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_damaged_tokenizer_model_is_an_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/pieces");
    let (room, whole) = (tempfile::tempdir().unwrap(), fs::read(folder.join("unigram.model")).unwrap());
    let path = room.path().join("tokenizer.model");
    let open = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Tokenizer::from_pieces(&path, None)
    };
    assert!(open(b"").is_err() && open(b"{}").is_err() && open(&[0xff; 100]).is_err());
    // A piece that ends behind the file, and a model of one that is no unknown.
    assert!(open(b"\n\x0e\n\x05<unk>").is_err() && open(b"\n\x07\n\x05<unk>").is_err());
    for cut in (1..whole.len()).step_by(whole.len() / 60) {
        let _ = open(&whole[..cut]);
        let mut flipped = whole.clone();
        flipped[cut] ^= 1 << (cut % 8);
        if let Ok(tokenizer) = open(&flipped) {
            let _ = tokenizer.encode("To be, or not to be ☃");
        }
    }
}

/// SentencePiece's algorithm, written out: of all neighbours that merge to a token, merge those with the best score, the
/// leftmost of equals, until none are left.
struct Scored {
    tokens: HashMap<String, (u32, f64)>,
}

impl Scored {
    fn new(metadata: &Metadata) -> Scored {
        let (Value::Array(tokens), Value::Array(scores)) =
            (&metadata["tokenizer.ggml.tokens"], &metadata["tokenizer.ggml.scores"])
        else {
            panic!("both are arrays")
        };
        let tokens = (0..).zip(tokens).zip(scores).map(|((id, token), score)| match (token, score) {
            (Value::Text(token), Value::Float(score)) => (token.clone(), (id, *score)),
            other => panic!("{other:?}"),
        });
        Scored { tokens: tokens.collect() }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let text = format!("▁{}", text.replace(' ', "▁"));
        let mut pieces: Vec<String> = text.chars().map(String::from).collect();
        while let Some(at) = self.best(&pieces) {
            let right = pieces.remove(at + 1);
            pieces[at].push_str(&right);
        }
        pieces.iter().flat_map(|piece| self.ids(piece)).collect()
    }

    fn best(&self, pieces: &[String]) -> Option<usize> {
        let joined = pieces.windows(2).enumerate().filter_map(|(at, pair)| Some((self.tokens.get(&pair.concat())?.1, at)));
        joined.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1))).map(|(_, at)| at)
    }

    fn ids(&self, piece: &str) -> Vec<u32> {
        match self.tokens.get(piece) {
            Some((id, _)) => vec![*id],
            None => piece.bytes().map(|byte| self.tokens[&format!("<0x{byte:02X}>")].0).collect(),
        }
    }
}

#[test]
fn listed_merges_do_what_scores_do() {
    let (Some(gguf), Some(text)) = (shared("tokenizers/ggml-vocab-llama-spm.gguf"), articles()) else { return };
    let (tokenizer, scored) = (from_gguf(&gguf), Scored::new(File::open(&gguf).unwrap().metadata()));
    let runs = (1..40).flat_map(|n| [" ", "a", "=", "0", "!"].map(|run| format!("x{}y {}", run.repeat(n), run.repeat(n))));
    let lines: Vec<String> = text.lines().step_by(50).map(|line| line.chars().take(500).collect()).chain(runs).collect();
    for line in lines.iter().filter(|line| !line.is_empty()) {
        assert_eq!(tokenizer.encode(line).unwrap(), scored.encode(line), "{line:?}");
    }
}

#[test]
fn a_megabyte_takes_seconds() {
    let Some(text) = articles() else { return };
    for name in ["tokenizers/ggml-vocab-gpt-2.gguf", "tokenizers/ggml-vocab-llama-spm.gguf"] {
        let Some(path) = shared(name) else { return };
        let tokenizer = from_gguf(&path);
        let start = Instant::now();
        let tokens = tokenizer.encode(&text).unwrap();
        assert!(start.elapsed() < TIME_LIMIT, "{name} took {:?}", start.elapsed());
        assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
    }
}

/// Where the second process of the next test writes.
const ANSWER: &str = "ATTAR_TEST_TOKENIZER_JSON";

#[test]
fn json_is_the_same_in_two_processes() {
    let Some(path) = shared("tokenizers/ggml-vocab-llama-spm.gguf") else { return };
    let json = from_gguf(&path).to_json().unwrap();
    if let Some(answer) = std::env::var_os(ANSWER) {
        return std::fs::write(answer, json).unwrap();
    }
    let answer = Path::new(env!("CARGO_TARGET_TMPDIR")).join("second_process.json");
    let mut second = Command::new(std::env::current_exe().unwrap());
    let status = second.args(["--exact", "tokenizers::json_is_the_same_in_two_processes"]).env(ANSWER, &answer).status().unwrap();
    assert!(status.success());
    assert!(std::fs::read_to_string(answer).unwrap() == json, "the second process wrote another text");
}

const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

/// A `llama` vocabulary: an unknown token, every byte, and these with type and score.
fn scored(tokens: &[(&str, u64, f64)]) -> Metadata {
    let bytes: Vec<String> = (0..=255).map(|byte| format!("<0x{byte:02X}>")).collect();
    let all = [("<unk>", 2, 0.0)].into_iter().chain(bytes.iter().map(|byte| (&**byte, 6, 0.0))).chain(tokens.iter().copied());
    let array = |value: fn((&str, u64, f64)) -> Value| Value::Array(all.clone().map(value).collect());
    Metadata::from([
        ("tokenizer.ggml.model".into(), Value::Text("llama".into())),
        ("tokenizer.ggml.tokens".into(), array(|(text, ..)| Value::Text(text.into()))),
        ("tokenizer.ggml.token_type".into(), array(|(_, kind, _)| Value::Unsigned(kind))),
        ("tokenizer.ggml.scores".into(), array(|(.., score)| Value::Float(score))),
    ])
}

/// A `gpt2` vocabulary of normal tokens.
fn listed(tokens: &[&str], merges: &[&str]) -> Metadata {
    let texts = |texts: &[&str]| Value::Array(texts.iter().map(|text| Value::Text(text.to_string())).collect());
    Metadata::from([
        ("tokenizer.ggml.model".into(), Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre".into(), Value::Text("gpt-2".into())),
        ("tokenizer.ggml.tokens".into(), texts(tokens)),
        ("tokenizer.ggml.token_type".into(), Value::Array(vec![Value::Signed(1); tokens.len()])),
        ("tokenizer.ggml.merges".into(), texts(merges)),
    ])
}

fn build(metadata: &Metadata) -> Tokenizer {
    Tokenizer::from_gguf("model.gguf".as_ref(), metadata).unwrap()
}

fn refusal(metadata: &Metadata) -> String {
    Tokenizer::from_gguf("model.gguf".as_ref(), metadata).err().unwrap().to_string()
}

const TINY: &[(&str, u64, f64)] =
    &[("▁", 1, -9.0), ("a", 1, -9.0), ("▁a", 1, -1.0), ("<s>", CONTROL, 0.0), ("[x]", USER_DEFINED, 0.0), ("▁[", 1, -2.0)];

#[test]
fn special_tokens_are_found_in_text_and_spaces_put_before_what_follows_them() {
    let tokenizer = build(&scored(TINY));
    let [space, a, space_a, bos, user] = ["▁", "a", "▁a", "<s>", "[x]"].map(|token| tokenizer.token(token).unwrap());
    assert_eq!(tokenizer.encode("<s>a[x]a").unwrap(), [bos, space_a, user, space_a]);
    assert_eq!(tokenizer.encode("aa a").unwrap(), [space_a, a, space_a]);
    assert!(tokenizer.encode("").unwrap().is_empty());
    assert_eq!(tokenizer.encode(" ").unwrap(), [space, space]);
    assert_eq!(tokenizer.encode("é").unwrap(), [space, 1 + 0xC3, 1 + 0xA9]);
    assert_eq!(tokenizer.decode(&[space_a, 1 + 0xC3, 1 + 0xA9, user, space_a]).unwrap(), "aé[x] a");
}

#[test]
fn no_space_is_put_before_text_where_the_file_says_so() {
    let mut metadata = scored(TINY);
    metadata.insert("tokenizer.ggml.add_space_prefix".into(), Value::Bool(false));
    let tokenizer = build(&metadata);
    assert_eq!(tokenizer.encode("a a").unwrap(), ["a", "▁a"].map(|token| tokenizer.token(token).unwrap()));
    assert_eq!(tokenizer.decode(&tokenizer.encode(" a").unwrap()).unwrap(), " a");
}

#[test]
fn a_pre_tokenizer_that_is_not_known_is_an_error() {
    let mut metadata = listed(&["a"], &[]);
    metadata.insert("tokenizer.ggml.pre".into(), Value::Text("qwen-2".into()));
    let message = "`model.gguf` has no usable tokenizer: `tokenizer.ggml.pre = qwen-2` is not known; `qwen2` is";
    assert_eq!(refusal(&metadata), message);
    metadata.remove("tokenizer.ggml.pre");
    assert!(refusal(&metadata).ends_with("the GGUF metadata has no usable `tokenizer.ggml.pre`"));
}

#[test]
fn every_pre_tokenizer_splits_as_its_name_says() {
    let tokens = ["1", "2", "3", "4", "'", "S", "Ġ", "12", "123", "1234", "'S", "ĠĠ"];
    let merges = ["1 2", "12 3", "123 4", "' S", "Ġ Ġ"];
    let expected = [
        ("default", &["123", "4", "'", "S", "ĠĠ"][..]),
        ("gpt-2", &["1234", "'", "S", "ĠĠ"]),
        ("smollm", &["1", "2", "3", "4", "'", "S", "ĠĠ"]),
        ("llama-bpe", &["123", "4", "'S", "ĠĠ"]),
        ("smaug-bpe", &["123", "4", "'S", "ĠĠ"]),
        ("qwen2", &["1", "2", "3", "4", "'S", "ĠĠ"]),
        ("tekken", &["1", "2", "3", "4", "'S", "ĠĠ"]),
    ];
    for (name, words) in expected {
        let mut metadata = listed(&tokens, &merges);
        metadata.insert("tokenizer.ggml.pre".into(), Value::Text(name.into()));
        let tokenizer = build(&metadata);
        let words: Vec<u32> = words.iter().map(|word| tokenizer.token(word).unwrap()).collect();
        assert_eq!(tokenizer.encode("1234'S  ").unwrap(), words, "{name}");
    }
}

#[test]
fn a_word_that_no_merge_reaches_is_a_token_for_llama_3_only() {
    for (name, expected) in [("llama-bpe", &[2][..]), ("gpt-2", &[0, 1])] {
        let mut metadata = listed(&["a", "b", "ab"], &[]);
        metadata.insert("tokenizer.ggml.pre".into(), Value::Text(name.into()));
        assert_eq!(build(&metadata).encode("ab").unwrap(), expected, "{name}");
    }
}

#[test]
fn a_vocabulary_that_contradicts_itself_is_an_error() {
    assert!(refusal(&listed(&["a", "b", "a"], &[])).ends_with("the tokens 0 and 2 are both `a`"));
    assert!(refusal(&listed(&["a", "b"], &["a b"])).ends_with("the merge `a b` makes no token"));
    assert!(refusal(&listed(&["ab"], &["a b"])).ends_with("Token `a` out of vocabulary"));
    assert!(refusal(&listed(&["ab"], &["ab"])).ends_with("the merge `ab` is not two tokens"));
    let mut metadata = listed(&["a", "b"], &[]);
    metadata.insert("tokenizer.ggml.token_type".into(), Value::Array(vec![Value::Signed(1)]));
    assert!(refusal(&metadata).ends_with("`tokenizer.ggml.token_type` has 1 values, `tokenizer.ggml.tokens` has 2"));
}

#[test]
fn another_model_of_tokenizer_is_an_error() {
    let mut metadata = listed(&["a"], &[]);
    metadata.insert("tokenizer.ggml.model".into(), Value::Text("bert".into()));
    assert!(refusal(&metadata).ends_with("`tokenizer.ggml.model = bert` is not supported; `gpt2` and `llama` are"));
    let Some(path) = shared("tokenizers/ggml-vocab-bert-bge.gguf") else { return };
    assert!(refusal(File::open(&path).unwrap().metadata()).contains("`tokenizer.ggml.model = bert`"));
}

/// A token that was added to the tokenizer and not to the model.
#[test]
fn a_token_beyond_the_embedding_is_named() {
    let room = crate::room::Room::new("token-beyond");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m");
    for name in ["config.json", "model.safetensors"] {
        fs::copy(from.join(name), room.file(name)).unwrap();
    }
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(from.join("tokenizer.json")).unwrap()).unwrap();
    let token = serde_json::json!({
        "id": 1024, "content": "<|pad|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true
    });
    json["added_tokens"].as_array_mut().unwrap().push(token);
    // As some editors write it.
    fs::write(room.file("tokenizer.json"), format!("\u{feff}{json}")).unwrap();
    let tokenizer = attar_model::Model::open(room.path()).unwrap().tokenizer().unwrap();
    assert!(!tokenizer.encode("KING HENRY:").unwrap().is_empty());
    let message = tokenizer.encode("KING<|pad|>HENRY:").unwrap_err().to_string();
    assert_eq!(message, "the token `<|pad|>`, number 1024, is beyond the 1024 rows of the embedding");
}
