//! A text, a piece at a time, to the tokens of its documents.

use attar_model::{Encoder, Tokenizer};

use crate::Result;

/// The documents of a text so far.
pub(super) struct Documents<'s> {
    tokenizer: &'s Tokenizer,
    /// What separates documents, if anything does.
    between: Option<&'s str>,
    /// Tokens that are enough.
    enough: usize,
    /// Of the documents that have ended.
    tokens: usize,
    documents: Vec<Vec<u32>>,
    open: Encoder<'s>,
    /// The end of the text so far, which may be the start of a separator.
    held: String,
    /// White space that is part of the open document if more follows.
    white: String,
}

impl<'s> Documents<'s> {
    pub(super) fn new(tokenizer: &'s Tokenizer, between: Option<&'s str>, enough: usize) -> Documents<'s> {
        let (open, between) = (Encoder::of(tokenizer), between.filter(|between| !between.is_empty()));
        let (held, white) = (String::new(), String::new());
        Documents { tokenizer, between, enough, tokens: 0, documents: Vec::new(), open, held, white }
    }

    /// Adds text at the end. Says whether there are enough tokens now.
    pub(super) fn push(&mut self, piece: &str) -> Result<bool> {
        let Some(between) = self.between else {
            self.open.push(piece)?;
            return Ok(self.open.known() >= self.enough);
        };
        let text = std::mem::take(&mut self.held) + piece;
        let mut left = &text[..];
        while let Some((document, rest)) = left.split_once(between) {
            self.add(document)?;
            self.end()?;
            if self.tokens >= self.enough {
                return Ok(true);
            }
            left = rest;
        }
        let certain = left.floor_char_boundary(left.len().saturating_sub(between.len() - 1));
        self.add(&left[..certain])?;
        self.held = left[certain..].to_owned();
        Ok(self.tokens + self.open.known() >= self.enough)
    }

    /// The tokens of every document that is not empty; at least as many as are enough, if the text has them.
    pub(super) fn finish(mut self) -> Result<Vec<Vec<u32>>> {
        if self.tokens + self.open.known() < self.enough {
            let held = std::mem::take(&mut self.held);
            self.add(&held)?;
            self.end()?;
        } else {
            self.documents.push(self.open.into_known());
        }
        self.documents.retain(|tokens| !tokens.is_empty());
        Ok(self.documents)
    }

    /// Adds text to the open document. Where documents are separated, white space around them is none of theirs.
    fn add(&mut self, text: &str) -> Result<()> {
        if self.between.is_none() {
            return Ok(self.open.push(text)?);
        }
        let text = if self.open.is_empty() { text.trim_start() } else { text };
        let document = text.trim_end();
        if !document.is_empty() {
            self.open.push(&std::mem::take(&mut self.white))?;
            self.open.push(document)?;
        }
        self.white += &text[document.len()..];
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let ended = std::mem::replace(&mut self.open, Encoder::of(self.tokenizer)).finish()?;
        self.tokens += ended.len();
        self.documents.push(ended);
        self.white.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer() -> Tokenizer {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m/tokenizer.json");
        Tokenizer::open(&model).expect("it is a tokenizer")
    }

    fn documents(text: &str, between: Option<&str>, enough: usize, piece: usize) -> Vec<Vec<u32>> {
        let tokenizer = tokenizer();
        let mut documents = Documents::new(&tokenizer, between, enough);
        let mut left = text;
        while !left.is_empty() {
            let (now, later) = left.split_at(left.ceil_char_boundary(piece.min(left.len())));
            if documents.push(now).expect("text") {
                break;
            }
            left = later;
        }
        documents.finish().expect("text")
    }

    #[test]
    fn documents_are_trimmed_and_empty_ones_dropped() {
        let tokenizer = tokenizer();
        let wanted = ["a b", "c  d"].map(|document| tokenizer.encode(document).expect("text"));
        for piece in [1, 2, 3, 5, 100] {
            let found = documents(" a b\n<|end|> \n<|end|>c  d<|end|>\n", Some("<|end|>"), usize::MAX, piece);
            assert_eq!(found, wanted, "pieces of {piece}");
        }
    }

    #[test]
    fn a_text_is_one_document_where_nothing_separates_them() {
        for between in [None, Some("")] {
            let wanted = tokenizer().encode(" a b\n ").expect("text");
            assert_eq!(documents(" a b\n ", between, usize::MAX, 2), [wanted]);
        }
    }

    #[test]
    fn reading_ends_with_enough_tokens() {
        let text = "to be or not to be\n".repeat(200_000);
        let whole = tokenizer().encode(&text[..1 << 20]).expect("text");
        let [found] = &documents(&text, None, 100, 1 << 16)[..] else { panic!("one document") };
        assert!(found.len() < whole.len(), "{} tokens of {}", found.len(), text.len());
        assert_eq!(found[..100], whole[..100]);
        let many = documents(&text, Some("\n"), 100, 1 << 16);
        assert!(many.concat().len() >= 100 && many.len() < 100);
    }
}
