//! Size against quality: what every budget in a range would give.
//!
//! The predictions of a budget do not depend on how large it is, so a whole front costs little more than one point: the
//! units are the same, and only the choosing is done again.

use std::collections::{BTreeMap, BTreeSet};

use attar_eval::{Evaluation, Outcome, perplexity::DIVERGENCE};
use attar_tensor::Digest;
use serde::Serialize;

use crate::{
    AllocationReport, Error, Recipe, Request, Result, RunnerKind, Table, Variant,
    inputs::Inputs,
    json::{TOOL, json},
    made::Made,
    measure::{Measuring, Subject},
    model::Working,
    needs::check_needs,
    opened::Opened,
    output::Output,
    plot::{Line, Mark, Plot},
    session::{Session, Workspace},
    step::{Step, StepError, WALKERS},
    table::bytes,
};

/// Which budgets to look at.
#[derive(Clone, Copy, Debug)]
pub struct Points {
    /// How many, evenly apart.
    pub count: usize,
    /// True bits per selected weight of the first; the smallest choices if not given.
    pub from: Option<f64>,
    /// True bits per selected weight of the last; the largest choices if not given.
    pub to: Option<f64>,
    /// Whether to quantize and measure each, too.
    pub measure: bool,
}

/// `sweep.json`: the fronts of a recipe's budgets.
#[derive(Clone, Debug, Serialize)]
pub struct Sweep {
    /// Version of this format: 1.
    pub sweep: u32,
    /// The program, with its version.
    pub tool: &'static str,
    /// The recipe's path.
    pub recipe: String,
    /// One per variant that has a budget.
    pub fronts: Vec<Front>,
}

/// The front of a variant.
#[derive(Clone, Debug, Serialize)]
pub struct Front {
    /// Empty for the only one.
    pub variant: String,
    /// By rising budget.
    pub points: Vec<Point>,
}

/// The best choices under one budget.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// How it is spent.
    pub allocation: AllocationReport,
    /// What was measured, where that was asked for.
    pub evals: Vec<Evaluation>,
}

/// Looks at many budgets in place of the recipe's, and writes `sweep.json` and `sweep.svg` to its output folder. Nothing is
/// exported, and gates are not judged.
pub fn sweep(recipe: Recipe, points: Points, request: &Request<'_>) -> Result<Sweep> {
    let recipe = Recipe { evals: measurable(recipe.evals), ..recipe };
    check(&recipe, points)?;
    let inputs = Opened::inputs(&recipe)?;
    inputs.during(|| sweep_on(&inputs, &recipe, points, request))
}

fn sweep_on(inputs: &Inputs, recipe: &Recipe, points: Points, request: &Request<'_>) -> Result<Sweep> {
    crate::plan(recipe, request.engines)?.check_memory(request.max_memory)?;
    check_needs(recipe, request.engines)?;
    let opened = Opened::of(recipe)?;
    let output = Output::claim(recipe.output(), &recipe.owner())?;
    let workspace = Workspace::open(recipe.store(&output), WALKERS, inputs.clone())?;
    let texts = opened.windows(recipe, &workspace.session(opened.model(), request.observer))?;
    let workspace = workspace.reading(texts);
    let session = workspace.session(opened.model(), request.observer);
    let measuring =
        Measuring { recipe, engines: request.engines, opened: &opened, observer: request.observer, session: Some(&session) };
    let mut fronts = Vec::new();
    for variant in &recipe.variants {
        let Some(at) = budgeted(variant) else { continue };
        let swept = Swept { recipe, variant, at, session: &session };
        let (mut front, made) = swept.front(points)?;
        let subjects: Vec<Subject<'_>> = made.iter().map(|made| Subject::made(made, &output)).collect();
        let evals = measuring.measure(&subjects, &mut BTreeSet::new())?;
        for (point, made) in front.points.iter_mut().zip(&made) {
            point.evals = evals.iter().filter(|eval| eval.variant.as_ref() == Some(&made.name)).cloned().collect();
        }
        fronts.push(front);
    }
    let sweep = Sweep { sweep: 1, tool: TOOL, recipe: recipe.owner(), fronts };
    session.check_inputs()?;
    output.write("sweep.json", &json(&sweep))?;
    output.write("sweep.svg", sweep.plot().svg().as_bytes())?;
    Ok(sweep)
}

