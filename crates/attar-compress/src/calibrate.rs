//! Calibration data: a text file as windows of tokens.

use std::path::{Path, PathBuf};

use attar_model::{ChatTemplate, Config, Encoder, Tokenizer};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, SplitMix64, lines};

/// The text whose activations are observed: one, several, or attar's own mixture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// A UTF-8 text file. Without it and without `sources`, the text is attar's own mixture of prose, chat, code, tables and languages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Several texts in place of one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<TextSource>,
    /// Number of windows to draw.
    #[serde(default = "default_samples")]
    pub samples: usize,
    /// Tokens per window.
    #[serde(default = "default_length")]
    pub length: usize,
    /// Seed for drawing the windows.
    #[serde(default)]
    pub seed: u64,
}

/// One of several texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct TextSource {
    /// A UTF-8 text file, or with `field` or `messages` a file of JSON objects, one a line (JSONL).
    pub path: PathBuf,
    /// Which text of each JSON object to take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Which dialogue of each JSON object to take; the model's own chat template makes texts of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub messages: Option<String>,
    /// Its share of the windows, in proportion to those of the others.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// Attar's own texts: a name, a share of the windows in hundredths, and the text.
const MIXTURE: [(&str, f64, &str); 5] = [
    ("prose", 35.0, include_str!("../../../calibration/prose.txt")),
    ("chat", 20.0, include_str!("../../../calibration/chat.jsonl")),
    ("code", 20.0, include_str!("../../../calibration/code.txt")),
    ("tables", 10.0, include_str!("../../../calibration/tables.txt")),
    ("languages", 15.0, include_str!("../../../calibration/languages.txt")),
];

/// A text as tokens.
struct Text {
    name: String,
    weight: f64,
    tokens: Vec<u32>,
}

/// Windows to observe, and where they come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Windows {
    /// Of tokens, all of one length.
    pub windows: Vec<Vec<u32>>,
    /// Names of texts, with the numbers of their windows.
    pub of: Vec<(String, usize)>,
}

/// Tokens of the longest window, and windows, that a machine could take.
const LONGEST: usize = 1 << 20;
const MOST: usize = 1 << 24;

fn default_samples() -> usize {
    128
}

pub(crate) fn default_length() -> usize {
    512
}

impl Calibration {
    /// The files that it reads.
    pub fn files(&self) -> Vec<PathBuf> {
        self.path.iter().cloned().chain(self.sources.iter().map(|source| source.path.clone())).collect()
    }

    /// Whether it takes dialogues that the model's own chat template must make texts of.
    pub fn needs_chat(&self) -> bool {
        self.sources.iter().any(|source| source.messages.is_some())
    }

    /// Whether a model of that configuration can see the text so. The text is not read.
    pub fn check(&self, config: &Config) -> Result<()> {
        if let (Some(path), [_, ..]) = (&self.path, &self.sources[..]) {
            let other = format!("path = {:?}", path.display().to_string());
            return Err(Error::Contradiction { key: "sources", other, hint: "make the one text one of the sources" });
        }
        self.path.iter().try_for_each(|path| check_plain(path, "calibration"))?;
        for source in &self.sources {
            match (&source.field, &source.messages) {
                (Some(_), Some(messages)) => {
                    let hint = "a line is one text or one dialogue: leave one of them out";
                    return Err(Error::Contradiction { key: "sources", other: format!("messages = \"{messages}\""), hint });
                }
                (None, None) => check_plain(&source.path, "calibration")?,
                _ => {}
            }
            if !(source.weight > 0.0 && source.weight.is_finite()) {
                return Err(Error::Number { key: "sources", found: source.weight, wanted: "a weight above 0" });
            }
        }
        check_windows(self.samples, self.length, config)
    }

    /// Reads and tokenizes the texts, cuts each into windows and takes as many as asked for, of each its share, in the order of the texts. Several texts may
    /// have fewer windows together; a single one is an error then. `chat` is the model's template, for dialogues.
    pub fn windows(&self, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>, config: &Config) -> Result<Windows> {
        self.check(config)?;
        let texts = self.texts(tokenizer, chat)?;
        let windows: Vec<Vec<&[u32]>> = texts.iter().map(|text| text.tokens.chunks_exact(self.length).collect()).collect();
        let there: Vec<usize> = windows.iter().map(Vec::len).collect();
        let all: usize = there.iter().sum();
        if all < self.samples && (self.path.is_some() || all == 0) {
            return Err(Error::TextTooShort {
                path: self.files().first().cloned().unwrap_or_else(|| "attar's own mixture".into()),
                what: "calibration",
                tokens: texts.iter().map(|text| text.tokens.len()).sum(),
                wanted: self.samples.saturating_mul(self.length),
            });
        }
        let weights: Vec<f64> = texts.iter().map(|text| text.weight).collect();
        let mut taken = Windows::default();
        for ((text, windows), count) in texts.iter().zip(&windows).zip(shares(self.samples, &weights, &there)) {
            let mut order: Vec<usize> = (0..windows.len()).collect();
            shuffle(&mut order, self.seed);
            order.truncate(count);
            order.sort_unstable();
            taken.windows.extend(order.into_iter().map(|at| windows[at].to_vec()));
            taken.of.push((text.name.clone(), count));
        }
        Ok(taken)
    }

