//! Multiple choice: the option whose text is the likeliest after the question is the model's answer.
//!
//! Log-likelihoods, and the two ways to choose by them, are those of EleutherAI's lm-evaluation-harness (Gao et al. 2021): `acc` takes the
//! likeliest option, `acc-norm` the likeliest by the byte.

use std::{collections::BTreeSet, path::PathBuf};

use attar_model::{Config, Tokenizer};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    kind::{
        Against, Better, Column, Digits, Language, Measurements, Metric, Prepared, ReadsFiles, SIDES, Sides, Task, lost, parse,
        schema,
    },
    perplexity::score::Normalizer,
    record::{self, Record, plain},
};
use crate::{
    Error, Estimate, Result, Window,
    runner::{Output, Progress, Rows, numbers},
    statistics::number,
};

pub(super) static TASK: Task = Task {
    name: "choice",
    about: "which options of multiple-choice questions a model finds the likeliest",
    output: Output::Logits,
    timed: false,
    metrics: METRICS,
    schema: schema::<Choice>,
    parse: parse::<Choice>,
    counted: "questions answered",
    count: "/questions",
    parts: None,
};

static METRICS: &[Metric] = &[
    Metric {
        name: "acc",
        about: "share of questions whose likeliest option is right",
        unit: "",
        better: Better::Higher,
        against: Against::Nothing,
        at: "/acc",
        base: Some("/against_base/acc"),
        loss: Some(|m| lost(m, "/acc", "/against_base/acc", Some("/against_base/acc_change"))),
        perfect: 1.0,
        random: None,
        column: Some(Column { head: "acc", digits: Digits::Fixed(4) }),
    },
    Metric {
        name: "acc-norm",
        about: "share of questions whose likeliest option by the byte is right",
        unit: "",
        better: Better::Higher,
        against: Against::Nothing,
        at: "/acc_norm",
        base: Some("/against_base/acc_norm"),
        loss: Some(|m| lost(m, "/acc_norm", "/against_base/acc_norm", Some("/against_base/acc_norm_change"))),
        perfect: 1.0,
        random: None,
        column: Some(Column { head: "acc-norm", digits: Digits::Fixed(4) }),
    },
    Metric {
        name: "acc-change",
        about: "`acc` minus the baseline's, with the standard error of paired answers",
        unit: "",
        better: Better::Higher,
        against: Against::Base,
        at: "/against_base/acc_change",
        base: None,
        loss: None,
        perfect: 0.0,
        random: None,
        column: Some(Column { head: "change", digits: Digits::Fixed(4) }),
    },
    Metric {
        name: "flips",
        about: "share of questions that are answered otherwise than by the baseline, rightly or not",
        unit: "",
        better: Better::Lower,
        against: Against::Base,
        at: "/against_base/flips",
        base: None,
        loss: None,
        perfect: 0.0,
        random: None,
        column: Some(Column { head: "flips", digits: Digits::Fixed(4) }),
    },
    Metric {
        name: "agreement-likelihood",
        about: "largest difference between an option's log-likelihood by the engine and by the reference",
        unit: "nats",
        better: Better::Lower,
        against: Against::Sibling,
        at: "/agreement/max_difference",
        base: None,
        loss: None,
        perfect: 0.0,
        random: None,
        column: Some(Column { head: "max difference", digits: Digits::Exponent }),
    },
];

/// Fields that hold the question, the options and the right one where settings do not say it: those of common data sets.
const QUESTIONS: &[&str] = &["question", "centerpiece", "question_stem", "ctx", "goal", "query", "prompt"];
const OPTIONS: &[&str] = &["options", "choices", "endings"];
const ANSWERS: &[&str] = &["answer", "correct_options_idx", "answerKey", "label", "gold", "target"];

