//! What GGUF metadata say about a tokenizer, as the `tokenizer.json` it would have had.
//!
//! `tokenizer.ggml.model` is `gpt2`, BPE over bytes with listed merges, or `llama`, SentencePiece BPE with scores. Others
//! are refused, and so is a `tokenizer.ggml.pre` that is not in [`PRE_TOKENIZERS`]: with words split in another way the
//! model still runs, only worse. Meanings are those of llama.cpp (`src/llama-vocab.cpp`), which normalizes no text.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
};

use attar_tensor::{
    gguf::{Metadata, Value},
    nearest,
};
use tokenizers::{
    AddedToken, Result, SplitDelimiterBehavior, Tokenizer,
    decoders::{self, DecoderWrapper, byte_fallback::ByteFallback, fuse::Fuse},
    models::bpe::{BPE, Merges, Vocab},
    normalizers::{self, NormalizerWrapper, Prepend, Replace},
    pre_tokenizers::{
        self, PreTokenizerWrapper,
        byte_level::ByteLevel,
        split::{Split, SplitPattern},
    },
};

use crate::{Error, gguf::text};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";
const SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";

/// What SentencePiece writes for a space.
const SPACE: &str = "▁";

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is split into words. Tokens are merged within a word, never across words.
struct PreTokenizer {
    /// In `tokenizer.ggml.pre`.
    names: &'static [&'static str],
    /// Patterns that are applied in turn to the pieces so far. A match is a piece, and so is the text between two matches.
    splits: &'static [&'static str],
    /// Whether a word that is a token is taken whole, without merging.
    whole_words: bool,
}

static PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default"],
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        whole_words: false,
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "exaone4", "a.x-4.0", "gigachat", "mellum", "trillion", "granite-docling"],
        splits: &[GPT2],
        whole_words: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        splits: &[r"\p{N}", GPT2],
        whole_words: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        splits: &[LLAMA3],
        whole_words: true,
    },
    PreTokenizer { names: &["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], splits: &[LLAMA3], whole_words: false },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "stablelm2", "hunyuan", "solar-open"],
        splits: &[QWEN2],
        whole_words: false,
    },
    PreTokenizer { names: &["tekken"], splits: &[TEKKEN], whole_words: true },
];

/// The tokenizer that `metadata` describe.
pub(super) fn build(metadata: &Metadata) -> Result<Tokenizer> {
    let build = match text(metadata, MODEL)? {
        "gpt2" => byte_level,
        "llama" => sentence_piece,
        other => return Err(format!("`{MODEL} = {other}` is not supported; `gpt2` and `llama` are").into()),
    };
    let tokens = tokens(metadata)?;
    let mut tokenizer = build(metadata, &tokens)?;
    tokenizer.add_tokens(tokens.iter().filter_map(Token::added))?;
    Ok(tokenizer)
}

/// A token; its place in the list is its id.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: Kind,
}

/// `llama_token_type`, from 1, which is the type of a piece in SentencePiece.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl Kind {
    pub(super) fn numbered(number: u64) -> Option<Kind> {
        Some(match number {
            1 => Kind::Normal,
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => return None,
        })
    }
}

impl Token {
    /// The token as one that is matched in the text before it is split.
    pub(super) fn added(&self) -> Option<AddedToken> {
        match self.kind {
            Kind::Control | Kind::Unknown => Some(AddedToken::from(&*self.text, true)),
            Kind::UserDefined => Some(AddedToken::from(&*self.text, false).normalized(false)),
            Kind::Normal | Kind::Unused | Kind::Byte => None,
        }
    }

    /// Whether text can merge to it. Bytes and the unknown token stand for characters of other text than their own.
    fn merges(&self) -> bool {
        !matches!(self.kind, Kind::Byte | Kind::Unknown)
    }
}

