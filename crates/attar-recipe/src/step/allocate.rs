//! Budgets of the step `quantize`: what every option of every weight loses, a unit each, and the best choices.
//!
//! Losses are those of one weight changed at a time in the model as it enters the step, with the codes that the step's
//! own algorithm picks. Gradients come from the first calibration windows, second moments from the others, so that an
//! algorithm is not judged on what it was fitted to.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use attar_compile::device::Zeros;
use attar_compress::{
    Assignment, Hessian, LEAST_CODED, Needs, Quantize, Seen,
    allocate::{Backward, Budget, Cost, Outputs, Reads, Sensitivity, least_bits, most_bits, solve},
};
use attar_eval::{Output, Reference, Rows, Runner, Window, perplexity};
use attar_graph::{Expr, Graph, SourceWeights, ValueId, kernel::instruction_set};
use attar_model::Model;
use attar_tensor::{Blobs, Digest, Overlay, Scratch, Source, TensorInfo};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::{
    codes::{self, place, refused},
    device,
    kind::StepError,
};
use crate::{
    AllocationReport, ChoiceReport, Error,
    coded::{Codes, is_coded},
    model::Working,
    session::Session,
    shape::predicts_tokens,
    walk::{first_key, lane_values, windows_together},
};

/// Moves whenever the same input gives other predictions.
const VERSION: u32 = 3;

/// Tokens that gradients are taken on, and tokens that second moments are summed over, at most.
const GRADIENT_TOKENS: usize = 4096;
const SEEN: usize = 8192;

/// Decides which labels are drawn from the model's predictions.
const SEED: u64 = 0;

/// A budget that was spent.
pub(super) struct Spent {
    pub(super) assignments: Vec<Assignment>,
    pub(super) report: AllocationReport,
    /// The blobs of the predictions.
    pub(super) used: Vec<Digest>,
}

/// What the selected weights may take, and what else there is.
struct Room {
    budget: Budget,
    /// Numbers in the selected weights.
    weights: u64,
    /// Bits of everything else.
    rest: u64,
}

impl Room {
    fn of(budget: Budget, options: &[Vec<Assignment>], graph: &Graph) -> Room {
        let selected = |id: ValueId| options.iter().any(|options| options[0].is_of(id));
        let mut seen = std::collections::HashSet::new();
        let others = graph
            .weights()
            .filter(|(id, value, expr)| !selected(*id) && seen.insert(((*expr).clone(), value.fact.encoding.to_string())));
        let bits = others.map(|(_, value, _)| {
            TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding }.true_bits()
        });
        let rest = bits.sum();
        Room { budget, weights: options.iter().map(|options| (options[0].dims[0] * options[0].dims[1]) as u64).sum(), rest }
    }

    fn capacity(&self) -> u64 {
        self.budget.bits(self.weights, self.rest)
    }

    /// The choices of least loss.
    fn spend(&self, costs: &[Vec<Cost>]) -> Result<attar_compress::allocate::Solution, StepError> {
        solve(costs, self.capacity()).ok_or_else(|| {
            refused(attar_compress::Error::BudgetTooSmall {
                key: self.budget.key(),
                budget: self.budget.to_string(),
                least: self.budget.that_allows(least_bits(costs), self.weights, self.rest),
            })
        })
    }

    fn per_weight(&self, bits: u64) -> f64 {
        bits as f64 / self.weights.max(1) as f64
    }
}

/// What an option is predicted to lose, and its codes.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Prediction {
    loss: f64,
    /// Of integers with a scale per row or tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    codes: Option<Codes>,
}

impl Prediction {
    /// Bits of a weight: those that the `coder` takes, where there is one, or else as stored.
    fn bits(&self, a: &Assignment, coder: Option<&Zeros>) -> u64 {
        let weights = (a.dims[0] * a.dims[1]) as f64;
        let coded = coder.and_then(|coder| self.codes?.coded_bits(coder));
        coded.map_or_else(|| a.scheme.true_bits(a.dims), |bits| (weights * bits).ceil() as u64)
    }
}

fn costs(options: &[Vec<Assignment>], predictions: &[Vec<Prediction>], coder: Option<&Zeros>) -> Vec<Vec<Cost>> {
    let cost = |(a, found): (&Assignment, &Prediction)| Cost { bits: found.bits(a, coder), loss: found.loss };
    options.iter().zip(predictions).map(|(options, found)| options.iter().zip(found).map(cost).collect()).collect()
}

