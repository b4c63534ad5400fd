//! `tokenizer.model`, as SentencePiece writes it: the message `ModelProto` of `sentencepiece_model.proto`.
//!
//! Pieces with scores, by unigram or BPE, and how text is normalized. Models of words and of characters are refused by name.

use std::{collections::BTreeMap, io::Read, path::Path};

use protobuf::CodedInputStream;
use tokenizers::{
    AddedToken, Result, Tokenizer,
    models::unigram::Unigram,
    normalizers::{self, NormalizerWrapper, Precompiled, Replace, replace::ReplacePattern},
};

use super::gguf::{Kind, Token, pieces_to_spaces, scored_bpe, space_steps, vocabulary};

/// Bytes that a file may have: the largest known has 5 MB.
const LIMIT: u64 = 256 << 20;

/// What a `tokenizer.model` says.
struct Pieces {
    tokens: Vec<Token>,
    scores: Vec<f64>,
    /// 1 is unigram, 2 BPE, 3 words, 4 characters.
    model: u64,
    byte_fallback: bool,
    /// SentencePiece's compiled table of replacements.
    replacements: Vec<u8>,
    space_prefix: bool,
    single_spaces: bool,
    escapes_spaces: bool,
}

/// The tokenizer of the file, with the tokens of `added` (an `added_tokens.json`) behind its own.
pub(super) fn build(path: &Path, added: &BTreeMap<String, u32>) -> Result<Tokenizer> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(format!("it has more than {LIMIT} bytes").into());
    }
    let pieces = Pieces::read(&bytes).map_err(|error| format!("no SentencePiece model, or a damaged one: {error}"))?;
    let mut tokenizer = pieces.tokenizer()?;
    tokenizer.add_tokens(pieces.tokens.iter().filter_map(Token::added))?;
    let mut added: Vec<(&String, &u32)> = added.iter().collect();
    added.sort_by_key(|(_, id)| **id);
    for (text, id) in added {
        tokenizer.add_tokens([AddedToken::from(&**text, true).normalized(false)])?;
        if tokenizer.token_to_id(text) != Some(*id) {
            let why = "is empty, is there already, or does not follow those before it";
            return Err(format!("in `added_tokens.json`, the token `{text}` with number {id} {why}").into());
        }
    }
    Ok(tokenizer)
}

impl Pieces {
    fn read(bytes: &[u8]) -> Result<Pieces> {
        let mut pieces = Pieces {
            tokens: Vec::new(),
            scores: Vec::new(),
            model: 1,
            byte_fallback: false,
            replacements: Vec::new(),
            space_prefix: true,
            single_spaces: true,
            escapes_spaces: true,
        };
        let mut input = CodedInputStream::from_bytes(bytes);
        // A message within that ends behind the file is an error then.
        input.push_limit(bytes.len() as u64)?;
        each(&mut input, |field, input| match field {
            (1, MESSAGE) => within(input, |input| pieces.read_piece(input)),
            (2, MESSAGE) => within(input, |input| pieces.read_training(input)),
            (3, MESSAGE) => within(input, |input| pieces.read_normalizer(input)),
            other => skip(other, input),
        })?;
        if pieces.tokens.is_empty() {
            return Err("it has no pieces".into());
        }
        Ok(pieces)
    }

    fn read_piece(&mut self, input: &mut CodedInputStream<'_>) -> Result<()> {
        let (mut text, mut score, mut kind) = (String::new(), 0.0, 1);
        each(input, |field, input| {
            match field {
                (1, MESSAGE) => text = input.read_string()?,
                (2, FIXED32) => score = f64::from(input.read_float()?),
                (3, VARINT) => kind = input.read_uint64()?,
                other => skip(other, input)?,
            }
            Ok(())
        })?;
        let kind = Kind::numbered(kind).ok_or_else(|| format!("the piece `{text}` is of type {kind}, which is not known"))?;
        if !f64::is_finite(score) || text.is_empty() {
            return Err(format!("piece {}, `{text}`, has no text, or the score {score}", self.tokens.len()).into());
        }
        self.tokens.push(Token { text, kind });
        // Adding zero makes -0 equal to 0, as they are in a comparison of floats.
        self.scores.push(score + 0.0);
        Ok(())
    }

