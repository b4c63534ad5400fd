//! What can be changed about a model of which parts left: leave more of it, or train it.

use serde_json::Value as Settings;
use toml_edit::DocumentMut;

use super::{
    change::{Change, Part, TRAINING, TRAINS},
    edit,
};
use crate::{Recipe, VariantReport};

/// What `distill` leaves of the divergence of `prune` on so many tokens, with its defaults; with fewer it takes away as much less. Measured: .79 on SmolLM2-135M with 65k
/// tokens (three quarters of the MLP channels), .75 and .96 on shakespeare-1m with 4k (half of the heads, of the channels).
const DISTILLED: f64 = 0.85;
const TOKENS: f64 = 32_768.0;

/// The divergence of a model of which a share `s` left goes like `s` to this power. Measured: 1.1 for MLP channels of SmolLM2-135M (a quarter, a half).
const SHARES: f64 = 1.0;

/// The same of single weights. Measured: 3 on shakespeare-1m (30% and 50%).
const ZEROS: f64 = 3.0;

/// What weights that leave anywhere lose of what a pattern loses. Measured on SmolLM2-135M: .54 for 2:4; this is more cautious.
const ANYWHERE: f64 = 0.65;

/// The kind of the step that trains a float model.
const DISTILL: &str = "distill";

/// The steps of a variant that made its model smaller, and what that cost.
pub(super) struct Shrunk<'r> {
    /// The step `prune` that lost most.
    key: &'r str,
    settings: Settings,
    distills: bool,
    /// Tokens that a step `distill` would learn from.
    tokens: usize,
    /// KL divergence, in nats per token, on text that was kept aside.
    pub(super) divergence: f64,
    /// What that step made smaller.
    lost: Lost<'r>,
}