/// The texts of the special tokens that the metadata name, by the names of transformers.
pub(crate) fn special_tokens(metadata: &Metadata) -> BTreeMap<String, String> {
    let names = [("bos", "bos_token"), ("eos", "eos_token"), ("unknown", "unk_token"), ("padding", "pad_token")];
    let Some(Value::Array(tokens)) = metadata.get(TOKENS) else { return BTreeMap::new() };
    let text = |kind: &str| match metadata.get(&format!("tokenizer.ggml.{kind}_token_id"))? {
        Value::Unsigned(id) => as_text(tokens.get(usize::try_from(*id).ok()?)?).map(str::to_owned),
        _ => None,
    };
    names.into_iter().filter_map(|(kind, name)| Some((name.to_owned(), text(kind)?))).collect()
}

fn tokens(metadata: &Metadata) -> Result<Vec<Token>> {
    let (texts, kinds) = (array(metadata, TOKENS, as_text)?, array(metadata, TYPES, as_kind)?);
    check_lengths(TYPES, kinds.len(), texts.len())?;
    // Two empty texts would be one token.
    let named = |(id, text): (usize, &str)| if text.is_empty() { format!("[EMPTY_{id}]") } else { text.into() };
    let tokens = texts.into_iter().enumerate().map(named).zip(kinds).map(|(text, kind)| Token { text, kind });
    Ok(tokens.collect())
}

pub(super) fn vocabulary(tokens: &[Token]) -> Result<Vocab> {
    let mut vocabulary = Vocab::with_capacity(tokens.len());
    for (id, token) in (0..).zip(tokens) {
        if let Some(first) = vocabulary.insert(token.text.clone(), id) {
            return Err(format!("the tokens {first} and {id} are both `{}`", token.text).into());
        }
    }
    Ok(vocabulary)
}

fn byte_level(metadata: &Metadata, tokens: &[Token]) -> Result<Tokenizer> {
    let pre_tokenizer = PreTokenizer::named(text(metadata, PRE)?)?;
    let vocabulary = vocabulary(tokens)?;
    let merges = listed_merges(metadata, &vocabulary)?;
    let model = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(pre_tokenizer.whole_words).build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre_tokenizer.build()?)).with_decoder(Some(ByteLevel::default()));
    Ok(tokenizer)
}

impl PreTokenizer {
    fn named(name: &str) -> Result<&'static PreTokenizer> {
        PRE_TOKENIZERS.iter().find(|known| known.names.contains(&name)).ok_or_else(|| {
            let nearest = nearest(name, PRE_TOKENIZERS.iter().flat_map(|known| known.names.iter().copied()));
            let nearest = nearest.map(|near| format!("; `{near}` is")).unwrap_or_default();
            format!("`{PRE} = {name}` is not known{nearest}").into()
        })
    }

    fn build(&self) -> Result<pre_tokenizers::sequence::Sequence> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        for split in self.splits {
            let pattern = SplitPattern::Regex(split.to_string());
            steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?.into());
        }
        steps.push(ByteLevel::default().add_prefix_space(false).use_regex(false).into());
        Ok(pre_tokenizers::sequence::Sequence::new(steps))
    }
}

/// In the order of the file; duplicates are dropped.
fn listed_merges(metadata: &Metadata, vocabulary: &Vocab) -> Result<Merges> {
    let mut seen = HashSet::new();
    let mut merges = Merges::new();
    for merge in array(metadata, MERGES, as_text)? {
        let (left, right) = merge.split_once(' ').ok_or_else(|| format!("the merge `{merge}` is not two tokens"))?;
        // The builder would panic on one that is longer than every token.
        if !vocabulary.contains_key(&format!("{left}{right}")) {
            return Err(format!("the merge `{merge}` makes no token").into());
        }
        if seen.insert(merge) {
            merges.push((left.into(), right.into()));
        }
    }
    Ok(merges)
}

fn sentence_piece(metadata: &Metadata, tokens: &[Token]) -> Result<Tokenizer> {
    let scores = array(metadata, SCORES, as_score)?;
    check_lengths(SCORES, scores.len(), tokens.len())?;
    let space_prefix = truth(metadata, SPACE_PREFIX)?.unwrap_or(true);
    let mut tokenizer = Tokenizer::new(scored_bpe(tokens, &scores)?);
    tokenizer.with_normalizer(Some(spaces_to_pieces(space_prefix)?))?.with_decoder(Some(pieces_to_spaces(space_prefix)?));
    Ok(tokenizer)
}

