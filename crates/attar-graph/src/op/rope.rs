//! Rotary position embedding (Su et al. 2021), pairs half a head apart, and the ways to stretch it to longer contexts.

use candle_core::{Tensor, TensorId};

use super::{Attribute, Attributes, Op, OpDef, no_macs};
use crate::{Fact, Mode, error::Problem, gradient};

/// The angle by which each pair is rotated.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of frequencies.
    pub theta: f64,
    /// How frequencies are stretched for longer contexts.
    pub scaling: Scaling,
}

/// How frequencies are stretched. Names and formulas are those of the `rope_type`s of the transformers library.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    Default,
    /// All by one factor (Chen et al. 2023).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low ones, high ones kept, smoothly between (Llama 3.1).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than `original / low` are stretched.
        low: f64,
        /// Wavelengths shorter than `original / high` are kept.
        high: f64,
        /// Context length of the original training.
        original: f64,
    },
    /// Each pair by a factor of its own, as `rope_freqs.weight` of GGUF files gives them.
    Factors(Vec<f32>),
    /// Each pair by a factor of its own: of one list in texts up to `original` tokens, of another in longer ones (Ding et al.
    /// 2024). Which list is taken depends on the largest position of a call, so keys that were cached before a text grew
    /// beyond `original` do not fit those after it.
    LongRope {
        /// Factors for texts up to `original` tokens.
        short: Vec<f32>,
        /// Factors for longer texts.
        long: Vec<f32>,
        /// Context length of the first training.
        original: usize,
        /// Multiplies both sine and cosine.
        attention: f64,
    },
    /// A linear ramp between, and sharper attention (Peng et al. 2023).
    Yarn {
        /// The factor.
        factor: f64,
        /// Context length of the original training.
        original: f64,
        /// Pairs with more rotations than this in the original context are kept.
        fast: f64,
        /// Pairs with fewer rotations than this in the original context are stretched.
        slow: f64,
        /// Multiplies both sine and cosine.
        attention: f64,
        /// Whether the ends of the ramp are whole pairs.
        truncate: bool,
    },
}

impl Rope {
    /// Radians per position, for each of the `head / 2` pairs; of a long-rope, in short texts.
    pub fn frequencies(&self, head: usize) -> Vec<f32> {
        self.frequencies_of(head, 0)
    }

    /// The same in a text of `length` tokens.
    pub fn frequencies_of(&self, head: usize, length: usize) -> Vec<f32> {
        let pairs = head / 2;
        let plain = (0..pairs).map(|i| 1.0 / (self.theta as f32).powf((2 * i) as f32 / head as f32));
        match &self.scaling {
            Scaling::Default => plain.collect(),
            Scaling::Linear { factor } => plain.map(|f| f / *factor as f32).collect(),
            Scaling::Factors(factors) => plain.zip(factors).map(|(f, factor)| f / factor).collect(),
            Scaling::LongRope { short, long, original, .. } => {
                let factors = if length > *original { long } else { short };
                plain.zip(factors).map(|(f, factor)| f / factor).collect()
            }
            Scaling::Llama3 { factor, low, high, original } => plain
                .map(|f| {
                    let turns = original * f64::from(f) / std::f64::consts::TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    ((1.0 - smooth) * f64::from(f) / factor + smooth * f64::from(f)) as f32
                })
                .collect(),
            Scaling::Yarn { factor, original, fast, slow, truncate, .. } => {
                let pair = |turns: f64| head as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln());
                let (low, high) = (pair(*fast), pair(*slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(head as f64 - 1.0));
                let width = if high == low { 0.001 } else { high - low };
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let stretched = ((i as f64 - low) / width).clamp(0.0, 1.0);
                        (f64::from(f) / factor * stretched + f64::from(f) * (1.0 - stretched)) as f32
                    })
                    .collect()
            }
        }
    }

    /// Whether there is a frequency for each pair of such a head.
    fn covers(&self, head: usize) -> bool {
        match &self.scaling {
            Scaling::Factors(factors) => factors.len() == head / 2,
            Scaling::LongRope { short, long, .. } => short.len() == head / 2 && long.len() == head / 2,
            _ => true,
        }
    }

    /// The longest text that has the frequencies of a short one, if longer ones have others.
    pub fn longest_short(&self) -> Option<usize> {
        match self.scaling {
            Scaling::LongRope { original, .. } => Some(original),
            _ => None,
        }
    }

    /// What sine and cosine are multiplied by.
    pub fn magnitude(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { attention, .. } | Scaling::LongRope { attention, .. } => attention as f32,
            _ => 1.0,
        }
    }
}

/// Cosines and sines, kept while one set of positions is in use.
#[derive(Default)]
pub(crate) struct Tables(Vec<(TensorId, usize, Rope, Tensor, Tensor)>);

impl Tables {
    fn get(&mut self, rope: &Rope, positions: &Tensor, head: usize) -> candle_core::Result<(Tensor, Tensor)> {
        let known = self.0.iter().find(|(id, h, r, ..)| *id == positions.id() && *h == head && r == rope);
        if let Some((.., cos, sin)) = known {
            return Ok((cos.clone(), sin.clone()));
        }
        let (batch, seq) = positions.dims2()?;
        let at = positions.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let length = at.iter().fold(0.0f32, |most, position| most.max(*position)) as usize + 1;
        let (frequencies, magnitude) = (rope.frequencies_of(head, length), rope.magnitude());
        let angles = || at.iter().flat_map(|p| frequencies.iter().map(move |f| p * f));
        let cos: Vec<f32> = angles().map(|a| a.cos() * magnitude).collect();
        let sin: Vec<f32> = angles().map(|a| a.sin() * magnitude).collect();
        let dims = (batch, seq, head / 2);
        let (cos, sin) = (Tensor::from_vec(cos, dims, positions.device())?, Tensor::from_vec(sin, dims, positions.device())?);
        self.0.push((positions.id(), head, rope.clone(), cos.clone(), sin.clone()));
        Ok((cos, sin))
    }
}