    fn read_training(&mut self, input: &mut CodedInputStream<'_>) -> Result<()> {
        each(input, |field, input| {
            match field {
                (3, VARINT) => self.model = input.read_uint64()?,
                (35, VARINT) => self.byte_fallback = input.read_bool()?,
                other => skip(other, input)?,
            }
            Ok(())
        })
    }

    fn read_normalizer(&mut self, input: &mut CodedInputStream<'_>) -> Result<()> {
        each(input, |field, input| {
            match field {
                (2, MESSAGE) => self.replacements = input.read_bytes()?,
                (3, VARINT) => self.space_prefix = input.read_bool()?,
                (4, VARINT) => self.single_spaces = input.read_bool()?,
                (5, VARINT) => self.escapes_spaces = input.read_bool()?,
                other => skip(other, input)?,
            }
            Ok(())
        })
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        if !self.escapes_spaces {
            return Err("`escape_whitespaces = false` is not supported".into());
        }
        let mut tokenizer = match self.model {
            1 => Tokenizer::new(self.unigram()?),
            2 => Tokenizer::new(scored_bpe(&self.tokens, &self.scores)?),
            3 => return Err("a SentencePiece model of words is not supported; unigram and BPE are".into()),
            4 => return Err("a SentencePiece model of characters is not supported; unigram and BPE are".into()),
            other => return Err(format!("a SentencePiece model of type {other} is not known").into()),
        };
        tokenizer.with_normalizer(Some(self.normalizer()?))?.with_decoder(Some(pieces_to_spaces(self.space_prefix)?));
        Ok(tokenizer)
    }

    fn unigram(&self) -> Result<Unigram> {
        vocabulary(&self.tokens)?;
        let unknown = self.tokens.iter().position(|token| token.kind == Kind::Unknown);
        if unknown.is_none() {
            return Err("it has no piece for unknown characters".into());
        }
        let pieces = self.tokens.iter().zip(&self.scores).map(|(token, score)| (token.text.clone(), *score));
        Unigram::from(pieces.collect(), unknown, self.byte_fallback)
    }

    fn normalizer(&self) -> Result<normalizers::Sequence> {
        let mut steps: Vec<NormalizerWrapper> = Vec::new();
        if !self.replacements.is_empty() {
            steps.push(Precompiled::from(&self.replacements).map_err(|error| error.to_string())?.into());
        }
        if self.single_spaces {
            // Spaces only: other white space is text.
            steps.push(Replace::new(ReplacePattern::Regex(r"\A +| +\z".into()), "")?.into());
            steps.push(Replace::new(ReplacePattern::Regex(" {2,}".into()), " ")?.into());
        }
        steps.extend(space_steps(self.space_prefix)?);
        Ok(normalizers::Sequence::new(steps))
    }
}

/// Wire types.
const VARINT: u32 = 0;
const MESSAGE: u32 = 2;
const FIXED32: u32 = 5;

/// Calls `read` with the number and the wire type of every field until the message ends.
fn each(
    input: &mut CodedInputStream<'_>,
    mut read: impl FnMut((u32, u32), &mut CodedInputStream<'_>) -> Result<()>,
) -> Result<()> {
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        read((tag >> 3, tag & 7), input)?;
    }
    Ok(())
}

/// A message within another.
fn within(input: &mut CodedInputStream<'_>, read: impl FnOnce(&mut CodedInputStream<'_>) -> Result<()>) -> Result<()> {
    let length = input.read_raw_varint64()?;
    let outer = input.push_limit(length)?;
    read(input)?;
    input.pop_limit(outer);
    Ok(())
}

/// Passes over a field that says nothing of the tokens.
fn skip((_, wire): (u32, u32), input: &mut CodedInputStream<'_>) -> Result<()> {
    let wire = protobuf::rt::WireType::new(wire).ok_or("it is damaged: a field of no known type")?;
    Ok(input.skip_field(wire)?)
}
