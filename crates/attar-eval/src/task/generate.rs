//! What a model writes: answers to prompts, compared with references and with what the base writes.
//!
//! A model that is nearly as good by the likelihood of a text can still write something else. So recipes can hold a model to its answers: how many
//! of them are the base's, and how they score by BLEU, chrF, ROUGE, or by what a regular expression finds in them.

use std::path::{Path, PathBuf};

use attar_model::{Config, Tokenizer, dialogue};
use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    kind::{
        Against, Better, Column, Digits, Language, Measurements, Metric, Prepared, ReadsFiles, Sides, Task, lost, parse, schema,
    },
    record::{self, Record, plain},
    words::{self, Bleu, Chrf, Rouge},
};
use crate::{
    Error, Estimate, Generation, Result, Sampling, Window,
    runner::{Output, Progress, Rows},
    statistics::bootstrap_of,
};

pub(super) static TASK: Task = Task {
    name: "generate",
    about: "what a model answers to prompts, compared with references and with the answers of the base",
    output: Output::Logits,
    timed: false,
    metrics: METRICS,
    schema: schema::<Generate>,
    parse: parse::<Generate>,
    counted: "prompts answered",
    count: "/prompts",
    parts: None,
};

/// A metric that is a share, and has a column.
const fn shared(name: &'static str, about: &'static str, against: Against, at: &'static str, head: &'static str) -> Metric {
    Metric {
        name,
        about,
        unit: "",
        better: Better::Higher,
        against,
        at,
        base: None,
        loss: None,
        perfect: 1.0,
        random: None,
        column: Some(Column { head, digits: Digits::Fixed(3) }),
    }
}

const fn column(head: &'static str, digits: usize) -> Option<Column> {
    Some(Column { head, digits: Digits::Fixed(digits) })
}

/// A metric of answers and references, of which the base has its own value.
macro_rules! referenced {
    ($name:literal, $about:literal, $field:literal, $perfect:literal, $column:expr) => {
        Metric {
            base: Some(concat!("/against_base/by_reference/", $field)),
            perfect: $perfect,
            loss: Some(|m| lost(m, concat!("/by_reference/", $field), concat!("/against_base/by_reference/", $field), None)),
            column: $column,
            ..shared($name, $about, Against::Nothing, concat!("/by_reference/", $field), "")
        }
    };
}

static METRICS: &[Metric] = &[
    shared(
        "same-answers",
        "share of answers that are the baseline's, token by token",
        Against::Base,
        "/against_base/same_answers",
        "same answers",
    ),
    Metric {
        column: None,
        ..shared(
            "same-tokens",
            "mean share of an answer's tokens in front of the first that is not the baseline's",
            Against::Base,
            "/against_base/same_tokens",
            "",
        )
    },
    shared(
        "similarity",
        "mean chrF of an answer with the baseline's as its reference, from 0 to 1",
        Against::Base,
        "/against_base/similarity",
        "similarity",
    ),
    referenced!(
        "exact-match",
        "share of answers that are a reference, or in which `extract` finds what it finds in one",
        "exact_match",
        1.0,
        column("exact", 3)
    ),
    referenced!("bleu", "BLEU of the answers, by the references; sacrebleu's settings", "bleu", 100.0, column("BLEU", 2)),
    referenced!("chrf", "chrF of the answers, by the references; sacrebleu's settings", "chrf", 100.0, None),
    referenced!("rouge1", "mean ROUGE-1 F-measure of the answers, by the references", "rouge1", 1.0, None),
    referenced!("rouge2", "mean ROUGE-2 F-measure of the answers, by the references", "rouge2", 1.0, None),
    referenced!("rouge-l", "mean ROUGE-L F-measure of the answers, by the references", "rouge_l", 1.0, column("ROUGE-L", 3)),
    Metric {
        name: "agreement-answers",
        about: "share of answers that are not those of the reference on the same artifact",
        unit: "",
        better: Better::Lower,
        against: Against::Sibling,
        at: "/agreement/other_answers",
        base: None,
        loss: None,
        perfect: 0.0,
        random: None,
        column: Some(Column { head: "other than reference", digits: Digits::Fixed(3) }),
    },
];