/// Multiple-choice questions, and how they are asked. Templates are Jinja over the fields of a record, as in lm-evaluation-harness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Choice {
    /// The questions: JSON objects, one a line or in a list.
    pub data: PathBuf,
    /// Use only this many questions, from the start of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub questions: Option<usize>,
    /// Template of what the options follow, such as `Question: {{ question }}\nAnswer:`. Without it, the field `question`, or what it is called in common
    /// data sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Expression of the list of options, such as `choices.text`. Without it, the field `options`, `choices` or `endings`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// Expression of the right option: its index from 0, its letter or label, its text, or a list of such. Without it, the field `answer`, or what it
    /// is called in common data sets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// Template of what is scored after each option, where options end the prompt, as in WinoGrande. Without it, options are scored
    /// themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<String>,
    /// Between the prompt and what is scored.
    #[serde(default = "space")]
    pub delimiter: String,
    /// Questions with their answers in front of each question.
    #[serde(default)]
    pub shots: usize,
    /// The file that the shots are the first questions of. Without it, they are the first of `data`, which are not asked then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shots_data: Option<PathBuf>,
    /// Between shots.
    #[serde(default = "blank_line")]
    pub separator: String,
    /// In front of everything.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Whether texts start with the model's begin-of-text token. Without it, as the tokenizer begins texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos: Option<bool>,
    /// Keep the log-likelihood of every option among the measurements.
    #[serde(default, skip_serializing_if = "is_false")]
    pub samples: bool,
}

fn space() -> String {
    " ".into()
}