/// SentencePiece's BPE: pieces merge by the scores of what they become.
pub(super) fn scored_bpe(tokens: &[Token], scores: &[f64]) -> Result<BPE> {
    let (vocabulary, unknown) = (vocabulary(tokens)?, tokens.iter().find(|token| token.kind == Kind::Unknown));
    let has_bytes = (0..=u8::MAX).all(|byte| vocabulary.contains_key(&format!("<0x{byte:02X}>")));
    if !has_bytes && unknown.is_none() {
        return Err("there is neither a token for every byte nor one for unknown characters".into());
    }
    let merges = scored_merges(tokens, scores, &vocabulary);
    let mut model = BPE::builder().vocab_and_merges(vocabulary, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown.text.clone());
    }
    model.build()
}

/// Every way to join two tokens to a third, the best scored result first.
///
/// SentencePiece merges, of all neighbours that join to a token, those with the best score, and of equal scores the
/// leftmost. A list of pairs cannot say leftmost. With the longest left part first it comes to the same for runs of one
/// character, such as the spaces of Llama 2, which all have one score.
fn scored_merges(tokens: &[Token], scores: &[f64], vocabulary: &Vocab) -> Merges {
    let merges = |text: &str| vocabulary.get(text).is_some_and(|id| tokens[*id as usize].merges());
    let mut ranked = Vec::new();
    for (token, score) in tokens.iter().zip(scores).filter(|(token, _)| token.merges()) {
        let (text, length) = (&*token.text, token.text.chars().count());
        for (left, (at, _)) in text.char_indices().enumerate().skip(1) {
            if merges(&text[..at]) && merges(&text[at..]) {
                ranked.push((score, left, length - left, text.split_at(at)));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(a.0).then((Reverse(a.1), Reverse(a.2)).cmp(&(Reverse(b.1), Reverse(b.2)))));
    ranked.into_iter().map(|(.., (left, right))| (left.into(), right.into())).collect()
}

fn spaces_to_pieces(space_prefix: bool) -> Result<normalizers::Sequence> {
    Ok(normalizers::Sequence::new(space_steps(space_prefix)?))
}

pub(super) fn space_steps(space_prefix: bool) -> Result<Vec<NormalizerWrapper>> {
    let mut steps: Vec<NormalizerWrapper> = Vec::new();
    if space_prefix {
        steps.push(Prepend::new(SPACE.into()).into());
    }
    steps.push(Replace::new(" ", SPACE)?.into());
    Ok(steps)
}

pub(super) fn pieces_to_spaces(space_prefix: bool) -> Result<decoders::sequence::Sequence> {
    let mut steps: Vec<DecoderWrapper> = vec![Replace::new(SPACE, " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if space_prefix {
        steps.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    Ok(decoders::sequence::Sequence::new(steps))
}

fn array<'m, T>(metadata: &'m Metadata, key: &str, parse: fn(&'m Value) -> Option<T>) -> Result<Vec<T>> {
    let values = match metadata.get(key) {
        Some(Value::Array(values)) => values.iter().map(parse).collect(),
        _ => None,
    };
    Ok(values.ok_or_else(|| Error::Metadata { key: key.into() })?)
}

fn truth(metadata: &Metadata, key: &str) -> Result<Option<bool>> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Bool(truth)) => Ok(Some(*truth)),
        Some(_) => Err(Error::Metadata { key: key.into() }.into()),
    }
}

fn check_lengths(key: &str, found: usize, wanted: usize) -> Result<()> {
    match found == wanted {
        true => Ok(()),
        false => Err(format!("`{key}` has {found} values, `{TOKENS}` has {wanted}").into()),
    }
}

fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        _ => None,
    }
}

fn as_score(value: &Value) -> Option<f64> {
    match value {
        // Adding zero makes -0 equal to 0, as they are in a comparison of floats.
        Value::Float(score) if !score.is_nan() => Some(*score + 0.0),
        _ => None,
    }
}

fn as_kind(value: &Value) -> Option<Kind> {
    let number = match value {
        Value::Signed(number) => u64::try_from(*number).ok()?,
        Value::Unsigned(number) => *number,
        _ => return None,
    };
    Kind::numbered(number)
}