/// Fields that hold a prompt or its references where settings do not say it.
const PROMPTS: &[&str] = &["prompt", "question", "centerpiece", "instruction", "input", "document", "source"];
const REFERENCES: &[&str] = &["reference", "references", "answer", "correct_options", "target", "summary", "output"];

/// Prompts that ship with attar: what people ask models on devices.
pub const SHIPPED: &str = include_str!("../../../../evals/prompts.jsonl");

/// How they are called in messages.
const SHIPPED_AS: &str = "attar's own prompts";

/// Prompts that a model answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Generate {
    /// The prompts: JSON objects, one a line or in a list, with `messages` (a dialogue) or `prompt` (a text), and `reference` where there is one; or,
    /// as `.txt`, a prompt a line. Without it, 60 prompts that ship with attar: chat, code, summaries, extraction, arithmetic, languages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Use only this many prompts, from the start of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<usize>,
    /// Tokens of an answer at most.
    #[serde(default = "answer_tokens")]
    pub tokens: usize,
    /// Template of the prompt, such as `Question: {{ question }}\nAnswer:`. Without it, the field `prompt`, or what it is called in common data sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Expression of the reference, or of a list of such. Without it, the field `reference`, or what it is called in common data sets, if there
    /// is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Whether prompts go through the model's chat template. Without it, they do if the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<bool>,
    /// A text that ends an answer, or several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub until: Vec<String>,
    /// Regular expression of what is compared in an exact match: of its last place, the first group, without `,`, `$` and a full stop behind
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extract: Option<String>,
    /// Draw tokens at random. Without it, answers are greedy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

const fn answer_tokens() -> usize {
    128
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Scores {
    prompts: u64,
    /// Tokens that were written.
    tokens: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by_reference: Option<ByReference>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    against_base: Option<AgainstBase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
    answers: Vec<Told>,
}

/// Answers and the references that some prompts have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ByReference {
    /// With a reference.
    prompts: u64,
    exact_match: Estimate,
    bleu: Estimate,
    bleu_signature: String,
    chrf: Estimate,
    chrf_signature: String,
    rouge1: Estimate,
    rouge2: Estimate,
    rouge_l: Estimate,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct AgainstBase {
    same_answers: Estimate,
    same_tokens: Estimate,
    similarity: Estimate,
    /// Tokens in front of the first that differs, or of the whole answer where none does.
    first_divergence: Estimate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by_reference: Option<ByReference>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Agreement {
    other_answers: Estimate,
}

/// A prompt with its answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Told {
    prompt: String,
    answer: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    baseline: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    references: Vec<String>,
}

impl ReadsFiles for Generate {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        self.data.iter().cloned().collect()
    }

    fn check(&self, config: &Config) -> Result<()> {
        let setting = |key, found, wanted: &str| Err(Error::Setting { key, found, wanted: wanted.into() });
        if self.prompts == Some(0) {
            return setting("prompts", 0, "expected 1 or more");
        }
        if self.tokens == 0 {
            return setting("tokens", 0, "expected 1 or more");
        }
        if let Some(context) = config.context.filter(|context| self.tokens >= *context) {
            let wanted = format!("the model's context is {context} tokens, prompts included");
            return Err(Error::Setting { key: "tokens", found: self.tokens, wanted });
        }
        if self.until.iter().any(String::is_empty) {
            return Err(Error::Template {
                key: "until",
                reason: "it is an empty text, which would end every answer at once".into(),
            });
        }
        self.prompt.iter().try_for_each(|template| record::check_template("prompt", template))?;
        self.reference.iter().try_for_each(|expression| record::check_expression("reference", expression))?;
        let extract = self.extract.as_deref().map(Regex::new).transpose();
        extract.map_err(|error| Error::Template { key: "extract", reason: error.to_string() })?;
        let Some(sampling) = &self.sampling else { return Ok(()) };
        let refused = |key, reason: &str| Err(Error::Template { key, reason: reason.into() });
        if !(sampling.temperature > 0.0 && sampling.temperature.is_finite()) {
            return refused("sampling", "`temperature` is a number above 0; leave `sampling` out for greedy answers");
        }
        match sampling.top_p {
            Some(share) if !(share > 0.0 && share <= 1.0) => refused("sampling", "`top_p` is above 0, and at most 1"),
            _ => Ok(()),
        }
    }

    fn longest(&self) -> Option<usize> {
        None
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        self.check(language.config)?;
        let mut records = self.records()?;
        records.truncate(self.prompts.unwrap_or(usize::MAX));
        if records.is_empty() {
            let path = self.data.clone().unwrap_or_else(|| SHIPPED_AS.into());
            return Err(Error::FewRecords { path, found: 0, wanted: 1 });
        }
        if self.chat == Some(true) && language.chat.is_none() {
            return Err(Error::NoChat { key: "chat" });
        }
        let mut prompts = Vec::with_capacity(records.len());
        let mut windows = Vec::with_capacity(records.len());
        for record in &records {
            let (shown, tokens) = self.prompt(record, language)?;
            if tokens.is_empty() {
                return Err(record.place.wrong("the prompt has no tokens"));
            }
            if let Some(context) = language.config.context.filter(|context| tokens.len() + self.tokens > *context) {
                let reason = format!(
                    "the prompt's {} tokens and an answer of {} are more than the model's context of {context}",
                    tokens.len(),
                    self.tokens
                );
                return Err(record.place.wrong(reason));
            }
            prompts.push(Prompt { shown, references: self.references(record)? });
            windows.push(Window { scored: tokens.len() - 1..tokens.len(), tokens });
        }
        Ok(Box::new(Prompts {
            how: Generation { limit: self.tokens, stop: language.config.eos.clone(), sampling: self.sampling.clone() },
            until: self.until.clone(),
            extract: self.extract.as_deref().map(|extract| Regex::new(extract).expect("it was checked")),
            tokenizer: language.tokenizer.clone(),
            prompts,
            windows,
        }))
    }
}

