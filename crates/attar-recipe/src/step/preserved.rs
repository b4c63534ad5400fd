//! Whether a model still computes what it did.

use std::sync::Arc;

use attar_graph::{BlockId, Graph, SourceWeights, kernel::instruction_set};
use attar_tensor::{Digest, Dtype, Source};

use crate::{
    Error, Result,
    session::Session,
    shape,
    walk::{self, Side, Walk, Windows},
    walker::Walker,
};

pub(super) static WALKER: Walker =
    Walker { name: "preserved", doing: "compare logits", example: "[[step]]\nkind = \"rotate\"\nmlp = true\n" };

/// The sides of the walk.
const BEFORE: usize = 0;
const AFTER: usize = 1;

/// Largest difference of a logit over the largest logit that rounding to f32 explains. Real transformations stay well
/// below; one wrong sign anywhere is far above.
const ROUNDING: f64 = 1e-3;

/// How many roundings of a coarser number format explain.
const COARSE_ROUNDINGS: f64 = 8.0;

/// Largest difference of a logit over the largest logit that may be, if all that a step rounds is rounded to one of
/// `dtypes`.
pub(super) fn at_most(dtypes: impl Iterator<Item = Dtype>) -> f64 {
    let unit = |dtype| match dtype {
        Dtype::BF16 => 1.0 / 256.0,
        Dtype::F16 => 1.0 / 2048.0,
        _ => 0.0,
    };
    dtypes.map(|dtype| COARSE_ROUNDINGS * unit(dtype)).fold(ROUNDING, f64::max)
}

/// Windows that are looked at, and tokens of each.
const WINDOWS: usize = 4;
const TOKENS: usize = 64;

/// A graph and its weights.
pub(super) type Model<'a> = (&'a Graph, &'a Arc<dyn Source>);

/// Bytes that the comparison takes: the windows on their way, the outputs of both, and a head.
pub(super) fn memory(graph: &Graph) -> u64 {
    let tokens = (WINDOWS * TOKENS) as u64;
    walk::memory(graph, tokens, 2) + 4 * (3 * tokens * shape::output_width(graph) + 2 * shape::head_numbers(graph))
}

/// How far the logits of `after` are off those of `before`, relative to the largest; an error if rounding does not
/// explain it. The windows are the calibration's first, or tokens without sense if there is none.
pub(super) fn check(
    step: &str,
    title: &str,
    before: Model<'_>,
    after: Model<'_>,
    at_most: f64,
    session: &Session<'_>,
) -> Result<(f64, Digest)> {
    let windows = windows(before.0, session.calibration);
    let key = key(before, after, &windows)?;
    let (off, blob) = session.number(key, || difference(title, key, before, after, &windows, session))?;
    if off <= at_most {
        return Ok((off, blob));
    }
    let message = format!("`{step}` changed what the model computes: logits are off by {off:.1e} of the largest");
    let hint = format!("at most {at_most:.0e} is rounding: see whether the checkpoint overflows on this text");
    Err(Error::input(message).hint(hint))
}

fn key(before: Model<'_>, after: Model<'_>, windows: &[Vec<u32>]) -> Result<Digest> {
    let mut parts = vec![Digest::of(b"preserved 1"), Digest::of(instruction_set().as_bytes())];
    for (graph, source) in [before, after] {
        parts.push(Digest::of(graph.to_string().as_bytes()));
        for (_, _, expr) in graph.weights() {
            parts.push(expr.digest(&**source)?);
        }
    }
    parts.extend(windows.iter().map(|w| Digest::of(&w.iter().flat_map(|t| t.to_le_bytes()).collect::<Vec<u8>>())));
    Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
}

fn windows(graph: &Graph, calibration: Option<&[Vec<u32>]>) -> Vec<Vec<u32>> {
    if let Some(windows) = calibration {
        return windows.iter().take(WINDOWS).map(|w| w[..w.len().min(TOKENS)].to_vec()).collect();
    }
    let mut state = 1u64;
    let mut token = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 32) % shape::vocabulary(graph).max(1)) as u32
    };
    vec![(0..TOKENS / 2).map(|_| token()).collect()]
}

/// Takes the windows through both models, block by block, up to their outputs.
fn difference(
    title: &str,
    key: Digest,
    before: Model<'_>,
    after: Model<'_>,
    windows: &[Vec<u32>],
    session: &Session<'_>,
) -> Result<f64> {
    let weights = [before, after].map(|(_, source)| SourceWeights(source.clone()));
    let sides = [before, after].into_iter().zip(&weights).map(|((graph, _), weights)| Side { graph, weights }).collect();
    // The key of the comparison has all weights of both models.
    let walk = Walk::new(&WALKER, title, key, sides, session).over(windows).by(windows.len());
    let block = |before: &Digest, block: BlockId| {
        Ok(Digest::of_parts([before.as_bytes().as_slice(), &(block.index() as u64).to_le_bytes()]))
    };
    let head = before.0.maker(before.0.outputs()[0]).map_or(0, |node| node.block.index());
    let (mut at_head, entering) = walk.arrive(head, &block)?;
    let logits = [(BEFORE, before.0), (AFTER, after.0)].map(|(side, graph)| logits(side, graph, &mut at_head));
    entering.discard(session)?;
    let [before, after] = logits;
    largest_difference(&before?, &after?)
}

/// Of the logits `after` from those `before`, relative to the largest.
fn largest_difference(before: &[f32], after: &[f32]) -> Result<f64> {
    if !before.iter().all(|x| x.is_finite()) {
        let message = "the model's logits are not finite on the windows that a transformation is checked on";
        return Err(Error::input(message).hint("check the checkpoint, or calibrate on other text".to_owned()));
    }
    let largest = before.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    // Not a maximum: that would pass over NaN.
    let off = before.iter().zip(after).map(|(a, b)| (a - b).abs()).fold(0.0f32, |most, x| if x <= most { most } else { x });
    Ok(f64::from(off) / f64::from(largest))
}

/// What the last block makes.
fn logits(side: usize, graph: &Graph, windows: &mut Windows<'_>) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    windows.reach(side, graph.outputs()[0], &mut |_, logits| {
        all.extend(logits.flatten_all()?.to_vec1::<f32>()?);
        Ok(())
    })?;
    Ok(all)
}
