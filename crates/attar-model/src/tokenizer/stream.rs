//! Tokens of a text that comes in pieces: those of the whole text, in the memory of a few pieces.
//!
//! What a tokenizer makes of a text depends on what is near: on the word, the run of white space, the pair that merges. So a
//! text may be cut where two encodings, of what lies before with a margin behind and of what follows with a margin in front,
//! have the same tokens on both sides of the cut. Where they do not, the next piece is added and another cut is tried: a text
//! that cannot be cut is encoded as a whole.

use super::{Placed, Tokenizer};
use crate::Result;

/// Bytes of text that are encoded at a time. An encoding takes some 300 bytes of memory per token.
const PIECE: usize = 64 << 10;

/// Bytes on both sides of a cut, of which the inner half must have the same tokens.
const MARGIN: usize = 4 << 10;

/// A text in pieces.
pub struct Encoder<'t> {
    tokenizer: &'t Tokenizer,
    piece: usize,
    margin: usize,
    /// From one margin in front of the first byte whose token is not known yet.
    text: String,
    /// Where the first such token starts.
    start: usize,
    /// Bytes of text with which a cut is tried next.
    enough: usize,
    tokens: Vec<u32>,
}

impl<'t> Encoder<'t> {
    /// An empty text so far.
    pub fn of(tokenizer: &'t Tokenizer) -> Encoder<'t> {
        Encoder::with(tokenizer, PIECE, MARGIN)
    }

    fn with(tokenizer: &'t Tokenizer, piece: usize, margin: usize) -> Encoder<'t> {
        Encoder { tokenizer, piece, margin, text: String::new(), start: 0, enough: piece + margin, tokens: Vec::new() }
    }

    /// Adds text at the end.
    pub fn push(&mut self, text: &str) -> Result<()> {
        let mut text = text;
        while !text.is_empty() {
            let (now, later) = text.split_at(text.floor_char_boundary(self.piece).max(first(text)));
            self.text += now;
            text = later;
            if self.text.len() >= self.enough {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// Whether there is no text yet.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// How many tokens are known already, from the start.
    pub fn known(&self) -> usize {
        self.tokens.len()
    }

    /// The tokens that are known already; the rest of the text is left out.
    pub fn into_known(self) -> Vec<u32> {
        self.tokens
    }

    /// All tokens.
    pub fn finish(mut self) -> Result<Vec<u32>> {
        if self.start == 0 {
            return self.tokenizer.encode(&self.text);
        }
        let placed = self.tokenizer.placed(&self.text)?;
        self.keep(&placed, self.text.len() + 1);
        Ok(self.tokens)
    }

    /// Cuts off the text whose tokens are certain, if a cut can be found.
    fn cut(&mut self) -> Result<()> {
        // Twice the text if this fails: a text that cannot be cut is not encoded again for each of its pieces.
        self.enough = 2 * self.text.len();
        let placed = self.tokenizer.placed(&self.text)?;
        let Some(at) = self.place_to_cut(&placed) else { return Ok(()) };
        let from = self.text.floor_char_boundary(at.saturating_sub(self.margin));
        let tail: Vec<Placed> = self.tokenizer.placed(&self.text[from..])?;
        let near = |tokens: &[Placed], origin: usize| -> Vec<Placed> {
            let moved = tokens.iter().map(|t| Placed { token: t.token, start: t.start + origin, end: t.end + origin });
            moved.filter(|t| t.start + self.margin / 2 >= at && t.end <= at + self.margin / 2).collect()
        };
        if near(&placed, 0) == near(&tail, from) {
            self.keep(&placed, at);
            self.text.drain(..from);
            (self.start, self.enough) = (at - from, self.text.len() + self.piece + self.margin);
        }
        Ok(())
    }

    /// The start of the last token that has a margin of text behind it, and begins where the one before ends.
    fn place_to_cut(&self, placed: &[Placed]) -> Option<usize> {
        let limit = self.text.len().checked_sub(self.margin)?;
        let starts = placed.windows(2).rev().filter(|pair| pair[0].end <= pair[1].start).map(|pair| pair[1].start);
        let mut starts = starts.filter(|at| *at <= limit && *at > self.start + self.margin && self.text.is_char_boundary(*at));
        starts.next()
    }

    /// Keeps the tokens from the first unknown one to the one that starts at `end`.
    fn keep(&mut self, placed: &[Placed], end: usize) {
        let certain = placed.iter().filter(|token| (self.start..end).contains(&token.start));
        self.tokens.extend(certain.map(|token| token.token));
    }
}

/// Bytes of the first character.
fn first(text: &str) -> usize {
    text.chars().next().map_or(0, char::len_utf8)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn data(path: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata").join(path)
    }

    /// Prose, code, white space, other scripts, special tokens, and a word without an end.
    fn text() -> String {
        let prose = std::fs::read_to_string(data("evals/shakespeare-train.txt")).unwrap();
        let prose = &prose[..prose.floor_char_boundary(20_000)];
        let odd = "\n\n\n    def f(x):\t\treturn x  \r\n\r\n日本語のテキスト、ёлка 12345678 ☃☃ <|endoftext|> [SEP] </s>   e\u{301}\u{301} 'll've\n";
        format!("{prose}{}{}{prose}", odd.repeat(40), "x".repeat(3000))
    }

    #[test]
    fn pieces_have_the_tokens_of_the_whole() {
        let text = text();
        for model in ["shakespeare-1m", "tiny-gpt2", "tiny-bert", "tiny-gemma3", "stories260k", "tiny-qwen3"] {
            let path = data("models").join(model).join("tokenizer.json");
            if !path.exists() {
                continue;
            }
            let tokenizer = Tokenizer::open(&path).unwrap();
            let whole = tokenizer.encode(&text).unwrap();
            for (piece, margin) in [(500, 100), (1024, 256), (5000, 512)] {
                let mut encoder = Encoder::with(&tokenizer, piece, margin);
                let mut left = &text[..];
                let mut most = 0;
                while !left.is_empty() {
                    let (now, later) = left.split_at(left.ceil_char_boundary(777.min(left.len())));
                    encoder.push(now).unwrap();
                    most = most.max(encoder.text.len());
                    left = later;
                }
                assert!(encoder.known() > 0, "{model}: nothing was cut");
                assert_eq!(encoder.finish().unwrap(), whole, "{model}: pieces of {piece}");
                assert!(most < 6000 + 2 * piece, "{model}: {most} bytes of text were held");
            }
        }
    }
}
