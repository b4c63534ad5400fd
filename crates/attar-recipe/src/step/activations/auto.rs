//! `bits = "auto"`: what each activation loses in 8 and in 16 bits, a unit each, and which get 16 within the budget.
//!
//! Losses are those of one activation rounded at a time in the model as it enters the step, with scales from the windows that
//! they are found on.

use std::collections::{BTreeMap, HashMap};

use attar_compile::Compile;
use attar_compress::{
    ActivationBudget, ActivationCost, ActivationSensitivity as Sensitivity, ActivationSite as Site, Activations, Feed,
    allocate::{Backward, Cost, Forward, Solution, cosine_distance, kl_divergence, most_bits, solve},
};
use attar_graph::{Graph, Node, SourceWeights, ValueId, Values, integer::Rounding, kernel::with_f32};
use attar_tensor::{Digest, Encoding};
use candle_core::Tensor;

use super::{
    super::{device, kind::StepError},
    Seen, VERSION, add_noise, first_key, refused, scales,
};
use crate::{
    Error, WidthReport, WidthsReport,
    model::Working,
    session::Session,
    shape::predicts_tokens,
    walk::{self, lane_values, windows_together},
};

/// Tokens that gradients are taken on, and tokens that divergences are measured on, at most.
const GRADIENT_TOKENS: usize = 4096;
const MEASURED_TOKENS: usize = 2048;

/// Decides which labels are drawn from the model's predictions.
const SEED: u64 = 0;

/// Tokens of the prompt whose cycles are counted.
const PROMPT: u64 = 128;

/// What an activation may have, in bits.
const OPTIONS: [u32; 2] = [8, 16];

/// What an activation loses in each of [`OPTIONS`].
type Losses = [f64; OPTIONS.len()];

/// A budget that was spent.
pub(super) struct Spent {
    pub(super) report: WidthsReport,
    /// The blobs of the losses.
    pub(super) used: Vec<Digest>,
}

/// How losses are found: as asked for, or as well as the model allows.
fn sensitivity(settings: &Activations, graph: &Graph) -> Result<Sensitivity, StepError> {
    let predicts = predicts_tokens(graph);
    match settings.sensitivity {
        Some(asked) if asked.is_divergence() && !predicts => {
            let message = format!("`sensitivity = \"{}\"` compares predicted tokens, and an encoder predicts none", asked.name());
            let error = Error::recipe(message).hint("leave it out: its embeddings are compared instead (`drift`)".to_owned());
            Err(StepError { key: Some("sensitivity".into()), error })
        }
        Some(Sensitivity::Drift) if predicts => {
            let message = "`sensitivity = \"drift\"` compares embeddings, and a model that predicts tokens makes none";
            let error =
                Error::recipe(message).hint("leave it out: divergences of what it predicts are compared (`fisher`)".to_owned());
            Err(StepError { key: Some("sensitivity".into()), error })
        }
        Some(asked) => Ok(asked),
        None if predicts => Ok(Sensitivity::Fisher),
        None => Ok(Sensitivity::Drift),
    }
}

/// Whether a site's bits are chosen; those of a cache are not.
pub(super) fn is_open(site: &Site) -> bool {
    site.feeds.iter().all(|feed| matches!(feed, Feed::Linear(_)))
}

/// What the sites cost, and how much they may.
struct Room {
    /// By site whose bits are chosen, in each of [`OPTIONS`].
    costs: Vec<[u64; OPTIONS.len()]>,
    cost: ActivationCost,
    /// What 8 bits throughout cost.
    eight: u64,
    capacity: u64,
}

impl Room {
    fn of(budget: &ActivationBudget, sites: &[Site], graph: &Graph) -> Result<Room, StepError> {
        let (cost, share) = budget.bound().map_err(refused)?;
        let open = sites.iter().filter(|site| is_open(site));
        let costs = match cost {
            ActivationCost::Bytes => open.map(|site| OPTIONS.map(|bits| (site.width as u64) * u64::from(bits) / 8)).collect(),
            ActivationCost::Cycles => cycles(budget, open, graph)?,
        };
        let eight: u64 = costs.iter().map(|[eight, _]| eight).sum();
        // A share that was divided out of whole numbers gives them back.
        let capacity = (eight as f64 * (1.0 + share) * (1.0 + 1e-12)) as u64;
        Ok(Room { costs, cost, eight, capacity })
    }

