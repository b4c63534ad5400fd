//! Tokenizer and detokenizer as models of OpenVINO Tokenizers' operators, so that pipelines take text.
//!
//! Written here and not by OpenVINO's own converter: that needs Python with transformers, and joins pre-tokenizers into one pattern, which splits runs
//! of spaces before digits in another way than the tokenizer does. Byte-level BPE without a normalizer is what can be written.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::ir::{Data, EXTENSION, Element, Ir, Out};

/// GPT-2's pattern, which `ByteLevel` splits by (Radford et al. 2019).
const BYTE_LEVEL: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// A model and its numbers.
pub(super) struct Made {
    pub(super) xml: String,
    pub(super) data: Vec<u8>,
}

/// What these models are made of.
struct Tokenizer {
    /// The bytes of each token, by its number.
    tokens: Vec<Vec<u8>>,
    /// Both halves of each merge.
    merges: [Vec<Vec<u8>>; 2],
    /// Tokens that texts are split at first, by their numbers.
    added: BTreeMap<usize, String>,
    /// Those of them that are left out of text.
    special: Vec<i32>,
    /// Patterns whose matches become pieces, one after the other.
    patterns: Vec<String>,
}

/// Tokenizer and detokenizer of a `tokenizer.json`; why not, if they cannot be written. `info` goes along with the tokenizer.
pub(super) fn models(json: &Value, info: Vec<(&'static str, String)>) -> Result<[Made; 2], &'static str> {
    let tokenizer = Tokenizer::read(json)?;
    Ok([tokenizer.tokenizer(info), tokenizer.detokenizer()])
}

impl Tokenizer {
    fn read(json: &Value) -> Result<Tokenizer, &'static str> {
        let model = &json["model"];
        if model["type"] != "BPE" || model["byte_fallback"] == true || model["ignore_merges"] == true {
            return Err("the model is no byte-level BPE that merges all words");
        }
        if !json["normalizer"].is_null() {
            return Err("the normalizer has no counterpart");
        }
        if !(json["post_processor"].is_null() || json["post_processor"]["type"] == "ByteLevel") {
            return Err("the post-processor adds tokens");
        }
        let mut patterns = Vec::new();
        let byte_level = pre_tokenizer(&json["pre_tokenizer"], &mut patterns)?;
        if !byte_level {
            return Err("the pre-tokenizer does not work on bytes");
        }
        let bytes = bytes_of_characters();
        let spelled = |text: &str| text.chars().map(|c| bytes.get(&c).copied()).collect::<Option<Vec<u8>>>();
        let vocabulary = model["vocab"].as_object().ok_or("the vocabulary is missing")?;
        let number = |value: &Value| value.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < 1 << 24);
        let mut tokens: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        for (text, id) in vocabulary {
            tokens.insert(number(id).ok_or("a token has no number")?, spelled(text).unwrap_or_else(|| text.clone().into_bytes()));
        }
        let (mut added, mut special) = (BTreeMap::new(), Vec::new());
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let (id, text) =
                (number(&token["id"]).ok_or("a token has no number")?, token["content"].as_str().unwrap_or_default());
            if ["lstrip", "rstrip", "single_word"].iter().any(|key| token[key] == true) {
                return Err("an added token takes the space around it");
            }
            tokens.insert(id, text.as_bytes().to_vec());
            added.insert(id, text.to_owned());
            special.extend((token["special"] == true).then_some(id as i32));
        }
        let mut merges = [Vec::new(), Vec::new()];
        for merge in model["merges"].as_array().into_iter().flatten() {
            let [left, right] = halves(merge).ok_or("a merge is none of two tokens")?;
            merges[0].push(spelled(left).ok_or("a merge is none of bytes")?);
            merges[1].push(spelled(right).ok_or("a merge is none of bytes")?);
        }
        // OpenVINO's operator looks whole words up first, and so would find what no merges make.
        let made: HashSet<Vec<u8>> =
            merges[0].iter().zip(&merges[1]).map(|(left, right)| [left.as_slice(), right].concat()).collect();
        if tokens.iter().any(|(id, text)| text.len() > 1 && !added.contains_key(id) && !made.contains(text)) {
            return Err("some tokens are made by no merge");
        }
        if added.is_empty() {
            return Err("it has no added tokens");
        }
        let last = tokens.keys().next_back().copied().ok_or("the vocabulary is empty")?;
        let tokens = (0..=last).map(|id| tokens.remove(&id).unwrap_or_default()).collect();
        Ok(Tokenizer { tokens, merges, added, special, patterns })
    }

    fn tokenizer(&self, info: Vec<(&'static str, String)>) -> Made {
        let mut w = Writer::default();
        w.ir.info = info;
        let data = vec![("shape", "?".to_owned()), ("element_type", "string".into())];
        let text = w.ir.layer("text", ("Parameter", 1), data, &[], &[Element::STRING])[0];
        let strings =
            w.ir.layer("text/bytes", ("StringTensorUnpack", 15), vec![], &[text], &[Element::I32, Element::I32, Element::U8]);
        let rows = w.rows(strings[0]);
        let ragged = [Element::I32, Element::I32, Element::I32, Element::I32, Element::U8, Element::BOOL];
        let mut words = rows.iter().chain(&strings).copied().collect::<Vec<Out>>();
        let pattern = w.bytes("added/pattern", self.added_pattern().into_bytes());
        words.push(pattern);
        words = w.ir.layer("added", ("SpecialTokensSplit", EXTENSION), vec![], &words, &ragged);
        for (i, pattern) in self.patterns.iter().enumerate() {
            let pattern = w.bytes(&format!("split.{i}/pattern"), pattern.clone().into_bytes());
            words.push(pattern);
            let data: Data = vec![("behaviour", "isolate".into()), ("invert", "false".into()), ("max_splits", "-1".into())];
            words = w.ir.layer(format!("split.{i}"), ("RegexSplit", EXTENSION), data, &words, &ragged);
        }
        let mut inputs = words[..5].to_vec();
        inputs.extend(w.strings("vocabulary", &self.tokens));
        inputs.extend(w.strings("merges/left", &self.merges[0]));
        inputs.extend(w.strings("merges/right", &self.merges[1]));
        let added: Vec<Vec<u8>> = self.added.values().map(|text| text.clone().into_bytes()).collect();
        inputs.extend(w.strings("added/tokens", &added));
        let numbers: Vec<i32> = self.added.keys().map(|id| *id as i32).collect();
        inputs.push(w.integers("added/numbers", &[numbers.len()], &numbers));
        let data: Data = vec![
            ("unk_token", String::new()),
            ("fuse_unk", "false".into()),
            ("suffix_indicator", String::new()),
            ("end_suffix", String::new()),
            ("byte_fallback", "false".into()),
            ("cache_capacity", "20000".into()),
        ];
        let ids = w.ir.layer("bpe", ("BPETokenizer", EXTENSION), data, &inputs, &[Element::I32; 3]);
        w.dense(&ids);
        w.made("tokenizer")
    }

    fn detokenizer(&self) -> Made {
        let mut w = Writer::default();
        let data = vec![("shape", "?,?".to_owned()), ("element_type", "i64".into())];
        let ids = w.ir.layer("ids", ("Parameter", 1), data, &[], &[Element::I64])[0];
        let data = vec![("destination_type", "i32".to_owned())];
        let ids = w.ir.layer("ids/i32", ("Convert", 1), data, &[ids], &[Element::I32])[0];
        let mut inputs = vec![ids];
        inputs.extend(w.strings("vocabulary", &self.tokens));
        inputs.push(w.integers("special", &[self.special.len()], &self.special));
        let ragged = [Element::I32, Element::I32, Element::I32, Element::I32, Element::U8];
        let words = w.ir.layer("words", ("VocabDecoder", EXTENSION), vec![("skip_tokens", String::new())], &inputs, &ragged);
        let rows = w.ir.layer("rows", ("FuzeRagged", EXTENSION), vec![], &words[..4], &[Element::I32; 2]);
        let strings = [Element::I32, Element::I32, Element::U8];
        let data = vec![("replace_mode", "true".to_owned())];
        let valid = w.ir.layer("utf8", ("UTF8Validate", EXTENSION), data, &[rows[0], rows[1], words[4]], &strings);
        let text = w.ir.layer("text", ("StringTensorPack", 15), vec![], &valid, &[Element::STRING])[0];
        w.ir.export(text, "string_output");
        w.ir.layer("text/result", ("Result", 1), vec![], &[text], &[]);
        w.made("detokenizer")
    }

    /// A pattern of all added tokens, longer ones first.
    fn added_pattern(&self) -> String {
        let mut texts: Vec<&String> = self.added.values().collect();
        texts.sort_by_key(|text| (std::cmp::Reverse(text.len()), *text));
        let escape = |text: &String| -> String {
            let literal = |c: char| c.is_alphanumeric() || c == '_' || !c.is_ascii();
            text.chars().flat_map(|c| (!literal(c)).then_some('\\').into_iter().chain([c])).collect()
        };
        format!("({})", texts.into_iter().map(escape).collect::<Vec<_>>().join("|"))
    }
}

