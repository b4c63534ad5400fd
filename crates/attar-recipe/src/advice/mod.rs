//! Ways out where a gate on quality failed: changes of the recipe, with what they are predicted to bring and to cost.
//!
//! What a run knows is enough for a prediction. To second order, a small rounding noise costs quality in proportion to its energy, so the noise that the report
//! has for every weight and activation says what a change of a part of it is worth. The scale comes from what was measured. A way is a
//! recipe that [`crate::plan`] accepts; those that the model or a target refuses are left out.

mod change;
mod edit;
mod loss;
mod noise;
mod shape;
mod ways;

use std::path::PathBuf;

use attar_eval::{Evaluation, Outcome, Status, Verdict, perplexity::DIVERGENCE};

use self::{loss::Loss, ways::Proposal};
use crate::{Engines, Recipe, Report, Way, output::ADVICE, plan::plan_work};

/// The ways out of the failed gate that asks most, with their recipes; and what to know of them, or why there are none.
pub(crate) fn of(recipe: &Recipe, report: &Report, engines: &Engines) -> (Vec<(Way, String)>, Option<String>) {
    let failed: Vec<&Verdict> = report.gates.iter().filter(|verdict| verdict.status == Status::Failed).collect();
    let known = failed.iter().filter_map(|verdict| Some((*verdict, Loss::of(verdict, &report.evals)?)));
    let known: Vec<(&Verdict, Loss)> = known.collect();
    let most = |a: &&(&Verdict, Loss), b: &&(&Verdict, Loss)| {
        (a.1.allowed() / a.1.caution()).total_cmp(&(b.1.allowed() / b.1.caution()))
    };
    let Some((verdict, loss)) = known.iter().min_by(most) else {
        let why = "no way out is known: no failed gate is about a loss of quality that rounding explains, or not even the baseline would pass";
        return (Vec::new(), (!failed.is_empty()).then(|| why.to_owned()));
    };
    let of_variant = |name: &str| report.variants.iter().find(|variant| variant.name == name);
    let Some(variant) = of_variant(verdict.variant.as_deref().unwrap_or_default()) else { return (Vec::new(), None) };
    let allowed = loss.allowed() / loss.caution();
    let mut proposals = match ways::proposals(recipe, variant, allowed, divergence(verdict, &report.evals)) {
        Ok(proposals) => proposals,
        Err(why) => return (Vec::new(), Some(format!("no way out is known: {why}"))),
    };
    proposals.retain(|proposal| proposal.noise < WORTH);
    let passes = |proposal: &Proposal| proposal.noise <= allowed;
    proposals.sort_by(|a, b| {
        let (first, second) = (passes(a), passes(b));
        let price = |proposal: &Proposal| (proposal.effort == change::TRAINING, proposal.bytes.max(0), proposal.effort);
        second.cmp(&first).then_with(|| if first { price(a).cmp(&price(b)) } else { a.noise.total_cmp(&b.noise) })
    });
    let mut ways: Vec<(Way, String)> = Vec::new();
    for proposal in proposals {
        let Some(name) = ADVICE.get(ways.len()) else { break };
        let Some(text) = accepted(recipe, &proposal, ways.len(), engines) else { continue };
        let way = Way {
            what: proposal.what.clone(),
            gate: format!("{}/{}", verdict.gate.eval, verdict.gate.metric),
            variant: verdict.variant.clone(),
            predicted: loss.at(proposal.noise),
            passes: passes(&proposal),
            bytes: proposal.bytes,
            cost: proposal.cost.clone(),
            snippet: proposal.snippet.clone(),
            recipe: (*name).into(),
        };
        ways.push((way, text));
    }
    let note = match (ways.is_empty(), failed.len()) {
        (true, _) => Some("no way out is known: nothing that the plan accepts takes away enough noise".to_owned()),
        (false, 2..) => Some(format!("{} other failed gates are not looked at", failed.len() - 1)),
        (false, _) => None,
    };
    (ways, note)
}

/// What the eval of a gate measured from the baseline, in nats per token.
fn divergence(verdict: &Verdict, evals: &[Evaluation]) -> Option<f64> {
    let gate = &verdict.gate;
    let own = |eval: &&Evaluation| eval.eval == gate.eval && eval.runner == gate.runner && eval.variant == verdict.variant;
    match &evals.iter().find(own)?.outcome {
        Outcome::Measured(measured) => measured.estimate(DIVERGENCE).map(|kl| kl.value),
        _ => None,
    }
}

/// A way leaves less than this of the noise.
const WORTH: f64 = 0.97;

/// The recipe of a proposal, with an output folder of its own, if a plan accepts it.
fn accepted(recipe: &Recipe, proposal: &Proposal, at: usize, engines: &Engines) -> Option<String> {
    // Without a slash at its end.
    let folder: PathBuf = recipe.output().components().collect();
    let output = format!("{}-advice-{}", folder.display(), at + 1);
    let text = edit::with_output(&proposal.recipe, &output)?;
    let parsed = Recipe::parse(&recipe.document.path, &text).ok()?;
    plan_work(&parsed, engines).ok().map(|_| text)
}
