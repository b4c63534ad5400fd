//! Text to tokens and back, through the `tokenizers` crate.

use std::path::PathBuf;

use attar_tensor::gguf::Metadata;

use crate::{Error, Result};

/// A tokenizer. Adds no special tokens of its own accord.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
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
            Origin::File(path) if !path.exists() => Err(Error::Tokenizer { path: path.clone(), reason: "the file does not exist".into() }),
            Origin::File(path) => tokenizers::Tokenizer::from_file(path)
                .map(|inner| Tokenizer { inner })
                .map_err(|error| Error::Tokenizer { path: path.clone(), reason: error.to_string() }),
            Origin::Gguf(path, _) => Err(Error::Tokenizer { path: path.clone(), reason: "not built yet".into() }),
        }
    }
}

impl Tokenizer {
    /// The tokens of `text`; none are added in front or behind.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| self.error(e))?;
        Ok(encoding.get_ids().to_vec())
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
        Error::Tokenizer { path: PathBuf::new(), reason: error.to_string() }
    }
}