/// Appends what a pre-tokenizer splits by; whether it turns texts into bytes.
fn pre_tokenizer(json: &Value, patterns: &mut Vec<String>) -> Result<bool, &'static str> {
    match json["type"].as_str().unwrap_or_default() {
        "Sequence" => {
            let parts = json["pretokenizers"].as_array().into_iter().flatten();
            parts.map(|part| pre_tokenizer(part, patterns)).try_fold(false, |any, part| Ok(any | part?))
        }
        "Digits" => {
            patterns.push(if json["individual_digits"] == true { r"\p{N}" } else { r"\p{N}+" }.into());
            Ok(false)
        }
        "Split" if json["behavior"] == "Isolated" && json["invert"] != true => {
            patterns.push(json["pattern"]["Regex"].as_str().ok_or("the pre-tokenizer splits at a text")?.into());
            Ok(false)
        }
        "ByteLevel" if json["add_prefix_space"] != true => {
            patterns.extend((json["use_regex"] != false).then(|| BYTE_LEVEL.into()));
            Ok(true)
        }
        _ => Err("the pre-tokenizer has no counterpart"),
    }
}

/// Two tokens, in either spelling of a `tokenizer.json`.
fn halves(merge: &Value) -> Option<[&str; 2]> {
    match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| [left, right]),
        Value::Array(both) => match both.as_slice() {
            [left, right] => Some([left.as_str()?, right.as_str()?]),
            _ => None,
        },
        _ => None,
    }
}