/// Evals by the reference run: nothing is written that an engine could open.
fn measurable(evals: Vec<crate::Eval>) -> Vec<crate::Eval> {
    let reference = |mut eval: crate::Eval| {
        eval.runners.retain(|(runner, _)| *runner == RunnerKind::Reference);
        (!eval.runners.is_empty()).then_some(eval)
    };
    evals.into_iter().filter_map(reference).collect()
}

/// The first step of a variant that has a budget.
fn budgeted(variant: &Variant) -> Option<usize> {
    variant.steps.iter().position(|(_, step)| step.with_bits(1.0).is_some())
}

fn check(recipe: &Recipe, points: Points) -> Result<()> {
    let wrong = |message: &str, hint: &str| Err(Error::recipe(message).hint(hint.to_owned()));
    let usable = |bits: Option<f64>| bits.is_none_or(|bits| bits.is_finite() && bits > 0.0);
    if !recipe.variants.iter().any(|variant| budgeted(variant).is_some()) {
        return wrong("no step of the recipe has a budget", "give its `quantize` step `bits` or `bytes` in place of a `grid`");
    }
    if points.count < 2 || !usable(points.from) || !usable(points.to) {
        return wrong(
            "a sweep has 2 or more points, from and to some positive number of bits",
            "for a single budget, run the recipe",
        );
    }
    if points.from.zip(points.to).is_some_and(|(from, to)| from >= to) {
        return wrong("a sweep goes from fewer bits to more", "exchange `--from` and `--to`");
    }
    if points.measure && recipe.evals.is_empty() {
        return wrong("there is nothing to measure: no eval of the recipe is run by the reference", "add an `[[eval]]`");
    }
    Ok(())
}

/// A variant whose budget is varied.
struct Swept<'a> {
    recipe: &'a Recipe,
    variant: &'a Variant,
    /// The step that has the budget.
    at: usize,
    session: &'a Session<'a>,
}

impl Swept<'_> {
    fn front(&self, points: Points) -> Result<(Front, Vec<Made>)> {
        let recipe = self.recipe;
        let mut before = Working::new(self.variant.title(), self.session.base(), recipe.data())?;
        self.run(&mut before, 0..self.at)?;
        let (mut found, mut made) = (Vec::new(), Vec::new());
        for bits in self.budgets(&before, points)? {
            self.session.check_interrupt()?;
            let step = self.variant.steps[self.at].1.with_bits(bits).expect("`budgeted` found it");
            let allocation = self.allocation(&*step, &before)?;
            if points.measure {
                let mut working = Working { title: format!("{} at {bits:.3} bits", self.variant.title()), ..before.clone() };
                step.run(&mut working, self.session).map_err(|e| self.placed(self.at, e))?;
                self.run(&mut working, self.at + 1..self.variant.steps.len())?;
                let model = self.session.base().with(working.graph.clone(), working.source.clone());
                made.push(Made { name: format!("{} {bits}", self.variant.name), model, working, artifacts: Vec::new() });
            }
            found.push(Point { allocation, evals: Vec::new() });
        }
        Ok((Front { variant: self.variant.name.clone(), points: found }, made))
    }

    fn run(&self, working: &mut Working, steps: std::ops::Range<usize>) -> Result<Vec<Digest>> {
        let mut used = Vec::new();
        for at in steps {
            used.extend(self.variant.steps[at].1.run(working, self.session).map_err(|e| self.placed(at, e))?);
        }
        Ok(used)
    }

    fn placed(&self, at: usize, error: StepError) -> Error {
        let (key, step) = &self.variant.steps[at];
        self.recipe.failed_step(key, step.kind(), error)
    }

    fn allocation(&self, step: &dyn Step, working: &Working) -> Result<AllocationReport> {
        let allocated = step.allocate(working, self.session).map_err(|e| self.placed(self.at, e))?;
        Ok(allocated.expect("it has a budget").0)
    }

    /// True bits per selected weight, evenly spaced.
    fn budgets(&self, working: &Working, points: Points) -> Result<Vec<f64>> {
        let all = self.variant.steps[self.at].1.with_bits(64.0).expect("`budgeted` found it");
        let [least, most] = self.allocation(&*all, working)?.range;
        let (from, to) = (points.from.unwrap_or(least), points.to.unwrap_or(most));
        let share = |at: usize| at as f64 / (points.count - 1) as f64;
        Ok((0..points.count).map(|at| from * (1.0 - share(at)) + to * share(at)).collect())
    }
}