impl Generate {
    fn records(&self) -> Result<Vec<Record>> {
        match &self.data {
            None => record::records_of(Path::new(SHIPPED_AS), SHIPPED),
            Some(path) if path.extension().is_some_and(|extension| extension == "txt") => record::lines(path, PROMPTS[0]),
            Some(path) => record::records(path),
        }
    }

    /// A prompt as people read it, and its tokens.
    fn prompt(&self, record: &Record, language: &Language<'_>) -> Result<(String, Vec<u32>)> {
        let chat = language.chat.filter(|_| self.chat != Some(false));
        let messages = match (&self.prompt, record.fields.get("messages")) {
            (Some(template), _) => Err(record.text("prompt", template)?),
            (None, Some(messages)) => Ok(messages.clone()),
            (None, None) => {
                let text = record.first(PROMPTS).and_then(|(_, value)| plain(value));
                Err(text
                    .ok_or_else(|| record.place.wrong("there is no `messages` and no `prompt`; say where it is with `prompt`"))?)
            }
        };
        let shown = match &messages {
            Ok(messages) => dialogue(messages).ok_or_else(|| {
                record.place.wrong("`messages` is a list of messages, each with a `role` and a text as its `content`")
            })?,
            Err(text) => text.clone(),
        };
        let tokens = match (chat, messages) {
            (Some(chat), messages) => {
                let messages = messages.unwrap_or_else(|text| json!([{ "role": "user", "content": text }]));
                let text = chat
                    .render_for_answer(&messages)
                    .map_err(|reason| record.place.wrong(format!("the model's chat template refuses it: {reason}")))?;
                language.tokenizer.encode(&text)?
            }
            (None, _) => language.tokenizer.encode_prompt(&shown)?,
        };
        Ok((shown, tokens))
    }

    fn references(&self, record: &Record) -> Result<Vec<String>> {
        let found = match &self.reference {
            Some(expression) => record.value("reference", expression)?,
            None => match record.first(REFERENCES) {
                Some((_, value)) => value.clone(),
                None => return Ok(Vec::new()),
            },
        };
        let all = if let Value::Array(all) = found { all } else { vec![found] };
        let texts = all.iter().map(|one| plain(one).ok_or_else(|| record.place.wrong(format!("the reference {one} is no text"))));
        texts.collect()
    }
}

#[derive(Debug)]
struct Prompt {
    shown: String,
    references: Vec<String>,
}

/// Window `i` is prompt `i`.
struct Prompts {
    how: Generation,
    until: Vec<String>,
    extract: Option<Regex>,
    tokenizer: Tokenizer,
    prompts: Vec<Prompt>,
    windows: Vec<Window>,
}

