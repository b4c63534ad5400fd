//! Text to tokens and back, through the `tokenizers` crate.

mod gguf;

use std::path::{Path, PathBuf};

use attar_tensor::gguf::Metadata;
use tokenizers::{PaddingParams, TruncationParams};

use crate::{Error, Result};

/// A tokenizer. It neither pads nor truncates, whatever its file says.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// What the file says.
    padding: Option<PaddingParams>,
    truncation: Option<TruncationParams>,
    path: PathBuf,
    /// Rows of the embedding.
    limit: Option<usize>,
}

/// Where a tokenizer comes from.
#[derive(Clone)]
pub(crate) enum Origin {
    /// `tokenizer.json`.
    File(PathBuf),
    /// The vocabulary in a GGUF file.
    Gguf(PathBuf, Metadata),
}

impl Origin {
    pub(crate) fn open(&self) -> Result<Tokenizer> {
        match self {
            Origin::File(path) => Tokenizer::open(path),
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
        let bytes = std::fs::read(path).map_err(|source| Error::Io { path: path.into(), source })?;
        // A byte-order mark, as some editors write it.
        Tokenizer::new(path, tokenizers::Tokenizer::from_bytes(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes)))
    }

    /// Builds a tokenizer from the metadata of the GGUF file at `path`.
    pub fn from_gguf(path: &Path, metadata: &Metadata) -> Result<Tokenizer> {
        Tokenizer::new(path, gguf::build(metadata))
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

    fn tokens(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| self.error(e))?;
        let tokens = encoding.get_ids().to_vec();
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
        self.inner.decode(tokens, false).map_err(|e| self.error(e))
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