impl Sweep {
    /// One row per point.
    pub fn table(&self) -> Table {
        let points = self.fronts.iter().flat_map(|front| front.points.iter().map(move |point| (front, point)));
        let row = |(front, point): (&Front, &Point)| {
            let allocation = &point.allocation;
            let mut row = vec![
                if front.variant.is_empty() { "-".into() } else { front.variant.clone() },
                format!("{:.4}", allocation.bits_per_weight),
                bytes(allocation.bytes),
                format!("{:.5}", allocation.predicted),
            ];
            let measured: Vec<String> = divergences(point).map(|(eval, kl, _)| format!("{eval}: {kl:.5}")).collect();
            row.push(if measured.is_empty() { "-".into() } else { measured.join(", ") });
            row.push(mixture(allocation));
            row
        };
        let head = &["variant", "bits/selected weight", "size", "predicted loss", "measured KL", "choices"];
        Table { head, rows: points.map(row).collect() }
    }

    fn plot(&self) -> Plot {
        let mut lines = Vec::new();
        for front in &self.fronts {
            let predicted =
                front.points.iter().map(|p| Mark { x: p.allocation.bits_per_weight, y: p.allocation.predicted, error: 0.0 });
            lines.push(Line { name: named("predicted", &front.variant), marks: predicted.collect() });
            let mut measured: BTreeMap<&str, Vec<Mark>> = BTreeMap::new();
            for point in &front.points {
                for (eval, y, error) in divergences(point) {
                    measured.entry(eval).or_default().push(Mark { x: point.allocation.bits_per_weight, y, error });
                }
            }
            lines.extend(measured.into_iter().map(|(eval, marks)| Line { name: named(eval, &front.variant), marks }));
        }
        let divergence = self.fronts.iter().flat_map(|front| &front.points).all(|point| point.allocation.divergence);
        Plot {
            title: self.recipe.clone(),
            x: "true bits per selected weight".into(),
            y: if divergence { "KL divergence, nats per token".into() } else { "predicted loss".into() },
            lines,
        }
    }
}

fn named(what: &str, variant: &str) -> String {
    if variant.is_empty() { what.into() } else { format!("{variant}: {what}") }
}

/// Eval, KL divergence and its standard error.
fn divergences(point: &Point) -> impl Iterator<Item = (&str, f64, f64)> {
    point.evals.iter().filter_map(|eval| match &eval.outcome {
        Outcome::Measured(measured) => {
            let kl = measured.estimate(DIVERGENCE)?;
            Some((eval.eval.as_str(), kl.value, kl.standard_error.unwrap_or(0.0)))
        }
        Outcome::Skipped { .. } | Outcome::Predicted(_) => None,
    })
}

/// `12 int3/g64, 30 int4/g64`: weights by scheme.
fn mixture(allocation: &AllocationReport) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    allocation.choices.iter().for_each(|choice| *counts.entry(&choice.scheme).or_default() += 1);
    counts.into_iter().map(|(scheme, count)| format!("{count} {scheme}")).collect::<Vec<_>>().join(", ")
}