fn blank_line() -> String {
    "\n\n".into()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Scores {
    questions: u64,
    /// Of all questions together.
    options: u64,
    acc: Estimate,
    acc_norm: Estimate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    against_base: Option<AgainstBase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    samples: Option<Vec<Sample>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct AgainstBase {
    acc: Estimate,
    acc_norm: Estimate,
    acc_change: Estimate,
    acc_norm_change: Estimate,
    flips: Estimate,
    /// Questions that are answered otherwise; of these, those that only the model has right, and those that only the base has.
    flipped: u64,
    gained: u64,
    lost: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Agreement {
    #[serde(deserialize_with = "number")]
    max_difference: f64,
    flipped: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Sample {
    log_likelihoods: Vec<f64>,
    right: BTreeSet<usize>,
}

impl ReadsFiles for Choice {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        std::iter::once(self.data.clone()).chain(self.shots_data.clone()).collect()
    }

    fn check(&self, config: &Config) -> Result<()> {
        if self.questions == Some(0) {
            return Err(Error::Setting { key: "questions", found: 0, wanted: "expected 1 or more".into() });
        }
        if self.shots == 0 && self.shots_data.is_some() {
            return Err(Error::Setting { key: "shots", found: 0, wanted: "expected 1 or more with `shots_data`".into() });
        }
        for (key, template) in [("prompt", &self.prompt), ("ending", &self.ending)] {
            template.iter().try_for_each(|template| record::check_template(key, template))?;
        }
        for (key, expression) in [("options", &self.options), ("answer", &self.answer)] {
            expression.iter().try_for_each(|expression| record::check_expression(key, expression))?;
        }
        if self.bos == Some(true) && config.bos.is_none() {
            return Err(Error::NoBos);
        }
        Ok(())
    }

    fn longest(&self) -> Option<usize> {
        None
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        self.check(language.config)?;
        let mut records = record::records(&self.data)?;
        let shots = match &self.shots_data {
            Some(path) => record::records(path)?,
            None => records.drain(..self.shots.min(records.len())).collect(),
        };
        if shots.len() < self.shots {
            let path = self.shots_data.as_ref().unwrap_or(&self.data).clone();
            return Err(Error::FewRecords { path, found: shots.len(), wanted: self.shots });
        }
        records.truncate(self.questions.unwrap_or(usize::MAX));
        if records.is_empty() {
            return Err(Error::FewRecords { path: self.data.clone(), found: 0, wanted: 1 });
        }
        let mut front = self.description.clone();
        for shot in &shots[..self.shots] {
            front += &self.shot(&self.question(shot)?);
            front += &self.separator;
        }
        let mut prepared = Questions { windows: Vec::new(), questions: Vec::new(), samples: self.samples };
        for record in &records {
            let question = self.question(record)?;
            let first = prepared.windows.len();
            for option in 0..question.options.len() {
                let (context, scored) = self.pair(&front, &question, option);
                prepared.windows.push(self.window(language, &context, &scored, record)?);
            }
            let lengths = (0..question.options.len()).map(|option| self.scored(&question, option).len()).collect();
            prepared.questions.push(Question { first, lengths, right: question.right });
        }
        Ok(Box::new(prepared))
    }
}

/// A question in words.
struct Worded {
    prompt: String,
    options: Vec<String>,
    right: BTreeSet<usize>,
    ending: Option<String>,
}

impl Choice {
    fn question(&self, record: &Record) -> Result<Worded> {
        let named = |setting: &str, names: &'static [&'static str]| {
            let known: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let reason = format!("there is no field {}; say where it is with `{setting}`", known.join(", "));
            record.first(names).map(|(_, value)| value.clone()).ok_or_else(|| record.place.wrong(reason))
        };
        let prompt = match &self.prompt {
            Some(template) => record.text("prompt", template)?,
            None => plain(&named("prompt", QUESTIONS)?).ok_or_else(|| record.place.wrong("the question is no text"))?,
        };
        let mut options = match &self.options {
            Some(expression) => record.value("options", expression)?,
            None => named("options", OPTIONS)?,
        };
        // Hugging Face's form: texts, and a label for each.
        let labels: Vec<String> = options["label"].as_array().into_iter().flatten().filter_map(plain).collect();
        if options["text"].is_array() {
            options = options["text"].take();
        }
        let text = |option: &Value| plain(option).ok_or_else(|| record.place.wrong(format!("the option {option} is no text")));
        let options = options.as_array().map(|all| all.iter().map(text).collect::<Result<Vec<String>>>()).transpose()?;
        let options = options.filter(|options| options.len() > 1);
        let options = options.ok_or_else(|| record.place.wrong("expected a list of two or more options"))?;
        let answer = match &self.answer {
            Some(expression) => record.value("answer", expression)?,
            None => named("answer", ANSWERS)?,
        };
        let all = if let Value::Array(all) = answer { all } else { vec![answer] };
        let right = all.iter().map(|answer| {
            let index = index_of(answer, &options, &labels);
            index.ok_or_else(|| record.place.wrong(format!("the answer {answer} is none of the {} options", options.len())))
        });
        let right: BTreeSet<usize> = right.collect::<Result<_>>()?;
        if right.is_empty() {
            return Err(record.place.wrong("no option is the answer"));
        }
        let ending = self.ending.as_ref().map(|template| record.text("ending", template)).transpose()?;
        Ok(Worded { prompt, options, right, ending })
    }

    /// What is scored of an option, without the delimiter.
    fn scored<'q>(&self, question: &'q Worded, option: usize) -> &'q str {
        question.ending.as_ref().unwrap_or(&question.options[option])
    }

    /// The context of an option and what is scored behind it.
    fn pair(&self, front: &str, question: &Worded, option: usize) -> (String, String) {
        let (prompt, delimiter) = (&question.prompt, &self.delimiter);
        let context = match question.ending {
            None => format!("{front}{prompt}"),
            Some(_) => format!("{front}{prompt}{}", question.options[option]),
        };
        (context, format!("{delimiter}{}", self.scored(question, option)))
    }

    /// A question with its answer.
    fn shot(&self, question: &Worded) -> String {
        let right = *question.right.first().expect("a question has an answer");
        let (context, scored) = self.pair("", question, right);
        context + &scored
    }

    /// White space at the end of a context belongs to what follows, and tokens are those of the whole: as lm-evaluation-harness does.
    fn window(&self, language: &Language<'_>, context: &str, scored: &str, record: &Record) -> Result<Window> {
        let whole = format!("{context}{scored}");
        let context = context.trim_end();
        let Language { tokenizer, config, .. } = language;
        let (mut tokens, whole) = (self.encode(tokenizer, config, context)?, self.encode(tokenizer, config, &whole)?);
        let start = tokens.len();
        if start == 0 {
            return Err(record.place.wrong("the prompt has no tokens, and the model no begin-of-text token"));
        }
        tokens.extend(whole.get(start..).unwrap_or_default());
        if tokens.len() == start {
            return Err(record.place.wrong(format!("{scored:?} adds no tokens to its prompt")));
        }
        match config.context {
            Some(longest) if tokens.len() > longest + 1 => {
                let reason = format!("the question has {} tokens, the model's context is {longest}", tokens.len());
                Err(record.place.wrong(reason))
            }
            _ => Ok(Window { scored: start - 1..tokens.len() - 1, tokens }),
        }
    }

    fn encode(&self, tokenizer: &Tokenizer, config: &Config, text: &str) -> Result<Vec<u32>> {
        Ok(match (self.bos, config.bos) {
            (None, _) => tokenizer.encode_prompt(text)?,
            (Some(true), Some(bos)) => std::iter::once(bos).chain(tokenizer.encode(text)?).collect(),
            (Some(_), _) => tokenizer.encode(text)?,
        })
    }
}