    fn texts(&self, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Vec<Text>> {
        if let Some(path) = &self.path {
            return Ok(vec![Text { name: path.display().to_string(), weight: 1.0, tokens: tokens_of(path, tokenizer)? }]);
        }
        if self.sources.is_empty() {
            return MIXTURE.iter().map(|(name, weight, text)| shipped(name, *weight, text, tokenizer, chat)).collect();
        }
        let text = |source: &TextSource| {
            let tokens = match (&source.field, &source.messages) {
                (Some(field), _) => lines::tokens(&source.path, field, &lines::text_of, tokenizer)?,
                (None, Some(messages)) => {
                    let chat = chat.ok_or(Error::NoChatTemplate)?;
                    lines::tokens(&source.path, messages, &|value| lines::dialogue_of(value, chat), tokenizer)?
                }
                (None, None) => tokens_of(&source.path, tokenizer)?,
            };
            Ok(Text { name: source.path.display().to_string(), weight: source.weight, tokens })
        };
        self.sources.iter().map(text).collect()
    }
}

/// One of attar's own texts. Dialogues go through the model's template, or are told by names where it has none.
fn shipped(name: &str, weight: f64, text: &str, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Text> {
    let told = |value: &serde_json::Value| {
        let turns = value.as_array().into_iter().flatten().map(|message| {
            let part = |key: &str| message[key].as_str().unwrap_or_default();
            format!("{}: {}\n", part("role"), part("content"))
        });
        turns.collect::<String>() + "\n"
    };
    let tokens = match text.starts_with("{\"messages\"") {
        true => {
            let dialogue = |value: &serde_json::Value| match chat {
                // A template may refuse what others take.
                Some(chat) => Ok(lines::dialogue_of(value, chat).unwrap_or_else(|_| told(value))),
                None => Ok(told(value)),
            };
            lines::tokens_of(text.as_bytes(), Path::new(name), "messages", &dialogue, tokenizer)?
        }
        false => {
            let mut encoder = Encoder::of(tokenizer);
            encoder.push(text)?;
            encoder.finish()?
        }
    };
    Ok(Text { name: name.into(), weight, tokens })
}

/// How many windows each text gives of `samples`, in proportion to their weights and no more than are there; what one lacks, the others give.
fn shares(samples: usize, weights: &[f64], there: &[usize]) -> Vec<usize> {
    let mut taken = vec![0; weights.len()];
    let mut left = samples.min(there.iter().sum());
    while left > 0 {
        let open: Vec<usize> = (0..weights.len()).filter(|at| taken[*at] < there[*at]).collect();
        let weight: f64 = open.iter().map(|at| weights[*at]).sum();
        let mut given = 0;
        for at in &open {
            let share = (left as f64 * weights[*at] / weight).floor() as usize;
            let more = share.min(there[*at] - taken[*at]);
            taken[*at] += more;
            given += more;
        }
        if given == 0 {
            // What is left over by rounding: one each, the heaviest first.
            let mut order = open;
            order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
            for at in order.into_iter().take(left) {
                taken[at] += 1;
                given += 1;
            }
        }
        left -= given;
    }
    taken
}

/// A file of JSON lines is no text by itself.
pub(crate) fn check_plain(path: &Path, what: &'static str) -> Result<()> {
    let lines =
        path.extension().is_some_and(|extension| ["jsonl", "ndjson"].iter().any(|known| extension.eq_ignore_ascii_case(known)));
    if lines { Err(Error::JsonLines { path: path.into(), what }) } else { Ok(()) }
}

/// Whether there can be so many windows of so many tokens for a model of that configuration.
pub(crate) fn check_windows(samples: usize, length: usize, config: &Config) -> Result<()> {
    let setting = |key, found: usize, wanted: String| Err(Error::Setting { key, found, wanted });
    let longest = config.context.unwrap_or(LONGEST).min(LONGEST);
    match (samples, length) {
        (0, _) => setting("samples", 0, "1 or more windows are taken".into()),
        (samples, _) if samples > MOST => setting("samples", samples, format!("at most {MOST} windows are taken")),
        (_, 0) => setting("length", 0, "a window has 1 or more tokens".into()),
        (_, length) if length > longest => setting("length", length, format!("the model's context is {longest} tokens")),
        _ => Ok(()),
    }
}

/// The tokens of a text.
pub(crate) fn tokens_of(path: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let unread = |source| attar_tensor::Error::Io { action: "read", path: path.into(), source };
    let mut encoder = Encoder::of(tokenizer);
    for piece in attar_tensor::text_pieces(path).map_err(unread)? {
        encoder.push(&piece.map_err(unread)?)?;
    }
    Ok(encoder.finish()?)
}

/// Fisher-Yates by SplitMix64.
pub(crate) fn shuffle(order: &mut [usize], seed: u64) {
    let mut random = SplitMix64::new(seed);
    for i in (1..order.len()).rev() {
        order.swap(i, ((u128::from(random.bits()) * (i as u128 + 1)) >> 64) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_shared_by_weight_as_far_as_they_are_there() {
        assert_eq!(shares(10, &[1.0, 1.0], &[100, 100]), [5, 5]);
        assert_eq!(shares(10, &[3.0, 1.0], &[100, 100]), [8, 2], "what rounding leaves goes to the heavier");
        assert_eq!(shares(10, &[1.0, 1.0, 2.0], &[1, 100, 2]), [1, 7, 2]);
        assert_eq!(shares(10, &[1.0, 5.0], &[2, 3]), [2, 3]);
        assert_eq!(shares(0, &[1.0], &[5]), [0]);
    }

    #[test]
    fn the_mixture_gives_every_kind_of_text() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m");
        let model = attar_model::Model::open(&folder).expect("it is in the repository");
        let text = Calibration { path: None, sources: Vec::new(), samples: 20, length: 64, seed: 0 };
        let found = text.windows(&model.tokenizer().expect("it has one"), None, &model.config).expect("it is there");
        assert_eq!(found.windows.len(), 20);
        let names: Vec<(&str, usize)> = found.of.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(names, [("prose", 7), ("chat", 4), ("code", 4), ("tables", 2), ("languages", 3)]);
    }
}
