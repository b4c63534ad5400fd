//! Text to windows of tokens.
//!
//! Windows and strides mean what they mean in "Perplexity of fixed-length models" of the transformers documentation.

use std::path::PathBuf;

use attar_model::{Config, Model, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::documents::Documents;
use crate::{Error, Result, Window};

/// How a text is cut into windows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Perplexity {
    /// Text to evaluate on, a UTF-8 file.
    pub data: PathBuf,
    /// Tokens per window, BOS included.
    #[serde(default = "default_window")]
    pub window: usize,
    /// Tokens from the start of one window to the start of the next. Without it, windows do not overlap; where they do,
    /// each token is scored once, in the first window that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride: Option<usize>,
    /// Use only this many tokens, from the start of the text; BOS is not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Start every window with the model's BOS token.
    #[serde(default)]
    pub bos: bool,
    /// The text that separates documents. White space around a document is dropped, and no window holds two documents.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
}

const fn default_window() -> usize {
    512
}

impl Perplexity {
    /// All defaults.
    pub fn of(data: impl Into<PathBuf>) -> Perplexity {
        Perplexity { data: data.into(), window: default_window(), stride: None, tokens: None, bos: false, split: None }
    }

    /// Whether a model of that configuration can be measured so. The text is not read.
    pub fn check(&self, config: &Config) -> Result<()> {
        self.cut(config).map(|_| ())
    }

    /// Reads the text and cuts it. Every window scores at least one token.
    pub fn windows(&self, model: &Model) -> Result<Vec<Window>> {
        self.windows_of(&model.tokenizer()?, &model.config)
    }

    /// The same, without the model itself.
    pub fn windows_of(&self, tokenizer: &Tokenizer, config: &Config) -> Result<Vec<Window>> {
        let unread = |source| Error::Read { path: self.data.clone(), source };
        let pieces = attar_tensor::text_pieces(&self.data).map_err(unread)?;
        self.windows_of_pieces(pieces.map(|piece| piece.map_err(unread)), tokenizer, config)
    }

    /// The same of a text that is read already; `data` is its name.
    pub(in crate::task) fn windows_of_pieces(
        &self,
        pieces: impl IntoIterator<Item = Result<String>>,
        tokenizer: &Tokenizer,
        config: &Config,
    ) -> Result<Vec<Window>> {
        let mut documents = Documents::new(tokenizer, self.split.as_deref(), self.tokens.unwrap_or(usize::MAX));
        for piece in pieces {
            if documents.push(&piece?)? {
                break;
            }
        }
        self.windows_of_documents(documents.finish()?, config)
    }

    /// The same of documents that are tokens already.
    pub(in crate::task) fn windows_of_documents(&self, mut documents: Vec<Vec<u32>>, config: &Config) -> Result<Vec<Window>> {
        let cut = self.cut(config)?;
        if documents.is_empty() {
            return Err(Error::NoText { path: self.data.clone() });
        }
        limit(&mut documents, self.tokens.unwrap_or(usize::MAX));
        let windows: Vec<Window> = documents.iter().flat_map(|tokens| cut.windows(tokens)).collect();
        if windows.is_empty() {
            let tokens = documents.iter().map(Vec::len).sum();
            return Err(Error::TooShort { path: self.data.clone(), tokens, documents: documents.len() });
        }
        Ok(windows)
    }

    fn cut(&self, config: &Config) -> Result<Cut> {
        let bos = match self.bos {
            true => Some(config.bos.ok_or(Error::NoBos)?),
            false => None,
        };
        let setting = |key, found, wanted| Err(Error::Setting { key, found, wanted });
        let longest = config.context.unwrap_or(usize::MAX);
        let length = self.window.saturating_sub(usize::from(self.bos));
        let stride = self.stride.unwrap_or(self.window);
        if self.window < 2 {
            return setting("window", self.window, "a window has at least 2 tokens".into());
        }
        if self.window > longest {
            return setting("window", self.window, format!("the model's context is {longest} tokens"));
        }
        if stride == 0 || stride > self.window {
            return setting("stride", stride, format!("expected 1 to {}, the window, so that no token is left out", self.window));
        }
        if self.tokens == Some(0) {
            return setting("tokens", 0, "expected 1 or more".into());
        }
        Ok(Cut { bos, length, stride: stride.min(length) })
    }
}

/// Keeps the first tokens of all documents together.
fn limit(documents: &mut Vec<Vec<u32>>, mut left: usize) {
    for tokens in documents.iter_mut() {
        tokens.truncate(left);
        left -= tokens.len();
    }
    documents.retain(|tokens| !tokens.is_empty());
}

struct Cut {
    bos: Option<u32>,
    /// Tokens of text per window.
    length: usize,
    stride: usize,
}

impl Cut {
    fn windows(&self, document: &[u32]) -> Vec<Window> {
        let mut windows = Vec::new();
        let (mut start, mut scored_to) = (0, 0);
        loop {
            let end = (start + self.length).min(document.len());
            windows.extend(self.window(&document[start..end], scored_to - start));
            if end == document.len() {
                return windows;
            }
            scored_to = end;
            start += self.stride;
        }
    }

    /// `known`: tokens of the text that an earlier window scored.
    fn window(&self, text: &[u32], known: usize) -> Option<Window> {
        let tokens: Vec<u32> = self.bos.into_iter().chain(text.iter().copied()).collect();
        let first_target = (known + self.bos.iter().len()).max(1);
        (first_target < tokens.len()).then(|| Window { scored: first_target - 1..tokens.len() - 1, tokens })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(length: usize, stride: usize, bos: Option<u32>) -> Cut {
        Cut { bos, length, stride }
    }

    fn targets(windows: &[Window]) -> Vec<u32> {
        windows.iter().flat_map(Window::targets).copied().collect()
    }

    #[test]
    fn windows_without_overlap_score_all_but_their_first_token() {
        let windows = cut(4, 4, None).windows(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(targets(&windows), [1, 2, 3, 5, 6, 7]);
        assert_eq!(windows.len(), 2, "a tail of one token is dropped");
    }

    #[test]
    fn overlapping_windows_score_every_token_once() {
        let document: Vec<u32> = (0..23).collect();
        for stride in 1..4 {
            let windows = cut(5, stride, None).windows(&document);
            assert_eq!(targets(&windows), document[1..], "stride {stride}");
            assert!(windows[1..].iter().all(|w| w.scored.len() <= stride));
            assert!(windows.iter().all(|w| w.scored.end + 1 == w.tokens.len()));
        }
    }

    #[test]
    fn bos_lets_every_token_of_the_text_be_scored() {
        let document: Vec<u32> = (1..24).collect();
        for stride in [1, 2, 4] {
            let windows = cut(4, stride, Some(0)).windows(&document);
            assert_eq!(targets(&windows), document, "stride {stride}");
            assert!(windows.iter().all(|w| w.tokens[0] == 0 && w.tokens.len() <= 5));
        }
    }

    #[test]
    fn a_limit_counts_tokens_of_all_documents_together() {
        let mut documents = vec![vec![1, 2, 3], vec![4, 5], vec![6]];
        limit(&mut documents, 4);
        assert_eq!(documents, [vec![1, 2, 3], vec![4]]);
    }

    #[test]
    fn an_unknown_key_is_an_error_and_defaults_fill_the_rest() {
        assert!(toml::from_str::<Perplexity>("data = \"a\"\nwindows = 3").is_err());
        assert_eq!(toml::from_str::<Perplexity>("data = \"a\"").unwrap(), Perplexity::of("a"));
    }
}