    /// The choices of least loss, and what 16 bits cost wherever they are of use.
    fn spend(&self, losses: &[Losses]) -> (Solution, u64) {
        let items: Vec<Vec<Cost>> = self.costs.iter().zip(losses).map(|(costs, losses)| pairs(costs, losses)).collect();
        let solution = solve(&items, self.capacity).expect("8 bits throughout are within any budget");
        (solution, most_bits(&items))
    }
}

fn pairs(costs: &[u64; OPTIONS.len()], losses: &Losses) -> Vec<Cost> {
    costs.iter().zip(losses).map(|(cost, loss)| Cost { bits: *cost, loss: *loss }).collect()
}

/// Cycles of the array for the products that read each site, with a prompt of [`PROMPT`] tokens. Logits are computed for one.
fn cycles<'s>(
    budget: &ActivationBudget,
    sites: impl Iterator<Item = &'s Site>,
    graph: &Graph,
) -> Result<Vec<[u64; OPTIONS.len()]>, StepError> {
    let name = budget.device.clone().unwrap_or_default();
    let compile = Compile { device: name, set: budget.set.clone(), ..Compile::default() };
    let device = compile.device().map_err(refused_device)?;
    let of = |site: &Site, activations: u32| -> Result<u64, StepError> {
        let readers = graph.nodes().iter().filter(|node| {
            let weight = node.inputs.get(1).map(|id| graph.get(*id).name.as_str());
            site.feeds.iter().any(|feed| matches!(feed, Feed::Linear(name) if weight == Some(name)))
        });
        let mut sum = 0;
        for node in readers {
            let weights = width_on(&device.numerics.weights, graph, node);
            let [m, k, n] = device.rates(weights, activations).map_err(refused_device)?.array;
            let dims = graph.fact(node.inputs[1]).constant_dims().unwrap_or_default();
            let [outputs, inputs] = [dims.first(), dims.get(1)].map(|size| size.copied().unwrap_or(0) as u64);
            let tokens = if graph.outputs().contains(&node.output()) { 1 } else { PROMPT };
            sum += tokens.div_ceil(m) * inputs.div_ceil(k) * outputs.div_ceil(n);
        }
        Ok(sum)
    };
    sites.map(|site| Ok([of(site, OPTIONS[0])?, of(site, OPTIONS[1])?])).collect()
}

fn refused_device(error: attar_compile::Error) -> StepError {
    StepError { key: Some("budget".into()), ..device::refused(error) }
}

/// Bits of the codes that a device multiplies for a weight: the fewest that hold its own, or 8.
fn width_on(widths: &[u32], graph: &Graph, node: &Node) -> u32 {
    let own = match graph.fact(node.inputs[1]).encoding {
        Encoding::Quantized(scheme) => scheme.grid.bits(),
        _ => 8,
    };
    widths.iter().copied().filter(|bits| *bits >= own).min().unwrap_or(8)
}

/// The sites with the bits that an even loss would give them; `model.possible` has those of every budget.
pub(super) fn plan(
    settings: &Activations,
    budget: &ActivationBudget,
    mut sites: Vec<Site>,
    model: &mut Working,
) -> Result<Vec<Site>, StepError> {
    sensitivity(settings, &model.graph)?;
    let room = Room::of(budget, &sites, &model.graph)?;
    for bits in OPTIONS {
        let mut all = sites.clone();
        all.iter_mut().filter(|site| is_open(site)).for_each(|site| site.codes.bits = bits);
        model.possible.push(attar_compress::insert(&model.graph, &all)?);
    }
    let open = sites.iter().filter(|site| is_open(site));
    let even: Vec<Losses> = open.map(|site| OPTIONS.map(|bits| site.width as f64 * 4f64.powi(-(bits as i32)))).collect();
    choose(&mut sites, &room.spend(&even).0);
    // What enters every few blocks is kept on the way back, and a block has several values for each that enters it.
    let stages = 2 * (model.graph.block_count() as f64).sqrt().ceil() as u64 + 8;
    let memory = walk::memory(&model.graph, model.tokens.min(GRADIENT_TOKENS as u64), stages);
    model.walking = model.walking.max(memory);
    Ok(sites)
}

fn choose(sites: &mut [Site], solution: &Solution) {
    let open = sites.iter_mut().filter(|site| is_open(site));
    open.zip(&solution.choices).for_each(|(site, at)| site.codes.bits = OPTIONS[*at]);
}

