//! Ways out where a gate on quality failed: changes of the recipe, with what they are predicted to bring and to cost.
//!
//! What a run knows is enough for a prediction. To second order, a small rounding noise costs quality in proportion to its energy, so the noise that the report
//! has for every weight and activation says what a change of a part of it is worth. The scale comes from what was measured. A way is a
//! recipe that [`crate::plan`] accepts; those that the model or a target refuses are left out.

mod edit;
mod loss;
mod noise;
mod ways;

use attar_eval::Status;

use self::{loss::Loss, ways::Proposal};
use crate::{Engines, Recipe, Report, Way, output::ADVICE, plan::plan_work};

/// A prediction counts as one that the gate will pass if it would with so much more noise.
const CAUTION: f64 = 1.2;

/// The ways out of the failed gate that asks most, with their recipes.
pub(crate) fn of(recipe: &Recipe, report: &Report, engines: &Engines) -> Vec<(Way, String)> {
    let failed = report.gates.iter().filter(|verdict| matches!(verdict.status, Status::Failed | Status::CannotTell));
    let losses = failed.filter_map(|verdict| Some((verdict, Loss::of(verdict, &report.evals)?)));
    let Some((verdict, loss)) = losses.min_by(|a, b| a.1.allowed().total_cmp(&b.1.allowed())) else { return Vec::new() };
    let Some(variant) = report.variants.iter().find(|variant| variant.name == verdict.variant.as_deref().unwrap_or_default())
    else {
        return Vec::new();
    };
    let mut proposals = ways::proposals(recipe, variant, loss.allowed() / CAUTION);
    proposals.retain(|proposal| proposal.noise < 1.0);
    let passes = |proposal: &Proposal| proposal.noise * CAUTION <= loss.allowed();
    proposals.sort_by(|a, b| {
        let (first, second) = (passes(a), passes(b));
        let price = |proposal: &Proposal| (proposal.effort == ways::TRAINING, proposal.bytes.max(0), proposal.effort);
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
    ways
}

/// The recipe of a proposal, with an output folder of its own, if a plan accepts it.
fn accepted(recipe: &Recipe, proposal: &Proposal, at: usize, engines: &Engines) -> Option<String> {
    let output = format!("{}-advice-{}", recipe.output().display(), at + 1);
    let text = edit::with_output(&proposal.recipe, &output)?;
    let parsed = Recipe::parse(&recipe.document.path, &text).ok()?;
    plan_work(&parsed, engines).ok().map(|_| text)
}
