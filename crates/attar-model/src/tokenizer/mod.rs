//! Text to tokens and back, through the `tokenizers` crate.

mod gguf;

use std::path::{Path, PathBuf};

use attar_tensor::gguf::Metadata;

use crate::{Error, Result};

/// A tokenizer. Adds no special tokens of its own accord.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
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
        Tokenizer::new(path, tokenizers::Tokenizer::from_file(path))
    }

    /// Builds the tokenizer that the metadata of the GGUF file at `path` describe.
    pub fn from_gguf(path: &Path, metadata: &Metadata) -> Result<Tokenizer> {
        Tokenizer::new(path, gguf::build(metadata))
    }

    fn new(path: &Path, built: tokenizers::Result<tokenizers::Tokenizer>) -> Result<Tokenizer> {
        match built {
            Ok(inner) => Ok(Tokenizer { inner, path: path.into() }),
            Err(error) => Err(Error::Tokenizer { path: path.into(), reason: error.to_string() }),
        }
    }

    /// The tokens of `text`; none are added in front or behind. Special ones are found in it by their text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.error(e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of each text with the special tokens that a whole input is framed by, such as `[CLS] … [SEP]`. Nothing
    /// is cut or padded, whatever the tokenizer's file says.
    pub fn encode_framed(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        let mut inner = self.inner.clone();
        inner.with_padding(None).with_truncation(None).map_err(|e| self.error(e))?;
        let encode = |text: &&str| inner.encode_fast(*text, true).map(|encoding| encoding.get_ids().to_vec());
        texts.iter().map(|text| encode(text).map_err(|e| self.error(e))).collect()
    }

    /// The text of `tokens`, special ones included.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, false).map_err(|e| self.error(e))
    }

    /// How many tokens it knows.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token of exactly this text, special ones included.
    pub fn token(&self, text: &str) -> Option<u32> {
        self.inner.token_to_id(text)
    }

    /// As `tokenizer.json`. Same tokenizer, same text.
    pub fn to_json(&self) -> Result<String> {
        self.inner.to_string(true).map_err(|e| self.error(e))
    }

    fn error(&self, error: tokenizers::Error) -> Error {
        Error::Tokenizer { path: self.path.clone(), reason: error.to_string() }
    }
}