/// The device of a budget of coded bits, and what its coder takes.
pub(super) fn coder(settings: &Quantize) -> Result<Option<(String, Zeros)>, StepError> {
    let Some(name) = settings.device.as_ref().filter(|_| settings.coded_bits.is_some()) else { return Ok(None) };
    let zeros = device::named(name)?.zeros;
    if zeros.coded.is_empty() {
        let hint = "`sparsity.coded` in a device's file says what its coder takes; `attar devices` lists what attar has";
        let error = Error::recipe(format!("`{name}` does not code its weights, so codes of few bits bring it nothing"))
            .hint(hint.to_owned());
        return Err(StepError { key: Some("device".into()), error });
    }
    Ok(Some((name.clone(), zeros)))
}

/// Whether the budget can be met and predictions can be made; and choices as they could be if all weights were alike.
pub(super) fn plan(
    settings: &Quantize,
    budget: Budget,
    options: Vec<Vec<Assignment>>,
    model: &mut Working,
) -> Result<Vec<Assignment>, StepError> {
    sensitivity(settings, &model.graph, model.calibrated)?;
    if let Some(found) = coder(settings)? {
        let least = |a: &Assignment| match a.rate {
            Some(_) => Cost { bits: (LEAST_CODED * (a.dims[0] * a.dims[1]) as f64) as u64, loss: 0.0 },
            None => Cost { bits: a.scheme.true_bits(a.dims), loss: 0.0 },
        };
        let least: Vec<Vec<Cost>> = options.iter().map(|options| options.iter().take(1).map(least).collect()).collect();
        Room::of(budget, &options, &model.graph).spend(&least)?;
        model.coder = Some(found);
        model.coded.extend(options.iter().flat_map(|options| options[0].names().map(str::to_owned)));
        // All options are stored alike.
        return Ok(options.into_iter().filter_map(|options| options.into_iter().next()).collect());
    }
    let even = |a: &Assignment| (a.dims[0] * a.dims[1]) as f64 * 4f64.powf(-a.scheme.bits_per_weight(a.dims));
    let even = |a: &Assignment| Prediction { loss: even(a), codes: None };
    let losses: Vec<Vec<Prediction>> = options.iter().map(|options| options.iter().map(even).collect()).collect();
    let solution = Room::of(budget, &options, &model.graph).spend(&costs(&options, &losses, None))?;
    let most = options.iter().map(Vec::len).max().unwrap_or(0);
    for at in 0..most {
        let mut graph = model.graph.clone();
        options.iter().for_each(|options| place(&mut graph, &options[at.min(options.len() - 1)]));
        model.possible.push(graph);
    }
    Ok(options.into_iter().zip(solution.choices).map(|(mut options, at)| options.swap_remove(at)).collect())
}

/// What a weight of an even plan becomes, for people.
pub(super) fn describe(settings: &Quantize, assignment: &Assignment) -> String {
    let budget = settings.budget().map(|budget| budget.to_string()).unwrap_or_default();
    format!("about {}, by `{budget}`", assignment.scheme)
}

/// Bytes of memory that judging a weight takes on top of quantizing it: what it is, what it becomes, and the difference.
pub(super) fn memory([rows, columns]: [usize; 2]) -> u64 {
    let tokens = (GRADIENT_TOKENS + SEEN) as u64;
    12 * (rows * columns) as u64 + 4 * tokens * 8 * columns as u64
}

/// How losses are predicted: as asked for, or as well as the recipe and the model allow.
fn sensitivity(settings: &Quantize, graph: &Graph, calibrated: bool) -> Result<Sensitivity, StepError> {
    let refused = |message: String, hint: Option<&str>| {
        let error = Error::recipe(message).hint(hint.map(str::to_owned));
        Err(StepError { key: Some("sensitivity".into()), error })
    };
    let predicts = predicts_tokens(graph);
    match settings.sensitivity {
        Some(asked) if asked.is_divergence() && !predicts => {
            let message = format!("`sensitivity = \"{}\"` compares predicted tokens, and an encoder predicts none", asked.name());
            refused(message, Some("leave it out: the error of the weights is compared instead"))
        }
        Some(asked) => Ok(asked),
        None if calibrated && predicts => Ok(Sensitivity::Fisher),
        None => Ok(Sensitivity::Weights),
    }
}