pub(super) static DEF: OpDef = OpDef {
    name: "rope",
    wants: "x [batch, heads, seq, an even head], positions [batch, seq] i64, and one factor per pair if there are `factors`",
    parse,
    attributes,
    infer: |op, facts| match facts {
        [x, positions] if x.dims.len() == 4 && positions.dims.len() == 2 => {
            let even = x.width().is_some_and(|head| head % 2 == 0 && rope_of(op).covers(head));
            let along = x.dims[0] == positions.dims[0] && x.dims[2] == positions.dims[1];
            (even && along).then(|| Fact::activation(x.dims.clone()))
        }
        _ => None,
    },
    evaluate: |op, operands, context| {
        let rope = rope_of(op);
        let (x, positions) = (operands[0].tensor()?.contiguous()?, operands[1].tensor()?);
        let (cos, sin) = context.tables.get(rope, &positions, x.dim(3)?)?;
        Ok(match context.mode {
            Mode::Inference => candle_nn::rotary_emb::rope(&x, &cos, &sin)?,
            Mode::Training => gradient::rope(&x, &cos, &sin)?,
        })
    },
    decompose: None,
    several: None,
    macs: no_macs,
};

fn rope_of(op: &Op) -> &Rope {
    match op {
        Op::Rope(rope) => rope,
        _ => unreachable!("the table is right"),
    }
}

fn parse(attributes: &mut Attributes) -> Result<Op, Problem> {
    let theta = attributes.number("theta")?;
    let scaling = match attributes.text("scaling")?.as_deref() {
        None => Scaling::Default,
        Some("linear") => Scaling::Linear { factor: attributes.number("factor")? },
        Some("llama3") => Scaling::Llama3 {
            factor: attributes.number("factor")?,
            low: attributes.number("low")?,
            high: attributes.number("high")?,
            original: attributes.number("original")?,
        },
        Some("factors") => Scaling::Factors(factors(attributes, "by")?),
        Some("longrope") => Scaling::LongRope {
            short: factors(attributes, "short")?,
            long: factors(attributes, "long")?,
            original: attributes.count("original")?,
            attention: attributes.number("attention")?,
        },
        Some("yarn") => Scaling::Yarn {
            factor: attributes.number("factor")?,
            original: attributes.number("original")?,
            fast: attributes.number("fast")?,
            slow: attributes.number("slow")?,
            attention: attributes.number("attention")?,
            truncate: attributes.flag("truncate")?.unwrap_or(true),
        },
        Some(other) => {
            return Err(Problem::Syntax {
                found: format!("{other:?}"),
                wanted: "`linear`, `llama3`, `factors`, `longrope` or `yarn`",
            });
        }
    };
    Ok(Op::Rope(Rope { theta, scaling }))
}

/// Numbers in one text, separated by spaces.
fn factors(attributes: &mut Attributes, name: &'static str) -> Result<Vec<f32>, Problem> {
    let text = attributes.text(name)?.unwrap_or_default();
    let numbers = text.split_whitespace().map(str::parse).collect::<Result<_, _>>();
    numbers.map_err(|_| Problem::Syntax { found: format!("{text:?}"), wanted: "numbers" })
}

fn text_of(factors: &[f32]) -> Attribute {
    Attribute::Text(factors.iter().map(f32::to_string).collect::<Vec<_>>().join(" "))
}

fn attributes(op: &Op) -> Vec<(&'static str, Attribute)> {
    let rope = rope_of(op);
    let (name, numbers) = match &rope.scaling {
        Scaling::Default => (None, vec![]),
        Scaling::Linear { factor } => (Some("linear"), vec![("factor", factor)]),
        Scaling::Factors(_) => (Some("factors"), vec![]),
        Scaling::LongRope { attention, .. } => (Some("longrope"), vec![("attention", attention)]),
        Scaling::Llama3 { factor, low, high, original } => {
            (Some("llama3"), vec![("factor", factor), ("low", low), ("high", high), ("original", original)])
        }
        Scaling::Yarn { factor, original, fast, slow, attention, .. } => {
            let numbers =
                vec![("factor", factor), ("original", original), ("fast", fast), ("slow", slow), ("attention", attention)];
            (Some("yarn"), numbers)
        }
    };
    let mut all = vec![("theta", Attribute::Number(rope.theta))];
    all.extend(name.map(|name| ("scaling", Attribute::Text(name.into()))));
    match &rope.scaling {
        Scaling::Factors(factors) => all.push(("by", text_of(factors))),
        Scaling::LongRope { short, long, original, .. } => {
            all.extend([("short", text_of(short)), ("long", text_of(long)), ("original", (*original).into())]);
        }
        Scaling::Yarn { truncate: false, .. } => all.push(("truncate", Attribute::Flag(false))),
        _ => {}
    }
    all.extend(numbers.into_iter().map(|(name, value)| (name, Attribute::Number(*value))));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_frequencies_and_stretches_low_ones() {
        let plain = Rope { theta: 500_000.0, scaling: Scaling::Default }.frequencies(64);
        let scaling = Scaling::Llama3 { factor: 32.0, low: 1.0, high: 4.0, original: 8192.0 };
        let scaled = Rope { theta: 500_000.0, scaling }.frequencies(64);
        assert_eq!(plain[0], scaled[0]);
        assert!((plain[31] / scaled[31] - 32.0).abs() < 1e-3);
    }
}
