//! Text to tokens and back, through the `tokenizers` crate.

mod gguf;
mod pieces;
mod stream;
mod text;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use attar_tensor::gguf::Metadata;
use tokenizers::{PaddingParams, TruncationParams};

use crate::{Error, Result};

pub(crate) use gguf::special_tokens;
pub use stream::Encoder;

/// A tokenizer. It neither pads nor truncates, whatever its file says.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What the file says.
    padding: Option<PaddingParams>,
    truncation: Option<TruncationParams>,
    path: PathBuf,
    /// Rows of the embedding.
    limit: Option<usize>,
}

/// A token with the bytes of the text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    token: u32,
    start: usize,
    end: usize,
}

/// Levels of nesting that a `tokenizer.json` may have. The library recurses through them without a limit of its own; a real one
/// has ten.
const DEEPEST: usize = 64;

/// How deep lists and objects are nested in a JSON text, whether it is valid or not.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut quoted, mut escaped) = (0usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'[' | b'{' if !quoted => depth += 1,
            b']' | b'}' if !quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// Calls the library, whose panics on hostile files become errors.
fn foreign<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    let panicked = |_| Err("the library `tokenizers` panicked on it".into());
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).unwrap_or_else(panicked)
}

/// Where a tokenizer comes from.
#[derive(Clone)]
pub(crate) enum Origin {
    /// `tokenizer.json`.
    File(PathBuf),
    /// `tokenizer.model`, and the `added_tokens.json` beside it.
    Pieces(PathBuf, Option<PathBuf>),
    /// The vocabulary in a GGUF file.
    Gguf(PathBuf, Metadata),
}

impl Origin {
    pub(crate) fn open(&self) -> Result<Tokenizer> {
        match self {
            Origin::File(path) => Tokenizer::open(path),
            Origin::Pieces(path, added) => Tokenizer::from_pieces(path, added.as_deref()),
            Origin::Gguf(path, metadata) => Tokenizer::from_gguf(path, metadata),
        }
    }
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Tokenizer> {
        if !path.exists() {
            return Err(Error::Tokenizer { path: path.into(), reason: "the file does not exist".into() });
        }
        Tokenizer::from_json(path, &std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?)
    }

    /// Reads the content of a `tokenizer.json`; `path` is for errors.
    pub fn from_json(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
        // A byte-order mark, as some editors write it.
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let depth = depth(bytes);
        if depth > DEEPEST {
            let reason = format!("its JSON is nested {depth} deep; at most {DEEPEST} levels are read");
            return Err(Error::Tokenizer { path: path.into(), reason });
        }
        Tokenizer::new(path, foreign(|| tokenizers::Tokenizer::from_bytes(bytes)))
    }

    /// Builds a tokenizer from the metadata of the GGUF file at `path`.
    pub fn from_gguf(path: &Path, metadata: &Metadata) -> Result<Tokenizer> {
        Tokenizer::new(path, foreign(|| gguf::build(metadata)))
    }

    /// Reads a SentencePiece model, and an `added_tokens.json` beside it.
    pub fn from_pieces(path: &Path, added: Option<&Path>) -> Result<Tokenizer> {
        let added = match added {
            None => BTreeMap::new(),
            Some(file) => serde_json::from_value(attar_tensor::json::read(file)?).map_err(|error| Error::Tokenizer {
                path: file.into(),
                reason: format!("expected texts of tokens with their numbers: {error}"),
            })?,
        };
        Tokenizer::new(path, foreign(|| pieces::build(path, &added)))
    }

    fn new(path: &Path, built: tokenizers::Result<tokenizers::Tokenizer>) -> Result<Tokenizer> {
        let unusable = |error: tokenizers::Error| Error::Tokenizer { path: path.into(), reason: error.to_string() };
        let mut inner = built.map_err(unusable)?;
        let (padding, truncation) = (inner.get_padding().cloned(), inner.get_truncation().cloned());
        inner.with_padding(None).with_truncation(None).map_err(unusable)?;
        Ok(Tokenizer { inner, padding, truncation, path: path.into(), limit: None })
    }

    /// The same for a model whose embedding has `rows` rows: a token beyond them is an error.
    pub fn within(self, rows: Option<usize>) -> Tokenizer {
        Tokenizer { limit: rows, ..self }
    }