/// Finds what every site loses, and gives 16 bits to those that gain most.
pub(super) fn run(
    settings: &Activations,
    budget: &ActivationBudget,
    sites: &mut [Site],
    model: &Working,
    session: &Session<'_>,
) -> Result<Spent, StepError> {
    let sensitivity = sensitivity(settings, &model.graph)?;
    let room = Room::of(budget, sites, &model.graph)?;
    let open: Vec<Site> = sites.iter().filter(|site| is_open(site)).cloned().collect();
    let mut judge = Judge { settings, sensitivity, model, session, losses: BTreeMap::new(), used: Vec::new() };
    judge.all(&open)?;
    let losses: Vec<Losses> = open.iter().map(|site| judge.losses[&site.value]).collect();
    let (solution, most) = room.spend(&losses);
    choose(sites, &solution);
    let report = WidthsReport {
        budget: budget.to_string(),
        sensitivity: sensitivity.name().into(),
        divergence: sensitivity.is_divergence(),
        cost: room.cost.name().into(),
        least: room.eight,
        allowed: room.capacity,
        spent: solution.bits,
        most,
        predicted: solution.loss,
        predicted_least: losses.iter().map(|[eight, _]| eight).sum(),
        optimal: solution.optimal,
        wide: solution.choices.iter().filter(|at| OPTIONS[**at] == 16).count(),
        activations: open.len(),
        choices: open
            .iter()
            .zip(&losses)
            .zip(&solution.choices)
            .map(|((site, losses), at)| WidthReport {
                name: site.value.clone(),
                bits: OPTIONS[*at],
                losses: *losses,
                feeds: site.feeds.iter().map(ToString::to_string).collect(),
            })
            .collect(),
    };
    Ok(Spent { report, used: judge.used })
}

/// Finds losses.
struct Judge<'a> {
    settings: &'a Activations,
    sensitivity: Sensitivity,
    model: &'a Working,
    session: &'a Session<'a>,
    /// By value.
    losses: BTreeMap<String, Losses>,
    used: Vec<Digest>,
}