/// Predicts what every option loses, and chooses.
pub(super) fn run(settings: &Quantize, budget: Budget, model: &Working, session: &Session<'_>) -> Result<Spent, StepError> {
    let options = settings.options_with_zeros(&model.graph, &model.zeros).map_err(refused)?;
    let sensitivity = sensitivity(settings, &model.graph, session.calibration.is_some())?;
    let room = Room::of(budget, &options, &model.graph);
    let coder = coder(settings)?;
    let coder = coder.as_ref().map(|(_, zeros)| zeros);
    let (losses, used) = Judge::new(sensitivity, &options, model, session)?.losses()?;
    let costs = costs(&options, &losses, coder);
    let solution = room.spend(&costs)?;
    if settings.sensitivity.is_none() && session.calibration.is_none() {
        session.observer.note("without `[data.calibration]` a budget is spent by the error of the weights alone");
    }
    let chosen =
        || options.iter().zip(&losses).zip(&solution.choices).map(|((options, losses), at)| (&options[*at], losses[*at]));
    let choice = |(a, found): (&Assignment, Prediction)| {
        let step = a.rate.map(|rate| format!(", step {:.3}", rate.step)).unwrap_or_default();
        ChoiceReport {
            name: a.name.clone(),
            scheme: format!("{}{step}", a.scheme),
            bits_per_weight: found.bits(a, coder) as f64 / (a.dims[0] * a.dims[1]).max(1) as f64,
            predicted: found.loss,
            zeros: coder.and(found.codes).map(|codes| codes.zeros as f64 / codes.weights.max(1) as f64),
        }
    };
    let stored: u64 = chosen().map(|(a, _)| a.scheme.true_bits(a.dims)).sum();
    let report = AllocationReport {
        budget: budget.to_string(),
        sensitivity: sensitivity.name().into(),
        allowed: room.per_weight(room.capacity()),
        bits_per_weight: room.per_weight(solution.bits),
        bytes: (stored + room.rest).div_ceil(8),
        range: [room.per_weight(least_bits(&costs)), room.per_weight(most_bits(&costs))],
        predicted: solution.loss,
        divergence: sensitivity.is_divergence(),
        optimal: solution.optimal,
        choices: chosen().map(choice).collect(),
    };
    Ok(Spent { assignments: chosen().map(|(a, _)| a.clone()).collect(), report, used })
}

/// One prediction: what a use of a weight loses under an option.
struct Part {
    /// Which weight, and which of its options.
    weight: usize,
    option: usize,
    /// The value that is read there: the weight's own, or one that is tied to it.
    value: ValueId,
    key: Digest,
}

/// Predicts losses.
struct Judge<'a> {
    sensitivity: Sensitivity,
    options: &'a [Vec<Assignment>],
    graph: &'a Graph,
    source: Arc<dyn Source>,
    session: &'a Session<'a>,
    title: &'a str,
    parts: Vec<Part>,
    losses: Vec<Vec<Prediction>>,
    used: Vec<Digest>,
}

