//! Calibration data: texts as windows of tokens.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use attar_model::{ChatTemplate, Config, Encoder, Tokenizer, dialogue};
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
    /// Tokens per window [default: 512, or the model's context where that is shorter].
    #[serde(default, serialize_with = "serialize_length")]
    pub length: Option<usize>,
    /// How the documents of a text share windows. Lines of JSONL are documents, and any other text is one.
    #[serde(default)]
    pub packing: Packing,
    /// Seed for drawing the windows.
    #[serde(default)]
    pub seed: u64,
}

/// How documents share windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Packing {
    /// A window begins where a document begins, and has several documents if they fit. What does not fit begins the next window, and only its beginning
    /// fills this one. Longer documents than a window are cut.
    #[default]
    Whole,
    /// One document behind the other, cut where a window ends.
    Stream,
}

/// The default is written out: settings have every default filled in.
fn serialize_length<S: serde::Serializer>(length: &Option<usize>, to: S) -> std::result::Result<S::Ok, S::Error> {
    length.unwrap_or_else(default_length).serialize(to)
}

impl Default for Calibration {
    /// Attar's own mixture.
    fn default() -> Calibration {
        Calibration {
            path: None,
            sources: Vec::new(),
            samples: default_samples(),
            length: None,
            packing: Packing::default(),
            seed: 0,
        }
    }
}

/// One of several texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct TextSource {
    /// Where the text comes from.
    #[serde(default)]
    pub kind: SourceKind,
    /// Of `text`: a UTF-8 file, or with `field` or `messages` a file of JSON objects, one a line (JSONL).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
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

/// Where a text comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SourceKind {
    /// A file.
    #[default]
    Text,
    /// Attar's own mixture of prose, chat, code, tables and languages.
    Mixture,
    /// The float model, which continues the beginnings of attar's own texts: no data is needed.
    Generate,
}

impl SourceKind {
    fn name(self) -> &'static str {
        match self {
            SourceKind::Text => "text",
            SourceKind::Mixture => "mixture",
            SourceKind::Generate => "generate",
        }
    }
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

/// What calls the text that the model writes, in messages.
const WRITTEN: &str = "the model's own";

/// A text as tokens.
struct Text {
    name: String,
    weight: f64,
    /// The tokens of each; `None` for a text that the model writes, as long as is asked for.
    documents: Option<Vec<Vec<u32>>>,
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
        self.path.iter().chain(self.sources.iter().filter_map(|source| source.path.as_ref())).cloned().collect()
    }

    /// Tokens per window, for a model of that configuration.
    pub fn length(&self, config: &Config) -> usize {
        self.length.unwrap_or_else(|| default_length().min(config.context.unwrap_or(usize::MAX)))
    }

    /// Whether the model writes some of it.
    pub fn is_written(&self) -> bool {
        self.sources.iter().any(|source| source.kind == SourceKind::Generate)
    }

    /// How many windows are asked of each text, by name: what a text lacks, the others give.
    pub fn asked(&self) -> Vec<(String, usize)> {
        let (names, weights): (Vec<String>, Vec<f64>) = match (&self.path, &self.sources[..]) {
            (Some(path), _) => (vec![path.display().to_string()], vec![1.0]),
            (None, []) => mixture(1.0).unzip(),
            (None, sources) => sources.iter().flat_map(TextSource::names).unzip(),
        };
        let asked = shares(self.samples, &weights, &vec![usize::MAX; weights.len()]);
        names.into_iter().zip(asked).collect()
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
        self.sources.iter().try_for_each(TextSource::check)?;
        check_windows(self.samples, self.length(config), config)
    }

    /// Reads and tokenizes the texts, cuts each into windows and takes as many as asked for, of each its share, in the order of the texts. Several texts may
    /// have fewer windows together; a single one is an error then. Windows of several texts are shuffled. `chat` is the model's template, for
    /// dialogues; `write` continues beginnings of texts, each to a whole window.
    ///
    /// # Errors
    /// Of `write`; if a text cannot be read; if a single text is too short.
    pub fn windows<E: From<Error>>(
        &self,
        tokenizer: &Tokenizer,
        chat: Option<&ChatTemplate>,
        config: &Config,
        write: &dyn Fn(Vec<Vec<u32>>) -> std::result::Result<Vec<Vec<u32>>, E>,
    ) -> std::result::Result<Windows, E> {
        self.check(config)?;
        let (texts, length) = (self.texts(tokenizer, chat)?, self.length(config));
        let cut = |text: &Text| text.documents.as_ref().map(|documents| self.packing.windows(documents, length));
        let windows: Vec<Option<Vec<Vec<u32>>>> = texts.iter().map(cut).collect();
        let there: Vec<usize> = windows.iter().map(|windows| windows.as_ref().map_or(usize::MAX, Vec::len)).collect();
        let all = there.iter().fold(0, |all: usize, there| all.saturating_add(*there));
        if all < self.samples && (self.path.is_some() || all == 0) {
            let error = Error::TextTooShort {
                path: self.files().first().cloned().unwrap_or_else(|| "attar's own mixture".into()),
                what: "calibration",
                tokens: texts.iter().flat_map(|text| text.documents.iter().flatten()).map(Vec::len).sum(),
                wanted: self.samples.saturating_mul(length),
            };
            return Err(error.into());
        }
        let weights: Vec<f64> = texts.iter().map(|text| text.weight).collect();
        let mut taken = Windows::default();
        for ((text, windows), count) in texts.iter().zip(windows).zip(shares(self.samples, &weights, &there)) {
            match windows {
                Some(windows) => {
                    let mut order: Vec<usize> = (0..windows.len()).collect();
                    shuffle(&mut order, self.seed);
                    order.truncate(count);
                    order.sort_unstable();
                    taken.windows.extend(order.into_iter().map(|at| windows[at].clone()));
                }
                None => taken.windows.extend(write(beginnings(count, length, self.seed, tokenizer)?)?),
            }
            taken.of.push((text.name.clone(), count));
        }
        if texts.len() > 1 {
            // Steps take the first for one thing and the last for another.
            let mut order: Vec<usize> = (0..taken.windows.len()).collect();
            shuffle(&mut order, self.seed);
            taken.windows = order.into_iter().map(|at| std::mem::take(&mut taken.windows[at])).collect();
        }
        Ok(taken)
    }

    fn texts(&self, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Vec<Text>> {
        if let Some(path) = &self.path {
            let documents = Some(vec![tokens_of(path, tokenizer)?]);
            return Ok(vec![Text { name: path.display().to_string(), weight: 1.0, documents }]);
        }
        if self.sources.is_empty() {
            return shipped(1.0, tokenizer, chat);
        }
        let texts = self.sources.iter().map(|source| source.texts(tokenizer, chat)).collect::<Result<Vec<_>>>()?;
        Ok(texts.into_iter().flatten().collect())
    }
}

