//! What tasks on embeddings share: texts as windows of one row, cosines, and the agreement of two runs.

use attar_model::Config;
use serde::{Deserialize, Serialize};

use super::kind::{Against, Better, Column, Digits, Language, Metric, SIDES, Sides};
use crate::{
    Error, Result, Window,
    runner::{Progress, Rows, numbers},
    statistics::number,
};

/// Two runs of the same artifact, on the same texts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Agreement {
    /// The largest difference of two values of an embedding.
    #[serde(deserialize_with = "number")]
    max_difference: f64,
    /// The same, divided by the largest absolute value.
    #[serde(deserialize_with = "number")]
    relative: f64,
}

/// The metric that bounds [`Agreement::relative`], where it is in the scores as `agreement`.
pub(super) const AGREEMENT: Metric = Metric {
    name: "agreement-embedding",
    about: "largest difference between a value of the engine's and the reference's embedding, relative to the largest value",
    unit: "",
    better: Better::Lower,
    against: Against::Sibling,
    at: "/agreement/relative",
    base: None,
    loss: None,
    perfect: 0.0,
    random: None,
    column: Some(Column { head: "max difference", digits: Digits::Exponent }),
};

/// Each text with the special tokens that the tokenizer adds to it, cut to `longest` tokens; by default to as many as the
/// tokenizer's file says, or the model's context.
pub(super) fn windows(language: &Language<'_>, texts: &[&str], longest: Option<usize>) -> Result<Vec<Window>> {
    let Language { tokenizer, config, .. } = language;
    let longest = longest.or(tokenizer.truncates_to()).or(config.context).unwrap_or(usize::MAX);
    let framed = tokenizer.encode_framed(texts)?;
    Ok(framed.into_iter().map(|tokens| Window { tokens: cut(tokens, longest), scored: 0..1 }).collect())
}

/// The first tokens and the last one, which closes a text.
fn cut(mut tokens: Vec<u32>, longest: usize) -> Vec<u32> {
    if tokens.len() > longest {
        let last = tokens[tokens.len() - 1];
        tokens.truncate(longest - 1);
        tokens.push(last);
    }
    tokens
}

/// Whether windows can be limited so.
pub(super) fn check(longest: Option<usize>, config: &Config) -> Result<()> {
    let context = config.context.unwrap_or(usize::MAX);
    match longest {
        Some(found) if found < 3 => {
            Err(Error::Setting { key: "window", found, wanted: "expected 3 or more: special tokens count".into() })
        }
        Some(found) if found > context => {
            Err(Error::Setting { key: "window", found, wanted: format!("the model's context is {context} tokens") })
        }
        _ => Ok(()),
    }
}

/// The embeddings of all sides.
pub(super) struct Embedded {
    pub(super) model: Vec<Vec<f32>>,
    pub(super) base: Option<Vec<Vec<f32>>>,
    /// With the sibling.
    pub(super) agreement: Option<Agreement>,
}

impl Embedded {
    pub(super) fn of(sides: &mut Sides<'_>, windows: usize, progress: Progress<'_>) -> Result<Embedded> {
        let [own, bases, siblings] = SIDES;
        let model = embed(sides.model, own, windows, |done| progress(done, windows as u64))?;
        let base = sides.base.as_mut().map(|base| embed(*base, bases, windows, |_| {})).transpose()?;
        let sibling = sides.sibling.as_mut().map(|sibling| embed(*sibling, siblings, windows, |_| {})).transpose()?;
        sibling.iter().try_for_each(|sibling| same_width(&model, sibling))?;
        let agreement = sibling.map(|sibling| agreement(&model, &sibling));
        Ok(Embedded { model, base, agreement })
    }
}

/// The embeddings of all windows.
fn embed(side: &mut dyn Rows, whose: &'static str, windows: usize, mut progress: impl FnMut(u64)) -> Result<Vec<Vec<f32>>> {
    let one = |window| {
        let mut row = Vec::new();
        numbers(side, whose, window, 0..1, &mut row)?;
        progress(window as u64 + 1);
        Ok(row)
    };
    (0..windows).map(one).collect()
}

/// The cosine of the angle between two vectors, 0 if either is 0.
pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms == 0.0 { 0.0 } else { dot(a, b) / norms }
}

fn agreement(model: &[Vec<f32>], sibling: &[Vec<f32>]) -> Agreement {
    let most = |values: &mut dyn Iterator<Item = f32>| f64::from(values.fold(0.0f32, |most, x| most.max(x.abs())));
    let differences = &mut model.iter().flatten().zip(sibling.iter().flatten()).map(|(a, b)| a - b);
    let max_difference = most(differences);
    Agreement { max_difference, relative: max_difference / most(&mut sibling.iter().flatten().copied()) }
}

/// Different widths cannot be compared.
pub(super) fn same_width(a: &[Vec<f32>], b: &[Vec<f32>]) -> Result<()> {
    match (a.first().map(Vec::len), b.first().map(Vec::len)) {
        (Some(first), Some(second)) if first != second => Err(Error::Widths { first, second }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_keeps_its_closing_token() {
        assert_eq!(cut(vec![1, 2, 3, 4, 9], 3), [1, 2, 9]);
        assert_eq!(cut(vec![1, 2, 9], 3), [1, 2, 9]);
    }

    #[test]
    fn cosines_are_those_of_angles() {
        assert!((cosine(&[1.0, 0.0], &[2.0, 2.0]) - 0.5f64.sqrt()).abs() < 1e-12);
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 0.0]), 0.0);
    }
}