impl<'a> Judge<'a> {
    fn new(
        sensitivity: Sensitivity,
        options: &'a [Vec<Assignment>],
        model: &'a Working,
        session: &'a Session<'a>,
    ) -> Result<Judge<'a>, StepError> {
        let (graph, source) = (&model.graph, model.source.clone());
        let losses = options.iter().map(|options| vec![Prediction::default(); options.len()]).collect();
        let mut judge = Judge {
            sensitivity,
            options,
            graph,
            source,
            session,
            title: &model.title,
            parts: Vec::new(),
            losses,
            used: Vec::new(),
        };
        judge.parts = judge.all_parts()?;
        Ok(judge)
    }

    fn all_parts(&self) -> Result<Vec<Part>, StepError> {
        let all = self.whole_key()?;
        let mut parts = Vec::new();
        for (weight, options) in self.options.iter().enumerate() {
            for (option, assignment) in options.iter().enumerate() {
                let own = codes::key(assignment, &*self.source)?;
                for value in self.judged(assignment) {
                    let name = self.graph.get(value).name.as_bytes();
                    let key = Digest::of_parts([all.as_bytes().as_slice(), own.as_bytes(), name]);
                    parts.push(Part { weight, option, value, key });
                }
            }
        }
        Ok(parts)
    }

    /// Where a weight is judged: to second order wherever it is read, or else once, at the last of its uses, for that is
    /// where a head sees its inputs.
    fn judged(&self, assignment: &Assignment) -> Vec<ValueId> {
        match self.sensitivity {
            Sensitivity::Fisher => assignment.ids().collect(),
            _ => assignment.ids().last().into_iter().collect(),
        }
    }

    /// Whether activations are looked at.
    fn sees(&self) -> bool {
        let needs = |a: &Assignment| a.algorithm.needs() != Needs::Nothing;
        self.sensitivity.is_divergence() || self.options.iter().flatten().any(needs)
    }

    /// What decides every prediction.
    fn whole_key(&self) -> Result<Digest, StepError> {
        let kind = format!("sensitivity {} {VERSION} {SEED}", self.sensitivity.name());
        let mut parts = vec![Digest::of(kind.as_bytes())];
        if self.sees() {
            parts.push(first_key(self.graph, self.session.calibration.unwrap_or_default()));
            parts.push(Digest::of(instruction_set().as_bytes()));
            for (_, _, expr) in self.graph.weights() {
                parts.push(expr.digest(&*self.source)?);
            }
        }
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    /// By weight and option, and the blobs they are in.
    fn losses(mut self) -> Result<(Vec<Vec<Prediction>>, Vec<Digest>), StepError> {
        let mut open = Vec::new();
        for part in std::mem::take(&mut self.parts) {
            match self.session.done(&part.key)? {
                Some(blob) => self.take(&part, blob)?,
                None => open.push(part),
            }
        }
        if !open.is_empty() {
            self.session.observer.stage(&format!("{}: {} sensitivity", self.title, self.sensitivity.name()), open.len() as u64);
            if self.sees() { self.walk(open)? } else { self.weigh(open)? }
        }
        Ok((self.losses, self.used))
    }

    fn take(&mut self, part: &Part, blob: Digest) -> Result<(), Error> {
        let found = self.session.read_json::<Prediction>(&blob, "a prediction")?;
        let sum = &mut self.losses[part.weight][part.option];
        *sum = Prediction { loss: sum.loss + found.loss, codes: found.codes };
        self.used.push(blob);
        Ok(())
    }

    fn note(&mut self, part: &Part, loss: f64, candidate: &Candidate<'_>) -> Result<(), Error> {
        let found = Prediction { loss, codes: candidate.codes()? };
        let blob = self.session.json(part.key, || Ok(found))?;
        self.take(part, blob)
    }

    /// Without activations.
    fn weigh(&mut self, open: Vec<Part>) -> Result<(), StepError> {
        for (at, part) in open.iter().enumerate() {
            self.session.check_interrupt()?;
            let candidate = self.candidate(part, None)?;
            self.note(part, candidate.noise()?, &candidate)?;
            self.session.observer.advance(at as u64 + 1, &candidate.assignment.name);
        }
        Ok(())
    }

    /// From the last block to the first.
    fn walk(&mut self, open: Vec<Part>) -> Result<(), StepError> {
        let windows = self.session.calibration.unwrap_or_default();
        let (gradient_windows, seen) = split(windows);
        let wanted = |id: ValueId| open.iter().any(|part| part.value == id);
        let below = SourceWeights(self.source.clone());
        let graph = self.graph;
        let back = Backward { graph, weights: &below, wanted: &wanted, seed: SEED };
        let lanes = |windows| lane_values(graph, windows, windows_together(windows));
        let mut back = back.start(lanes(gradient_windows)?, lanes(seen)?)?;
        let base = self.session.base().with(graph.clone(), self.source.clone());
        let text: Vec<Window> = gradient_windows.iter().map(|w| Window { tokens: w.clone(), scored: 0..w.len() - 1 }).collect();
        let runner = Reference::new(&base);
        let mut exact = Exact { base: &base, windows: &text, logits: runner.start(Output::Logits.into(), &text, &|_, _| {})? };
        let (mut done, mut moments) = (0, BTreeMap::new());
        while let Some((_, outputs)) = back.step()? {
            for part in open.iter().filter(|part| outputs.reads.contains_key(&part.value)) {
                self.session.check_interrupt()?;
                // What is tied to a head has no inputs of its own.
                if let Some(hessian) = outputs.hessian(part.value).filter(|_| !self.options[part.weight][0].tied.is_empty()) {
                    moments.entry(part.weight).or_insert_with(|| hessian.clone());
                }
                let hessian = outputs.hessian(part.value).or(moments.get(&part.weight));
                let candidate = self.candidate(part, hessian)?;
                let loss = match self.sensitivity {
                    Sensitivity::Fisher => candidate.divergence(part.value, &outputs)?,
                    Sensitivity::Kl => exact.divergence(&candidate)?,
                    Sensitivity::Weights => candidate.noise()?,
                };
                self.note(part, loss, &candidate)?;
                done += 1;
                self.session.observer.advance(done, &candidate.assignment.name);
            }
        }
        Ok(())
    }

    /// The weight of a part, quantized.
    fn candidate(&self, part: &Part, hessian: Option<&Hessian>) -> Result<Candidate<'a>, StepError> {
        let assignment = &self.options[part.weight][part.option];
        let scratch = self.session.store.scratch()?;
        let path = scratch.path().join("candidate");
        attar_tensor::write_atomically(&path, |to| {
            codes::quantize(assignment, &*self.source, Seen { hessian, drift: None }, to, &|_| {})
        })?;
        Ok(Candidate { assignment, graph: self.graph, source: self.source.clone(), path, _scratch: scratch })
    }
}