impl Packing {
    /// Windows of `length` tokens each; what is left over is left out.
    fn windows(self, documents: &[Vec<u32>], length: usize) -> Vec<Vec<u32>> {
        if self == Packing::Stream {
            return documents.concat().chunks_exact(length).map(<[u32]>::to_vec).collect();
        }
        let (mut windows, mut window): (Vec<Vec<u32>>, Vec<u32>) = Default::default();
        for document in documents {
            let mut rest = &document[..];
            while !rest.is_empty() {
                let (fits, began) = (rest.len().min(length - window.len()), !window.is_empty());
                window.extend(&rest[..fits]);
                // What does not fit beside others begins anew.
                if fits == rest.len() || !began {
                    rest = &rest[fits..];
                }
                if window.len() == length {
                    windows.push(std::mem::take(&mut window));
                }
            }
        }
        windows
    }
}

impl TextSource {
    fn check(&self) -> Result<()> {
        let refused = |other: String, hint| Err(Error::Contradiction { key: "sources", other, hint });
        match (self.kind, &self.path, &self.field, &self.messages) {
            (SourceKind::Text, None, ..) => return Err(Error::NoPath),
            (SourceKind::Text, _, Some(_), Some(messages)) => {
                let hint = "a line is one text or one dialogue: leave one of them out";
                return refused(format!("messages = \"{messages}\""), hint);
            }
            (SourceKind::Text, Some(path), None, None) => check_plain(path, "calibration")?,
            (SourceKind::Text, ..) | (_, None, None, None) => {}
            (kind, ..) => {
                let hint = "only a `text` has a `path`, a `field` and `messages`: leave them out";
                return refused(format!("kind = \"{}\"", kind.name()), hint);
            }
        }
        match self.weight > 0.0 && self.weight.is_finite() {
            true => Ok(()),
            false => Err(Error::Number { key: "sources", found: self.weight, wanted: "a weight above 0" }),
        }
    }

    /// Its texts, with the weight of each.
    fn names(&self) -> Vec<(String, f64)> {
        match (self.kind, &self.path) {
            (SourceKind::Mixture, _) => mixture(self.weight).collect(),
            (SourceKind::Text, Some(path)) => vec![(path.display().to_string(), self.weight)],
            (SourceKind::Text, None) | (SourceKind::Generate, _) => vec![(WRITTEN.into(), self.weight)],
        }
    }

