//! Semantic textual similarity (Agirre et al. 2012): Spearman's rank correlation between the cosines of sentence
//! embeddings and the judgements of people.
//!
//! Ranks hardly move when weights are rounded: to see what quantization does, measure `embedding-drift` as well.

use std::path::{Path, PathBuf};

use attar_model::Config;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    embedding::{self, AGREEMENT, Agreement, Embedded},
    kind::{
        Against, Better, Column, Digits, Language, Measurements, Metric, Prepared, ReadsFiles, Sides, Task, lost, parse, read,
        schema,
    },
};
use crate::{
    Error, Estimate, Result, Window,
    runner::{Output, Progress},
    statistics::bootstrap_of,
};

pub(super) static TASK: Task = Task {
    name: "sts",
    about: "how well cosines of sentence embeddings rank pairs of sentences, compared with people's judgements",
    output: Output::Embedding,
    timed: false,
    metrics: METRICS,
    schema: schema::<Sts>,
    parse: parse::<Sts>,
    counted: "pairs scored",
    count: "/pairs",
    parts: None,
};

/// How cosines rank pairs, where the scores hold it as `spearman`.
pub(super) const SPEARMAN: Metric = Metric {
    name: "spearman",
    about: "Spearman rank correlation between cosine similarities and human scores",
    unit: "",
    better: Better::Higher,
    against: Against::Nothing,
    at: "/spearman",
    base: Some("/against_base/spearman"),
    loss: Some(|m| lost(m, "/spearman", "/against_base/spearman", None)),
    perfect: 1.0,
    random: Some(|_| 0.0),
    column: Some(Column { head: "Spearman", digits: Digits::Fixed(4) }),
};

static METRICS: &[Metric] = &[SPEARMAN, AGREEMENT];

/// Pairs of sentences with a score each, as tab-separated or comma-separated values: score, sentence, sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Sts {
    /// The file: lines of score, sentence and sentence, separated by tabs (`.tsv`) or commas (`.csv`, fields may be
    /// quoted). Pairs without a score are left out.
    pub data: PathBuf,
    /// Use only this many pairs, from the start of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pairs: Option<usize>,
    /// Tokens of a sentence at most, special ones included; longer sentences are cut. Without it, what the tokenizer's
    /// file says, or the model's context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Scores {
    pairs: u64,
    spearman: Estimate,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    against_base: Option<AgainstBase>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agreement: Option<Agreement>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct AgainstBase {
    spearman: Estimate,
}

impl ReadsFiles for Sts {
    const TASK: &'static Task = &TASK;

    fn files(&self) -> Vec<PathBuf> {
        vec![self.data.clone()]
    }

    fn check(&self, config: &Config) -> Result<()> {
        if let Some(found @ 0..2) = self.pairs {
            return Err(Error::Setting { key: "pairs", found, wanted: "expected 2 or more, to have ranks".into() });
        }
        embedding::check(self.window, config)
    }

    fn longest(&self) -> Option<usize> {
        self.window
    }

    fn prepare(&self, language: &Language<'_>) -> Result<Box<dyn Prepared>> {
        self.check(language.config)?;
        let pairs = pairs(&self.data, self.pairs)?;
        let sentences: Vec<&str> = pairs.iter().flat_map(|(_, pair)| pair.iter().map(String::as_str)).collect();
        let windows = embedding::windows(language, &sentences, self.window)?;
        Ok(Box::new(Pairs { judged: pairs.into_iter().map(|(score, _)| score).collect(), windows }))
    }
}

/// A pair of sentences with its score.
pub(super) type Pair = (f64, [String; 2]);

/// The first pairs of a file, two or more.
pub(super) fn pairs(path: &Path, most: Option<usize>) -> Result<Vec<Pair>> {
    let text = read(path)?;
    let lines: Vec<Vec<String>> = match path.extension().is_some_and(|extension| extension == "csv") {
        true => comma_separated(&text),
        false => text.lines().map(|line| line.split('\t').map(Into::into).collect()).collect(),
    };
    let mut pairs = scored(path, lines)?;
    pairs.truncate(most.unwrap_or(usize::MAX));
    if pairs.len() < 2 { Err(Error::NoPairs { path: path.into(), pairs: pairs.len() }) } else { Ok(pairs) }
}

fn scored(path: &Path, lines: Vec<Vec<String>>) -> Result<Vec<Pair>> {
    let mut pairs = Vec::new();
    for (at, line) in lines.into_iter().enumerate().filter(|(_, line)| line.iter().any(|field| !field.trim().is_empty())) {
        let malformed = |fields| Error::Pair { path: path.into(), line: at + 1, fields };
        let [score, first, second] = <[String; 3]>::try_from(line).map_err(|line| malformed(line.len()))?;
        if !score.trim().is_empty() {
            let score: Option<f64> = score.trim().parse().ok().filter(|score: &f64| score.is_finite());
            pairs.push((score.ok_or_else(|| malformed(3))?, [first, second]));
        }
    }
    Ok(pairs)
}

/// Lines of fields, by RFC 4180: a field in quotes may hold commas, line breaks and doubled quotes.
fn comma_separated(text: &str) -> Vec<Vec<String>> {
    let (mut lines, mut line, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '"' if quoted && characters.peek() == Some(&'"') => field.extend(characters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => line.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                line.push(std::mem::take(&mut field).trim_end_matches('\r').into());
                lines.push(std::mem::take(&mut line));
            }
            c => field.push(c),
        }
    }
    if !field.is_empty() || !line.is_empty() {
        line.push(field);
        lines.push(line);
    }
    lines
}