/// The option that an answer means.
fn index_of(answer: &Value, options: &[String], labels: &[String]) -> Option<usize> {
    let within = |index: usize| (index < options.len()).then_some(index);
    if let Some(index) = answer.as_u64() {
        return within(usize::try_from(index).ok()?);
    }
    let text = answer.as_str()?.trim();
    let among = |all: &[String]| all.iter().position(|one| one == text);
    let letter = || match text.as_bytes() {
        [letter @ b'A'..=b'Z'] => within((letter - b'A') as usize),
        _ => None,
    };
    among(labels).or_else(|| among(options)).or_else(letter).or_else(|| within(text.parse().ok()?))
}

/// A question with windows for its options, in order.
#[derive(Debug)]
struct Question {
    first: usize,
    /// Bytes of what is scored.
    lengths: Vec<usize>,
    right: BTreeSet<usize>,
}

#[derive(Debug)]
struct Questions {
    windows: Vec<Window>,
    questions: Vec<Question>,
    samples: bool,
}

/// Rows of logits that are held at once.
const ROWS: usize = 256;

/// The logit of the right token in [`Prepared::perfect`]; others are 0.
const CERTAIN: f32 = 60.0;

impl Prepared for Questions {
    fn windows(&self) -> &[Window] {
        &self.windows
    }

    fn key(&self) -> Vec<u8> {
        let words = |question: &Question| -> Vec<u64> {
            let numbers = [&question.lengths[..], &question.right.iter().copied().collect::<Vec<_>>()];
            numbers.iter().flat_map(|all| std::iter::once(all.len()).chain(all.iter().copied())).map(|n| n as u64).collect()
        };
        let bytes = self.questions.iter().flat_map(words).flat_map(u64::to_le_bytes);
        bytes.chain([u8::from(self.samples)]).collect()
    }

    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements> {
        let [own, bases, siblings] = SIDES;
        let model = self.likelihoods(sides.model, own, progress)?;
        let quiet: Progress<'_> = &|_, _| {};
        let base = sides.base.as_mut().map(|base| self.likelihoods(*base, bases, quiet)).transpose()?;
        let sibling = sides.sibling.as_mut().map(|sibling| self.likelihoods(*sibling, siblings, quiet)).transpose()?;
        Ok(Measurements::of(&self.scores(&model, base.as_deref(), sibling.as_deref())))
    }

    /// The right options are certain, and no other is.
    fn perfect(&self, window: usize, position: usize, width: usize) -> Vec<f32> {
        let mut logits = vec![0.0; width];
        let question = &self.questions[self.questions.partition_point(|question| question.first <= window) - 1];
        if let Some(next) =
            self.windows[window].tokens.get(position + 1).filter(|_| question.right.contains(&(window - question.first)))
        {
            logits[*next as usize] = CERTAIN;
        }
        logits
    }
}