impl std::fmt::Debug for Prompts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Prompts({})", self.prompts.len())
    }
}

/// An answer, as tokens without the one that stopped it, and as a text.
struct Answer {
    tokens: Vec<u32>,
    text: String,
}

impl Prepared for Prompts {
    fn windows(&self) -> &[Window] {
        &self.windows
    }

    fn generation(&self) -> Option<&Generation> {
        Some(&self.how)
    }

    fn key(&self) -> Vec<u8> {
        let references: Vec<&[String]> = self.prompts.iter().map(|prompt| &prompt.references[..]).collect();
        let shown: Vec<&str> = self.prompts.iter().map(|prompt| prompt.shown.as_str()).collect();
        let extract = self.extract.as_ref().map(Regex::as_str);
        let Generation { limit, stop, sampling } = &self.how;
        json!([references, shown, extract, self.until, limit, stop, sampling]).to_string().into_bytes()
    }

    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements> {
        let model = self.answers(sides.model, progress)?;
        let quiet: Progress<'_> = &|_, _| {};
        let base = sides.base.as_mut().map(|base| self.answers(*base, quiet)).transpose()?;
        let sibling = sides.sibling.as_mut().map(|sibling| self.answers(*sibling, quiet)).transpose()?;
        let told = |(at, answer): (usize, &Answer)| Told {
            prompt: self.prompts[at].shown.clone(),
            answer: answer.text.clone(),
            baseline: base.as_ref().map(|base| base[at].text.clone()),
            references: self.prompts[at].references.clone(),
        };
        Ok(Measurements::of(&Scores {
            prompts: self.prompts.len() as u64,
            tokens: model.iter().map(|answer| answer.tokens.len() as u64).sum(),
            by_reference: self.by_reference(&model),
            against_base: base.as_ref().map(|base| self.against(&model, base)),
            agreement: sibling.map(|sibling| {
                let other = model.iter().zip(&sibling).map(|(own, other)| f64::from(own.tokens != other.tokens));
                Agreement { other_answers: mean(other) }
            }),
            answers: model.iter().enumerate().map(told).collect(),
        }))
    }

    fn perfect(&self, _: usize, _: usize, width: usize) -> Vec<f32> {
        vec![0.0; width]
    }

    fn perfect_answer(&self, window: usize) -> Vec<u32> {
        let reference = self.prompts[window].references.first().map_or("", String::as_str);
        let stop = self.how.stop.first().copied();
        self.tokenizer.encode(reference).unwrap_or_default().into_iter().chain(stop).collect()
    }
}

impl Prompts {
    fn answers(&self, side: &mut dyn Rows, progress: Progress<'_>) -> Result<Vec<Answer>> {
        let one = |window| {
            let mut tokens = side.answer(window)?;
            if tokens.last().is_some_and(|last| self.how.stop.contains(last)) {
                tokens.pop();
            }
            let mut text = self.tokenizer.decode(&tokens)?;
            if let Some(end) = self.until.iter().filter_map(|until| text.find(until)).min() {
                text.truncate(end);
            }
            progress(window as u64 + 1, self.windows.len() as u64);
            Ok(Answer { tokens, text: text.trim().to_owned() })
        };
        (0..self.windows.len()).map(one).collect()
    }

    fn against(&self, model: &[Answer], base: &[Answer]) -> AgainstBase {
        let pairs = || model.iter().zip(base).map(|(own, base)| (&own.tokens, &base.tokens));
        let equal = |(own, base): (&Vec<u32>, &Vec<u32>)| own.iter().zip(base).take_while(|(a, b)| a == b).count();
        let share = |(own, base): (&Vec<u32>, &Vec<u32>)| match own.len().max(base.len()) {
            0 => 1.0,
            longer => equal((own, base)) as f64 / longer as f64,
        };
        let similar = |(own, base): (&Answer, &Answer)| match own.text == base.text {
            true => 1.0,
            false => Chrf::of(&own.text, &[&base.text]).score() / 100.0,
        };
        AgainstBase {
            same_answers: mean(pairs().map(|(own, base)| f64::from(own == base))),
            same_tokens: mean(pairs().map(share)),
            similarity: mean(model.iter().zip(base).map(similar)),
            first_divergence: mean(pairs().map(|pair| equal(pair) as f64)),
            by_reference: self.by_reference(base),
        }
    }