    fn texts(&self, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Vec<Text>> {
        let text = |name: String, documents| vec![Text { name, weight: self.weight, documents }];
        let path = match (self.kind, &self.path) {
            (SourceKind::Mixture, _) => return shipped(self.weight, tokenizer, chat),
            (SourceKind::Generate, _) => return Ok(text(WRITTEN.into(), None)),
            (SourceKind::Text, path) => path.as_ref().ok_or(Error::NoPath)?,
        };
        let documents = match (&self.field, &self.messages) {
            (Some(field), _) => lines::documents(path, field, &lines::text_of, tokenizer)?,
            (None, Some(messages)) => {
                let chat = chat.ok_or(Error::NoChatTemplate)?;
                lines::documents(path, messages, &|value| lines::dialogue_of(value, chat), tokenizer)?
            }
            (None, None) => vec![tokens_of(path, tokenizer)?],
        };
        Ok(text(path.display().to_string(), Some(documents)))
    }
}

/// The names of attar's own texts, with their shares of a weight.
fn mixture(weight: f64) -> impl Iterator<Item = (String, f64)> {
    let all: f64 = MIXTURE.iter().map(|(_, share, _)| share).sum();
    MIXTURE.iter().map(move |(name, share, _)| ((*name).to_owned(), weight * share / all))
}

/// Attar's own texts.
fn shipped(weight: f64, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Vec<Text>> {
    let texts = mixture(weight).zip(MIXTURE);
    texts.map(|((name, weight), (.., text))| own(name, weight, text, tokenizer, chat)).collect()
}

/// Words of the beginning of a text that the model continues.
const BEGINNING: usize = 6;

/// Beginnings of `count` texts, for windows of `length` tokens: of the paragraphs of attar's own, and of as many kinds.
fn beginnings(count: usize, length: usize, seed: u64, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let of = |text: &str| -> Vec<String> {
        let paragraphs: Vec<String> = match is_chat(text) {
            true => text.lines().filter_map(asked_first).collect(),
            false => text.split("\n\n").map(|paragraph| paragraph.trim_start().to_owned()).collect(),
        };
        let long = paragraphs.iter().filter(|text| text.split_whitespace().count() > 2 * BEGINNING);
        long.map(|text| first_words(text).to_owned()).collect::<BTreeSet<_>>().into_iter().collect()
    };
    let weights: Vec<f64> = MIXTURE.iter().map(|(_, share, _)| *share).collect();
    let texts: Vec<Vec<String>> = MIXTURE.iter().map(|(.., text)| of(text)).collect();
    let mut all = Vec::new();
    for (paragraphs, share) in texts.iter().zip(shares(count, &weights, &[usize::MAX; MIXTURE.len()])) {
        let mut order: Vec<usize> = (0..paragraphs.len()).collect();
        shuffle(&mut order, seed);
        all.extend(order.iter().cycle().take(share).map(|at| paragraphs[*at].as_str()));
    }
    let tokens = |text: &&str| {
        let mut tokens = tokenizer.encode(text)?;
        tokens.truncate(length);
        Ok(tokens)
    };
    let mut found = all.iter().map(tokens).collect::<Result<Vec<Vec<u32>>>>()?;
    // A tokenizer may know nothing of a language, or of all of them.
    found.retain(|tokens| !tokens.is_empty());
    if found.is_empty() {
        let path = "the beginnings of attar's own texts".into();
        return Err(Error::TextTooShort { path, what: "calibration", tokens: 0, wanted: count.saturating_mul(length) });
    }
    Ok(found.iter().cycle().take(count).cloned().collect())
}

/// What the first message of a dialogue says.
fn asked_first(line: &str) -> Option<String> {
    let dialogue: serde_json::Value = serde_json::from_str(line).ok()?;
    dialogue["messages"].get(0)?["content"].as_str().map(Into::into)
}

/// Whether one of attar's own texts is of dialogues.
fn is_chat(text: &str) -> bool {
    text.starts_with("{\"messages\"")
}

/// The first few words of a text.
fn first_words(text: &str) -> &str {
    let mut left = BEGINNING;
    let end = text.char_indices().find(|(_, letter)| {
        left -= usize::from(letter.is_whitespace());
        left == 0
    });
    &text[..end.map_or(text.len(), |(at, _)| at)]
}

/// One of attar's own texts. Dialogues go through the model's template, or are told by names where it has none.
fn own(name: String, weight: f64, text: &str, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Result<Text> {
    let told = |value: &serde_json::Value| dialogue(value).unwrap_or_default() + "\n\n";
    let documents = match is_chat(text) {
        true => {
            let dialogue = |value: &serde_json::Value| match chat {
                // A template may refuse what others take.
                Some(chat) => Ok(lines::dialogue_of(value, chat).unwrap_or_else(|_| told(value))),
                None => Ok(told(value)),
            };
            lines::documents_of(text.as_bytes(), Path::new(&name), "messages", &dialogue, tokenizer)?
        }
        false => {
            let mut encoder = Encoder::of(tokenizer);
            encoder.push(text)?;
            vec![encoder.finish()?]
        }
    };
    Ok(Text { name, weight, documents: Some(documents) })
}

/// How many windows each text gives of `samples`, in proportion to their weights and no more than are there; what one lacks, the others give.
fn shares(samples: usize, weights: &[f64], there: &[usize]) -> Vec<usize> {
    let mut taken = vec![0; weights.len()];
    let mut left = samples.min(there.iter().fold(0, |all: usize, there| all.saturating_add(*there)));
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

    /// By the rule itself: every window begins with a document or goes on in a long one, and every document is whole in some window.
    #[test]
    fn documents_are_whole_where_they_fit() {
        let mut random = SplitMix64::new(7);
        for round in 0..200 {
            let length = 1 + (random.bits() % 40) as usize;
            let count = 1 + random.bits() % 20;
            let document = |first: u64, tokens: u64| (0..tokens).map(|at| (1000 * first + at) as u32).collect::<Vec<u32>>();
            let documents: Vec<Vec<u32>> = (0..count).map(|first| document(first, random.bits() % 60)).collect();
            let windows = Packing::Whole.windows(&documents, length);
            assert!(windows.iter().all(|window| window.len() == length), "round {round}");
            let short = documents.iter().filter(|document| (1..=length).contains(&document.len()));
            let whole =
                |document: &Vec<u32>| windows.iter().any(|window| window.windows(document.len()).any(|part| part == document));
            let missing: Vec<&Vec<u32>> = short.clone().skip_while(|document| whole(document)).collect();
            let left = missing.iter().map(|document| document.len()).sum::<usize>();
            assert!(
                left < length && !missing.iter().any(|document| whole(document)),
                "round {round}: only what is left over at the end"
            );
            for window in &windows {
                let starts = window[0] % 1000 == 0 || documents[window[0] as usize / 1000].len() > length;
                assert!(starts, "round {round}: {window:?} begins within a document that fits");
            }
            let one = documents.concat();
            assert_eq!(Packing::Whole.windows(std::slice::from_ref(&one), length), Packing::Stream.windows(&documents, length));
        }
    }

    #[test]
    fn the_mixture_gives_every_kind_of_text() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m");
        let model = attar_model::Model::open(&folder).expect("it is in the repository");
        let text = Calibration { samples: 20, length: Some(64), ..Calibration::default() };
        let write = &|_| -> Result<_> { unreachable!("nothing is to be written") };
        let found = text.windows(&model.tokenizer().expect("it has one"), None, &model.config, write).expect("it is there");
        assert_eq!(found.windows.len(), 20);
        let names: Vec<(&str, usize)> = found.of.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        assert_eq!(names, [("prose", 7), ("chat", 4), ("code", 4), ("tables", 2), ("languages", 3)]);
        let asked = text.asked();
        assert_eq!(asked, found.of, "there is enough of each");
    }

    #[test]
    fn the_model_is_given_beginnings_and_asked_for_no_more_than_its_share() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m");
        let model = attar_model::Model::open(&folder).expect("it is in the repository");
        let source = |kind| TextSource { kind, path: None, field: None, messages: None, weight: 1.0 };
        let sources = vec![source(SourceKind::Mixture), source(SourceKind::Generate)];
        let text = Calibration { sources, samples: 40, length: Some(32), ..Calibration::default() };
        let write = &|beginnings: Vec<Vec<u32>>| -> Result<_> {
            assert!(beginnings.iter().all(|tokens| (1..=32).contains(&tokens.len())));
            let distinct: std::collections::BTreeSet<_> = beginnings.iter().collect();
            assert_eq!(distinct.len(), beginnings.len(), "no two texts begin alike");
            Ok(beginnings.iter().map(|_| vec![7; 32]).collect())
        };
        let found = text.windows(&model.tokenizer().expect("it has one"), None, &model.config, write).expect("it is there");
        assert_eq!(found.windows.iter().filter(|window| window.iter().all(|token| *token == 7)).count(), 20);
        assert_eq!(found.of.last(), Some(&(WRITTEN.to_owned(), 20)));
        assert_eq!(text.asked(), found.of);
    }
}