impl Questions {
    /// Of what is scored of each option.
    fn likelihoods(&self, side: &mut dyn Rows, whose: &'static str, progress: Progress<'_>) -> Result<Vec<f64>> {
        let mut logits = Vec::new();
        let mut all = Vec::with_capacity(self.windows.len());
        for (at, window) in self.windows.iter().enumerate() {
            let mut sum = 0.0;
            for start in window.scored.clone().step_by(ROWS) {
                let part = start..(start + ROWS).min(window.scored.end);
                let vocabulary = numbers(side, whose, at, part.clone(), &mut logits)?;
                let targets = &window.tokens[part.start + 1..part.end + 1];
                if let Some(token) = targets.iter().find(|token| **token as usize >= vocabulary) {
                    return Err(Error::Token { token: *token, vocabulary });
                }
                let rows = logits.par_chunks(vocabulary).zip(targets);
                let losses =
                    rows.map_init(Vec::new, |scratch, (row, target)| Normalizer::of(row, scratch).loss(row[*target as usize]));
                sum -= losses.collect::<Vec<f64>>().iter().sum::<f64>();
            }
            all.push(sum);
            progress(at as u64 + 1, self.windows.len() as u64);
        }
        Ok(all)
    }

    fn scores(&self, model: &[f64], base: Option<&[f64]>, sibling: Option<&[f64]>) -> Scores {
        let of_model = self.answers(model);
        let against_base = base.map(|base| {
            let of_base = self.answers(base);
            let pairs = || of_model.iter().zip(&of_base);
            let count = |which: fn(bool, bool) -> bool| {
                pairs().filter(|(a, b)| a.chosen != b.chosen && which(a.acc, b.acc)).count() as u64
            };
            AgainstBase {
                acc: share(of_base.iter().map(|a| a.acc)),
                acc_norm: share(of_base.iter().map(|a| a.acc_norm)),
                acc_change: mean(pairs().map(|(a, b)| f64::from(a.acc) - f64::from(b.acc))),
                acc_norm_change: mean(pairs().map(|(a, b)| f64::from(a.acc_norm) - f64::from(b.acc_norm))),
                flips: share(pairs().map(|(a, b)| a.chosen != b.chosen)),
                flipped: count(|_, _| true),
                gained: count(|own, base| own && !base),
                lost: count(|own, base| base && !own),
            }
        });
        let agreement = sibling.map(|sibling| Agreement {
            max_difference: model.iter().zip(sibling).fold(0.0, |most, (a, b)| f64::max(most, (a - b).abs())),
            flipped: of_model.iter().zip(self.answers(sibling)).filter(|(a, b)| a.chosen != b.chosen).count() as u64,
        });
        let sample = |question: &Question| Sample {
            log_likelihoods: model[question.first..question.first + question.lengths.len()].to_vec(),
            right: question.right.clone(),
        };
        Scores {
            questions: self.questions.len() as u64,
            options: self.windows.len() as u64,
            acc: share(of_model.iter().map(|a| a.acc)),
            acc_norm: share(of_model.iter().map(|a| a.acc_norm)),
            against_base,
            agreement,
            samples: self.samples.then(|| self.questions.iter().map(sample).collect()),
        }
    }

    fn answers(&self, likelihoods: &[f64]) -> Vec<Answer> {
        let answer = |question: &Question| {
            let of_options = &likelihoods[question.first..question.first + question.lengths.len()];
            let by_byte: Vec<f64> =
                of_options.iter().zip(&question.lengths).map(|(sum, length)| sum / (*length).max(1) as f64).collect();
            let (chosen, by_byte) = (likeliest(of_options), likeliest(&by_byte));
            Answer { chosen, acc: question.right.contains(&chosen), acc_norm: question.right.contains(&by_byte) }
        };
        self.questions.iter().map(answer).collect()
    }
}

struct Answer {
    chosen: usize,
    acc: bool,
    acc_norm: bool,
}

/// The first of the largest.
fn likeliest(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, at| if values[at] > values[best] { at } else { best })
}

fn share(of: impl Iterator<Item = bool>) -> Estimate {
    mean(of.map(f64::from))
}

/// Questions are independent.
fn mean(of: impl Iterator<Item = f64>) -> Estimate {
    Estimate::mean(&of.map(|x| vec![x]).collect::<Vec<_>>())
}