/// The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the others from 256 on, in order.
fn bytes_of_characters() -> BTreeMap<char, u8> {
    let mut next = 256;
    let character = |byte: u8| match byte {
        33..=126 | 161..=172 | 174..=255 => char::from(byte),
        _ => {
            next += 1;
            char::from_u32(next - 1).expect("far below the surrogates")
        }
    };
    (0..=255u8).map(character).zip(0..=255).collect()
}

/// A model in the making.
#[derive(Default)]
struct Writer {
    ir: Ir,
    data: Vec<u8>,
}

impl Writer {
    fn constant(&mut self, name: &str, element: Element, dims: &[usize], bytes: &[u8]) -> Out {
        let data = vec![
            ("element_type", element.0.to_owned()),
            ("shape", dims.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
            ("offset", self.data.len().to_string()),
            ("size", bytes.len().to_string()),
        ];
        self.data.extend(bytes);
        self.ir.layer(name, ("Const", 1), data, &[], &[element])[0]
    }

    fn bytes(&mut self, name: &str, bytes: Vec<u8>) -> Out {
        self.constant(name, Element::U8, &[bytes.len()], &bytes)
    }

    fn integers(&mut self, name: &str, dims: &[usize], values: &[i32]) -> Out {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, Element::I32, dims, &bytes)
    }

    fn long(&mut self, name: &str, value: i64) -> Out {
        self.constant(name, Element::I64, &[], &value.to_le_bytes())
    }

    /// Where each text begins and ends, and all of them behind each other.
    fn strings(&mut self, name: &str, texts: &[Vec<u8>]) -> [Out; 3] {
        let (mut begins, mut ends, mut all) = (Vec::new(), Vec::new(), Vec::new());
        for text in texts {
            begins.push(all.len() as i32);
            all.extend(text);
            ends.push(all.len() as i32);
        }
        [
            self.integers(&format!("{name}/begins"), &[texts.len()], &begins),
            self.integers(&format!("{name}/ends"), &[texts.len()], &ends),
            self.bytes(&format!("{name}/bytes"), all),
        ]
    }