/// What left.
enum Lost<'r> {
    /// Units: before and after, by the last part of a layer's name; and bytes of weights.
    Units(Vec<(&'r str, [usize; 2])>, f64),
    /// A share of all weights, as the report has it.
    Weights,
}

/// Bits of a weight of the finished model, on average over those that steps changed.
fn bits(variant: &VariantReport) -> f64 {
    let weights = |dims: &[usize]| dims.iter().product::<usize>() as f64;
    let all: f64 = variant.tensors.iter().map(|tensor| weights(&tensor.dims)).sum();
    let bits: f64 = variant.tensors.iter().map(|tensor| weights(&tensor.dims) * tensor.bits_per_weight).sum();
    if all > 0.0 { bits / all } else { 32.0 }
}

impl<'r> Shrunk<'r> {
    /// Of a variant whose steps prune; `None` of others.
    pub(super) fn of(recipe: &'r Recipe, variant: &'r VariantReport) -> Option<Shrunk<'r>> {
        let steps = &recipe.variants.iter().find(|made| made.name == variant.name)?.steps;
        let mut shapes = variant.findings.prunings.iter();
        let mut sparse = variant.findings.sparsities.iter();
        let mut found: Vec<Shrunk<'r>> = Vec::new();
        for (key, step) in steps.iter().filter(|(_, step)| step.kind().name == "prune") {
            let settings = step.settings();
            let (divergence, lost) = if settings["sparsity"].is_null() {
                let report = shapes.next()?;
                let last = |name: &'r str| name.rsplit('.').next().unwrap_or(name);
                let cuts = report.layers.iter().map(|cut| (last(&cut.name), [cut.before, cut.after]));
                let parameters = report.before.parameters.saturating_sub(report.after.parameters) as f64;
                (report.divergence, Lost::Units(cuts.collect(), parameters * bits(variant) / 8.0))
            } else {
                (sparse.next()?.divergence, Lost::Weights)
            };
            found.push(Shrunk { key, settings, distills: false, tokens: 0, divergence, lost });
        }
        let all: f64 = found.iter().map(|shrunk| shrunk.divergence).sum();
        let mut most = found.into_iter().max_by(|a, b| a.divergence.total_cmp(&b.divergence))?;
        most.distills = steps.iter().any(|(_, step)| step.kind().name == DISTILL);
        most.divergence = all;
        most.tokens = recipe.calibration().map_or(0, |text| text.samples.saturating_mul(text.length.unwrap_or(512)));
        if let Some(point) = variant.findings.distillations.last().and_then(|report| {
            let kept = report.best_step.unwrap_or(report.steps);
            report.held_out.iter().rfind(|point| point.step <= kept)
        }) {
            most.divergence = point.kl;
        }
        Some(most)
    }

    /// Changes of that step, and what follows it: each leaves a part of the divergence.
    ///
    /// `allowed` is the share of it that may be left.
    pub(super) fn changes(&self, allowed: f64) -> Vec<Change<'_>> {
        [self.distilled(), self.larger(allowed), self.fewer_zeros()].into_iter().flatten().collect()
    }

    fn distilled(&self) -> Option<Change<'_>> {
        let key = self.key;
        let make = move |document: &mut DocumentMut| edit::insert_behind(document, key, DISTILL).map(|()| Part::New(DISTILL));
        (!self.distills).then(|| Change {
            what: "a step `distill` behind `prune`".into(),
            noise: 1.0 - (1.0 - DISTILLED) * (self.tokens as f64 / TOKENS).min(1.0),
            bytes: 0.0,
            cost: TRAINS,
            effort: TRAINING,
            of_shape: true,
            make: Box::new(make),
        })
    }

    /// As much of what left stays as it takes, or half of it.
    fn larger(&self, allowed: f64) -> Option<Change<'_>> {
        let Lost::Units(cuts, bytes) = &self.lost else { return None };
        let wholes = [("mlp", "down"), ("heads", "output"), ("kv_heads", "output")];
        let asked = |setting: &str| self.settings[setting].as_u64();
        let (setting, now, whole) = wholes.into_iter().find_map(|(setting, layer)| {
            let [before, after] = cuts.iter().find(|(name, _)| *name == layer).map(|(_, units)| *units)?;
            let now = asked(setting)?;
            // Columns of a layer are so many for each unit of the setting.
            let whole = (before as u64 * now).checked_div(after as u64)?;
            (whole > now).then_some((setting, now, whole))
        })?;
        let step = if setting == "mlp" { now & now.wrapping_neg() } else { 1 };
        let wanted = if allowed > 0.0 { ((whole - now) as f64 * allowed.powf(1.0 / SHARES)) as u64 } else { (whole - now) / 2 };
        let more = (whole - wanted.min(whole - now)).next_multiple_of(step.clamp(1, 64));
        let left = ((whole - more) as f64 / (whole - now) as f64).powf(SHARES);
        let key = self.key;
        let make = move |document: &mut DocumentMut| {
            edit::step(document, key)?.insert(setting, toml_edit::value(more as i64));
            Some(Part::Step(key.into()))
        };
        (now < more && more < whole).then(|| Change {
            what: format!("`{setting} = {more}` in place of {now}"),
            noise: left,
            bytes: bytes * (1.0 - left),
            cost: "a larger and slower model",
            effort: 0,
            of_shape: true,
            make: Box::new(make),
        })
    }

    /// Three quarters of the zeros; of a pattern, as many anywhere.
    fn fewer_zeros(&self) -> Option<Change<'_>> {
        let Lost::Weights = self.lost else { return None };
        let key = self.key;
        let (now, share, left) = match (self.settings["sparsity"].as_f64(), self.settings["sparsity"].as_str()) {
            (Some(share), _) => (share.to_string(), (share * 75.0).round() / 100.0, 0.75f64.powf(ZEROS)),
            (_, Some(pattern)) => {
                let (keep, of) = pattern.split_once(':')?;
                let [keep, of] = [keep, of].map(|n| n.trim().parse::<f64>().ok());
                (pattern.to_owned(), 1.0 - keep? / of?, ANYWHERE)
            }
            _ => return None,
        };
        let make = move |document: &mut DocumentMut| {
            edit::step(document, key)?.insert("sparsity", toml_edit::value(share));
            Some(Part::Step(key.into()))
        };
        Some(Change {
            what: format!("`sparsity = {share}` in place of {now}"),
            noise: left,
            bytes: 0.0,
            cost: "fewer zeros, or zeros that an array does not skip",
            effort: 0,
            of_shape: true,
            make: Box::new(make),
        })
    }
}