impl Judge<'_> {
    fn all(&mut self, sites: &[Site]) -> Result<(), StepError> {
        let whole = self.whole_key()?;
        let key = |site: &Site| Digest::of_parts([whole.as_bytes().as_slice(), site.value.as_bytes()]);
        let mut open: Vec<(Digest, &Site)> = Vec::new();
        for site in sites {
            match self.session.done(&key(site))? {
                Some(blob) => self.take(site, blob)?,
                None => open.push((key(site), site)),
            }
        }
        if open.is_empty() {
            return Ok(());
        }
        let stage = format!("{}: {} of activations", self.model.title, self.sensitivity.name());
        self.session.observer.stage(&stage, open.len() as u64);
        match self.sensitivity {
            Sensitivity::Fisher => self.back(&open),
            Sensitivity::Kl | Sensitivity::Drift | Sensitivity::Noise => self.forth(&open),
        }
    }

    /// What decides every loss.
    fn whole_key(&self) -> Result<Digest, StepError> {
        let (graph, source) = (&self.model.graph, &*self.model.source);
        // What may be spent decides no loss.
        let settings = Activations { budget: None, ..self.settings.clone() };
        let kind = format!("losses of activations {} {VERSION} {SEED}", self.sensitivity.name());
        let mut parts = vec![Digest::of(kind.as_bytes()), first_key(&settings, graph, self.windows())];
        for (_, _, expr) in graph.weights() {
            parts.push(expr.digest(source)?);
        }
        Ok(Digest::of_parts(parts.iter().map(|digest| digest.as_bytes().as_slice())))
    }

    /// The windows that losses are found on.
    fn windows(&self) -> &[Vec<u32>] {
        let windows = self.session.calibration.unwrap_or_default();
        let length = windows.first().map_or(1, Vec::len).max(1);
        let tokens = if self.sensitivity == Sensitivity::Fisher { GRADIENT_TOKENS } else { MEASURED_TOKENS };
        &windows[..(tokens / length).max(1).min(windows.len())]
    }

    fn lanes(&self) -> crate::Result<Vec<Values>> {
        let windows = self.windows();
        lane_values(&self.model.graph, windows, windows_together(windows))
    }

    fn take(&mut self, site: &Site, blob: Digest) -> Result<(), Error> {
        self.losses.insert(site.value.clone(), self.session.read_json(&blob, "a loss of an activation")?);
        self.used.push(blob);
        Ok(())
    }

    fn note(&mut self, key: Digest, site: &Site, losses: Losses) -> Result<(), Error> {
        let blob = self.session.json(key, || Ok(losses))?;
        self.take(site, blob)
    }

    /// From the last block to the first, by gradients.
    fn back(&mut self, open: &[(Digest, &Site)]) -> Result<(), StepError> {
        let graph = &self.model.graph;
        let sites: HashMap<ValueId, &(Digest, &Site)> =
            open.iter().filter_map(|one| Some((graph.find(&one.1.value)?, one))).collect();
        let below = SourceWeights(self.model.source.clone());
        let wanted = |id: ValueId| sites.contains_key(&id);
        let mut back = Backward { graph, weights: &below, wanted: &wanted, seed: SEED }.start(self.lanes()?, Vec::new())?;
        let mut done = 0;
        while let Some((_, outputs)) = back.step()? {
            self.session.check_interrupt()?;
            for (id, watched) in &outputs.watched {
                let (key, site) = sites[id];
                let values: Vec<Tensor> = watched.iter().map(|lane| lane.values.clone()).collect();
                let losses = self.losses_of(site, &values, &mut |rounding| {
                    let (mut sum, mut tokens) = (0.0, 0);
                    for lane in watched {
                        let rounded = rounded(rounding, &lane.values, site.width)?;
                        let (more, of) = lane.divergence(&(rounded - &lane.values).map_err(attar_graph::Error::from)?)?;
                        (sum, tokens) = (sum + more, tokens + of);
                    }
                    Ok(sum / tokens.max(1) as f64)
                })?;
                self.note(*key, site, losses)?;
                done += 1;
                self.session.observer.advance(done, &site.value);
            }
        }
        // What nothing that is returned depends on loses nothing.
        for (key, site) in open {
            if !self.losses.contains_key(&site.value) {
                self.note(*key, site, [0.0; OPTIONS.len()])?;
            }
        }
        Ok(())
    }

    /// From the first block to the last, by running what follows.
    fn forth(&mut self, open: &[(Digest, &Site)]) -> Result<(), StepError> {
        let graph = &self.model.graph;
        let below = SourceWeights(self.model.source.clone());
        let mut forward = Forward::new(graph, &below, self.lanes()?);
        let mut done = 0;
        while let Some(block) = forward.block() {
            let made: Vec<ValueId> = graph.nodes_of(block).flat_map(|node| node.outputs.iter().copied()).collect();
            for (key, site) in open {
                let Some(id) = graph.find(&site.value).filter(|id| made.contains(id)) else { continue };
                self.session.check_interrupt()?;
                let values = forward.values(id)?;
                let losses = self.losses_of(site, &values, &mut |rounding| match self.sensitivity {
                    Sensitivity::Kl => Ok(forward.distance(id, &|x| rounded(rounding, x, site.width), kl_divergence)?),
                    Sensitivity::Drift => Ok(forward.distance(id, &|x| rounded(rounding, x, site.width), cosine_distance)?),
                    _ => noise(rounding, &values, site.width),
                })?;
                self.note(*key, site, losses)?;
                done += 1;
                self.session.observer.advance(done, &site.value);
            }
            forward.step()?;
        }
        Ok(())
    }

    /// What `loss` finds with the rounding in each of [`OPTIONS`], as if all that read the value read its codes.
    fn losses_of(
        &self,
        site: &Site,
        values: &[Tensor],
        loss: &mut dyn FnMut(&Rounding) -> Result<f64, Error>,
    ) -> Result<Losses, Error> {
        let mut losses = [0.0; OPTIONS.len()];
        for (place, bits) in losses.iter_mut().zip(OPTIONS) {
            let mut site = site.clone();
            site.codes.bits = bits;
            *place = loss(&scales(self.settings, &site, values)?.rounding(&site))?;
        }
        Ok(losses)
    }
}

/// Squared error as a share of the values' energy.
fn noise(rounding: &Rounding, values: &[Tensor], width: usize) -> Result<f64, Error> {
    let mut seen = Seen::default();
    for x in values {
        with_f32(x, |x| add_noise(&mut seen, rounding, x, width)).map_err(attar_graph::Error::from)?;
    }
    Ok(if seen.energy > 0.0 { seen.squared_error / seen.energy } else { 0.0 })
}

/// The values that the codes of `x` mean.
fn rounded(rounding: &Rounding, x: &Tensor, width: usize) -> attar_graph::Result<Tensor> {
    let numbers = with_f32(&x.contiguous()?, |x| {
        let mut rounded = vec![0.0; x.len()];
        rounding.round(x, width, &mut rounded);
        rounded
    })?;
    Ok(Tensor::from_vec(numbers, x.shape(), x.device())?)
}