    /// Rows of one string each: where they begin and end.
    fn rows(&mut self, strings: Out) -> [Out; 2] {
        let shape = vec![("output_type", "i64".to_owned())];
        let shape = self.ir.layer("text/shape", ("ShapeOf", 3), shape, &[strings], &[Element::I64])[0];
        let (zero, one) = (self.long("zero", 0), self.long("one", 1));
        let data = vec![("batch_dims", "0".to_owned())];
        let count = self.ir.layer("text/count", ("Gather", 8), data, &[shape, zero, zero], &[Element::I64])[0];
        let data = vec![("auto_broadcast", "numpy".to_owned())];
        let after = self.ir.layer("text/count/after", ("Add", 1), data, &[count, one], &[Element::I64])[0];
        let range = || vec![("output_type", "i32".to_owned())];
        let begins = self.ir.layer("rows/begins", ("Range", 4), range(), &[zero, count, one], &[Element::I32])[0];
        [begins, self.ir.layer("rows/ends", ("Range", 4), range(), &[one, after, one], &[Element::I32])[0]]
    }

    /// Rows of numbers, padded behind to one length, and the mask of them.
    fn dense(&mut self, ids: &[Out]) {
        let numpy = || vec![("auto_broadcast", "numpy".to_owned())];
        let lengths = self.ir.layer("lengths", ("Subtract", 1), numpy(), &[ids[1], ids[0]], &[Element::I32])[0];
        let zero = self.integers("axis", &[], &[0]);
        let data = vec![("keep_dims", "false".to_owned())];
        let longest = self.ir.layer("longest", ("ReduceMax", 1), data, &[lengths, zero], &[Element::I32])[0];
        let data = vec![("pad_right", "true".to_owned()), ("m_pad_max_length", "false".into())];
        let inputs = [ids[0], ids[1], ids[2], longest, zero];
        let dense = self.ir.layer("dense", ("RaggedToDense", EXTENSION), data, &inputs, &[Element::I32, Element::BOOL]);
        let to = |element: Element| vec![("destination_type", element.0.to_owned())];
        let mask = self.ir.layer("mask/i32", ("Convert", 1), to(Element::I32), &dense[1..], &[Element::I32]);
        for (name, from) in [("input_ids", dense[0]), ("attention_mask", mask[0])] {
            let out = self.ir.layer(name, ("Convert", 1), to(Element::I64), &[from], &[Element::I64])[0];
            self.ir.export(out, name);
            self.ir.layer(format!("{name}/result"), ("Result", 1), vec![], &[out], &[]);
        }
    }

    fn made(self, name: &str) -> Made {
        Made { xml: self.ir.xml(name), data: self.data }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn characters_stand_for_the_bytes_of_byte_level_vocabularies() {
        let bytes = bytes_of_characters();
        assert_eq!((bytes.len(), bytes[&'Ġ'], bytes[&'Ċ'], bytes[&'a'], bytes[&'ÿ']), (256, b' ', b'\n', b'a', 255));
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let byte_level = json!({ "type": "ByteLevel", "add_prefix_space": false });
        let model = json!({ "type": "BPE", "vocab": { "a": 0, "b": 1, "ab": 2 }, "merges": ["a b"] });
        let added = json!([{ "id": 3, "content": "<s>", "special": true }]);
        let tokenizer = |normalizer: Value, pre: &Value| json!({ "normalizer": normalizer, "pre_tokenizer": pre, "model": model, "added_tokens": added });
        assert_eq!(models(&tokenizer(Value::Null, &byte_level), vec![]).err(), None);
        let why = |json: Value| models(&json, vec![]).err();
        assert_eq!(why(tokenizer(json!({ "type": "NFC" }), &byte_level)), Some("the normalizer has no counterpart"));
        assert_eq!(why(tokenizer(Value::Null, &json!({ "type": "Metaspace" }))), Some("the pre-tokenizer has no counterpart"));
        let mut unmerged = tokenizer(Value::Null, &byte_level);
        unmerged["model"]["merges"] = json!([]);
        assert_eq!(why(unmerged), Some("some tokens are made by no merge"));
        let mut bare = tokenizer(Value::Null, &byte_level);
        bare["added_tokens"] = json!([]);
        assert_eq!(why(bare), Some("it has no added tokens"));
        assert_eq!(why(json!({ "model": { "type": "Unigram" } })), Some("the model is no byte-level BPE that merges all words"));
    }
}