/// The windows for gradients and those for second moments.
fn split(windows: &[Vec<u32>]) -> (&[Vec<u32>], &[Vec<u32>]) {
    let length = windows.first().map_or(1, Vec::len).max(1);
    let gradient_windows = (GRADIENT_TOKENS / length).clamp(1, windows.len().div_ceil(2).max(1)).min(windows.len());
    let seen = (SEEN / length).min(windows.len() - gradient_windows);
    (&windows[..gradient_windows], &windows[gradient_windows..gradient_windows + seen])
}

/// A quantized weight that nothing is decided about.
struct Candidate<'a> {
    assignment: &'a Assignment,
    graph: &'a Graph,
    source: Arc<dyn Source>,
    path: PathBuf,
    _scratch: Scratch,
}

impl Candidate<'_> {
    fn blobs(&self) -> Blobs {
        let (a, mut blobs) = (self.assignment, Blobs::default());
        a.names().for_each(|name| blobs.insert_file(name, self.path.clone(), a.scheme, a.dims));
        blobs
    }

    /// Of integers with a scale per row or tensor.
    fn codes(&self) -> Result<Option<Codes>, Error> {
        let a = self.assignment;
        is_coded(&a.scheme).then(|| Codes::of(&Expr::tensor(&a.name), &self.blobs(), a.dims[0])).transpose()
    }

    /// Squared error as a share of the weights' energy.
    fn noise(&self) -> Result<f64, Error> {
        let damage = self.blobs().damage(&self.assignment.name)?;
        Ok(if damage.energy > 0.0 { damage.squared_error / damage.energy } else { 0.0 })
    }

    /// To second order, per token.
    fn divergence(&self, value: ValueId, outputs: &Outputs) -> Result<f64, Error> {
        let (weight, change) = self.change()?;
        let (mut sum, mut tokens) = (0.0, 0);
        for reads in outputs.reads.get(&value).into_iter().flatten() {
            let (more, of) = Reads::divergence(reads, &weight, &change)?;
            (sum, tokens) = (sum + more, tokens + of);
        }
        Ok(sum / tokens.max(1) as f64)
    }

    /// The weight `[rows, columns]`, and what is added to it.
    fn change(&self) -> Result<(Tensor, Tensor), Error> {
        let dims = self.assignment.dims;
        let (mut original, mut quantized) = (vec![0.0; dims[0] * dims[1]], vec![0.0; dims[0] * dims[1]]);
        self.assignment.expr.read(&*self.source, 0..dims[0], &mut original)?;
        self.blobs().read(&self.assignment.name, 0..dims[0], &mut quantized)?;
        quantized.iter_mut().zip(&original).for_each(|(q, w)| *q -= w);
        let tensor = |values| Tensor::from_vec(values, (dims[0], dims[1]), &Device::Cpu).map_err(attar_graph::Error::from);
        Ok((tensor(original)?, tensor(quantized)?))
    }
}

/// Measures divergences.
struct Exact<'a> {
    base: &'a Model,
    windows: &'a [Window],
    logits: Box<dyn Rows + 'a>,
}

impl Exact<'_> {
    /// Of the model with one weight quantized, per token.
    fn divergence(&mut self, candidate: &Candidate<'_>) -> Result<f64, Error> {
        let mut graph = candidate.graph.clone();
        place(&mut graph, candidate.assignment);
        let model = self.base.with(graph, Arc::new(Overlay::new(Arc::new(candidate.blobs()), candidate.source.clone())));
        let runner = Reference::new(&model);
        let mut logits = runner.start(Output::Logits.into(), self.windows, &|_, _| {})?;
        let measured = perplexity::compare(self.windows, &mut *self.logits, &mut *logits, None, &|_, _| {})?;
        Ok(measured.against_base.map_or(0.0, |base| base.kl_mean.value))
    }
}