/// Windows `2 i` and `2 i + 1` are the sentences of pair `i`.
#[derive(Debug)]
struct Pairs {
    judged: Vec<f64>,
    windows: Vec<Window>,
}

impl Prepared for Pairs {
    fn windows(&self) -> &[Window] {
        &self.windows
    }

    fn key(&self) -> Vec<u8> {
        self.judged.iter().flat_map(|score| score.to_le_bytes()).collect()
    }

    fn score(&self, sides: &mut Sides<'_>, progress: Progress<'_>) -> Result<Measurements> {
        let Embedded { model, base, agreement } = Embedded::of(sides, self.windows.len(), progress)?;
        Ok(Measurements::of(&Scores {
            pairs: self.judged.len() as u64,
            spearman: self.spearman(&model),
            against_base: base.map(|base| AgainstBase { spearman: self.spearman(&base) }),
            agreement,
        }))
    }

    fn perfect(&self, window: usize, _: usize, width: usize) -> Vec<f32> {
        perfect(&self.judged, window, width)
    }
}

/// Of each pair, two vectors whose angle shrinks as the judgement grows.
pub(super) fn perfect(judged: &[f64], window: usize, width: usize) -> Vec<f32> {
    let mut row = vec![0.0; width];
    let lowest = judged.iter().copied().fold(f64::INFINITY, f64::min);
    let range = judged.iter().copied().fold(f64::NEG_INFINITY, f64::max) - lowest;
    let angle = match window % 2 {
        0 => 0.0,
        _ => 0.5 * std::f64::consts::PI * (1.0 - (judged[window / 2] - lowest) / range.max(f64::MIN_POSITIVE)),
    };
    (row[0], row[1]) = (angle.cos() as f32, angle.sin() as f32);
    row
}

impl Pairs {
    fn spearman(&self, embeddings: &[Vec<f32>]) -> Estimate {
        ranked(&self.judged, embeddings)
    }
}

/// How cosines of pairs rank with what people judged of them.
pub(super) fn ranked(judged: &[f64], embeddings: &[Vec<f32>]) -> Estimate {
    let cosines = embeddings.chunks(2).map(|pair| embedding::cosine(&pair[0], &pair[1]));
    let pairs: Vec<(f64, f64)> = cosines.zip(judged.iter().copied()).collect();
    Estimate { value: spearman(&pairs), standard_error: Some(bootstrap_of(&pairs, spearman)) }
}

/// The correlation of ranks; of equal values, each has the mean of their ranks.
fn spearman(pairs: &[(f64, f64)]) -> f64 {
    let [a, b] =
        [|pair: &(f64, f64)| pair.0, |pair: &(f64, f64)| pair.1].map(|side| ranks(&pairs.iter().map(side).collect::<Vec<_>>()));
    correlation(&a, &b)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    if values.iter().any(|x| x.is_nan()) {
        return vec![f64::NAN; values.len()];
    }
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]).scan(0, |start, tied| {
        *start += tied.len();
        Some((*start - tied.len(), tied))
    }) {
        let (start, places) = tied;
        places.iter().for_each(|place| ranks[*place] = start as f64 + 0.5 * (places.len() - 1) as f64);
    }
    ranks
}

/// Pearson's.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let mean = |x: &[f64]| x.iter().sum::<f64>() / x.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut both, mut of_a, mut of_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        both += (a - mean_a) * (b - mean_b);
        of_a += (a - mean_a).powi(2);
        of_b += (b - mean_b).powi(2);
    }
    both / (of_a * of_b).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_correlation_is_that_of_scipy() {
        // scipy.stats.spearmanr([1, 2, 3, 4, 5, 5], [5, 6, 7, 8, 7, 5]).statistic
        let pairs = [(1.0, 5.0), (2.0, 6.0), (3.0, 7.0), (4.0, 8.0), (5.0, 7.0), (5.0, 5.0)];
        assert!((spearman(&pairs) - SCIPY).abs() < 1e-12, "{}", spearman(&pairs));
        assert!(spearman(&[(1.0, 2.0), (f64::NAN, 1.0)]).is_nan());
    }

    const SCIPY: f64 = 0.268_686_645_311_939_4;

    #[test]
    fn quoted_fields_hold_commas_and_quotes() {
        let lines = comma_separated("1.5,\"a, \"\"b\"\"\",c\r\n,d,e");
        assert_eq!(lines, [vec!["1.5", "a, \"b\"", "c"], vec!["", "d", "e"]]);
    }

    #[test]
    fn pairs_without_a_score_are_left_out_and_malformed_lines_named() {
        let lines =
            |text: &str| text.lines().map(|line| line.split('\t').map(Into::into).collect()).collect::<Vec<Vec<String>>>();
        let found = scored(Path::new("x.tsv"), lines("1\ta\tb\n\tc\td\n\n2\te\tf")).unwrap();
        assert_eq!(found, [(1.0, ["a", "b"]), (2.0, ["e", "f"])].map(|(score, pair)| (score, pair.map(str::to_owned))));
        for text in ["1\ta\tb\nx\tc\td", "1\ta\tb\n1\tc", "1\ta\tb\nnan\tc\td"] {
            assert!(matches!(scored(Path::new("x"), lines(text)), Err(Error::Pair { line: 2, .. })), "{text}");
        }
    }

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0]), [2.5, 0.0, 2.5, 1.0]);
        assert_eq!(ranks(&[5.0; 4]), [1.5; 4]);
    }
}