    fn by_reference(&self, answers: &[Answer]) -> Option<ByReference> {
        let pairs: Vec<(&str, Vec<&str>)> = answers
            .iter()
            .zip(&self.prompts)
            .filter(|(_, prompt)| !prompt.references.is_empty())
            .map(|(answer, prompt)| (answer.text.as_str(), prompt.references.iter().map(|text| text.trim()).collect()))
            .collect();
        if pairs.is_empty() {
            return None;
        }
        let rouge: Vec<Rouge> = pairs.iter().map(|(text, references)| Rouge::of(text, references)).collect();
        let matches = |(text, references): &(&str, Vec<&str>)| {
            let found = self.extracted(text);
            f64::from(found.is_some() && references.iter().any(|reference| self.extracted_or_whole(reference) == found))
        };
        let bleu: Vec<Bleu> = pairs.iter().map(|(text, references)| Bleu::of(text, references)).collect();
        let chrf: Vec<Chrf> = pairs.iter().map(|(text, references)| Chrf::of(text, references)).collect();
        Some(ByReference {
            prompts: pairs.len() as u64,
            exact_match: mean(pairs.iter().map(matches)),
            bleu: of_corpus(&bleu, |all| all.iter().copied().sum::<Bleu>().score()),
            bleu_signature: words::BLEU.into(),
            chrf: of_corpus(&chrf, |all| all.iter().copied().sum::<Chrf>().score()),
            chrf_signature: words::CHRF.into(),
            rouge1: mean(rouge.iter().map(|rouge| rouge.one)),
            rouge2: mean(rouge.iter().map(|rouge| rouge.two)),
            rouge_l: mean(rouge.iter().map(|rouge| rouge.longest)),
        })
    }

    /// What is compared of a text, if it is there.
    fn extracted(&self, text: &str) -> Option<String> {
        let Some(extract) = &self.extract else { return Some(text.to_owned()) };
        let last = extract.captures_iter(text).last()?;
        let found = last.get(1).or_else(|| last.get(0))?.as_str();
        Some(found.replace([',', '$'], "").trim_end_matches('.').to_owned())
    }

    /// The same of a reference, which may be what is looked for already.
    fn extracted_or_whole(&self, reference: &str) -> Option<String> {
        self.extracted(reference).or_else(|| Some(reference.replace([',', '$'], "").trim_end_matches('.').to_owned()))
    }
}

/// Prompts are independent.
fn mean(of: impl Iterator<Item = f64>) -> Estimate {
    Estimate::mean(&of.map(|x| vec![x]).collect::<Vec<_>>())
}

/// The score of a corpus, with its standard error by resampling texts.
fn of_corpus<T: Copy>(texts: &[T], score: impl Fn(&[T]) -> f64) -> Estimate {
    let standard_error = (texts.len() > 1).then(|| bootstrap_of(texts, &score));
    Estimate { value: score(texts), standard_error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_prompts_are_dialogues() {
        let records = record::records_of(Path::new(SHIPPED_AS), SHIPPED).expect("they are JSON");
        assert_eq!(records.len(), 60);
        let mut kinds = std::collections::BTreeMap::new();
        for record in &records {
            assert!(dialogue(&record.fields["messages"]).is_some(), "{record:?}");
            *kinds.entry(record.fields["kind"].as_str().expect("a text")).or_insert(0) += 1;
        }
        assert_eq!(kinds.into_keys().collect::<Vec<_>>(), ["arithmetic", "chat", "code", "extraction", "language", "summary"]);
    }

    #[test]
    fn the_last_number_is_what_is_compared() {
        let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/models/shakespeare-1m/tokenizer.json");
        let prompts = Prompts {
            how: Generation::greedy(1, &[]),
            until: Vec::new(),
            extract: Some(Regex::new(r"(-?[$0-9.,]{2,}|-?[0-9]+)").expect("it is one")),
            tokenizer: Tokenizer::open(&tokenizer).expect("it is in the repository"),
            prompts: Vec::new(),
            windows: Vec::new(),
        };
        let found = |text| prompts.extracted(text);
        assert_eq!(found("She had 5, and now $1,234.50.").as_deref(), Some("1234.50"));
        assert_eq!((found("none"), prompts.extracted_or_whole("none").as_deref()), (None, Some("none")));
    }
}