    /// The tokens of `text`, with none added before or after. Special ones are found in it by their text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokens(text, false)
    }

    /// The tokens of each text with the special tokens that a whole input is framed by, such as `[CLS] … [SEP]`.
    pub fn encode_framed(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        texts.iter().map(|text| self.tokens(text, true)).collect()
    }

    /// The tokens of a prompt: with those in front that the tokenizer begins texts with, unless the prompt has them already.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let (plain, framed) = (self.tokens(text, false)?, self.tokens(text, true)?);
        let front = (0..=framed.len().saturating_sub(plain.len())).find(|at| framed[*at..].starts_with(&plain)).unwrap_or(0);
        Ok(if plain.starts_with(&framed[..front]) { plain } else { [&framed[..front], &plain].concat() })
    }

    fn tokens(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = foreign(|| self.inner.encode_fast(text, special)).map_err(|e| self.error(e))?;
        self.check(encoding.get_ids()).map(<[u32]>::to_vec)
    }

    /// [`Tokenizer::encode`], with the place of each token in the text.
    fn placed(&self, text: &str) -> Result<Vec<Placed>> {
        let encoding = foreign(|| self.inner.encode(text, false)).map_err(|e| self.error(e))?;
        let tokens = self.check(encoding.get_ids())?;
        Ok(tokens.iter().zip(encoding.get_offsets()).map(|(&token, &(start, end))| Placed { token, start, end }).collect())
    }

    fn check<'t>(&self, tokens: &'t [u32]) -> Result<&'t [u32]> {
        match tokens.iter().find(|token| self.limit.is_some_and(|limit| **token as usize >= limit)) {
            Some(&token) => Err(Error::TokenBeyond {
                text: self.inner.id_to_token(token).unwrap_or_default(),
                token,
                vocabulary: self.limit.unwrap_or_default(),
            }),
            None => Ok(tokens),
        }
    }

    /// The number of tokens that its file truncates to, if it does.
    pub fn truncates_to(&self) -> Option<usize> {
        self.truncation.as_ref().map(|truncation| truncation.max_length)
    }

    /// The text of `tokens`, special ones included.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        foreign(|| self.inner.decode(tokens, false)).map_err(|e| self.error(e))
    }

    /// The size of the vocabulary, added tokens included.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token of exactly this text, special ones included.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// The text of its `tokenizer.json`. The same tokenizer gives the same text.
    pub fn to_json(&self) -> Result<String> {
        let mut whole = self.inner.clone();
        whole.with_padding(self.padding.clone()).with_truncation(self.truncation.clone()).map_err(|e| self.error(e))?;
        whole.to_string(true).map_err(|e| self.error(e))
    }

    fn error(&self, error: tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_in_strings_do_not_nest() {
        assert_eq!(depth(br#"{"a": [1, {"[[[\"[[": "}"}], "b": 1}"#), 3);
        assert_eq!(depth(b"]]]["), 1);
    }

    #[test]
    fn a_panic_of_the_library_is_an_error() {
        let error = foreign(|| -> tokenizers::Result<()> { panic!("as on a hostile file") }).unwrap_err();
        assert_eq!(error.to_string(), "the library `tokenizers` panicked on it");
    }

    #[test]
    fn a_prompt_begins_as_texts_do_and_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let mut json = serde_json::json!({ "version": "1.0", "added_tokens": [{ "id": 0, "content": "<s>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true }], "pre_tokenizer": { "type": "Whitespace" },
            "model": { "type": "WordLevel", "vocab": { "<s>": 0, "a": 1, "b": 2 }, "unk_token": "a" } });
        let encoded = |json: &serde_json::Value, text: &str| {
            std::fs::write(&path, json.to_string()).unwrap();
            Tokenizer::open(&path).unwrap().encode_prompt(text).unwrap()
        };
        assert_eq!(encoded(&json, "a b"), [1, 2], "without a post-processor");
        json["post_processor"] = serde_json::json!({ "type": "TemplateProcessing",
            "single": [{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
            "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
            "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } } });
        assert_eq!(encoded(&json, "a b"), [0, 1, 2]);
        assert_eq!(encoded(&json, "<s> a b"), [0, 1, 2], "a chat template has put it there");
    }

    #[test]
    fn a_deeply_nested_tokenizer_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        for depth in [65, 130, 100_000] {
            let open = r#"{"type":"Sequence","normalizers":["#;
            let text = format!(r#"{{"version":"1.0","normalizer":{}{}}}"#, open.repeat(depth), "]}".repeat(depth));
            std::fs::write(&path, text).unwrap();
            let error = Tokenizer::open(&path).err().expect("it is refused").to_string();
            assert!(error.contains("tokenizer.json") && error.contains("at most 64 levels"), "{error}");
        }
    }
}
