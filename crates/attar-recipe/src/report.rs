//! What a run found, for machines (`report.json`, versioned), CI pages (`report.md`) and terminals.
//!
//! Nothing in a report depends on when or how fast it was made: the same recipe gives the same report.

use attar_compile::{
    Tiled,
    pass::PassReport,
    report::{ProductReport, columns},
    schedule::Goal,
};
use attar_eval::{Evaluation, Outcome, Status, Verdict};
use attar_export::Totals;
use serde::{Deserialize, Serialize};

/// Version of the report's JSON.
pub(crate) const FORMAT: u32 = 1;

/// Activations that the text of a report shows of each variant.
const WORST: usize = 10;

/// What a run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format: 1.
    pub report: u32,
    /// The program, with its version.
    pub tool: String,
    /// The recipe's path, or the command line that stands for it.
    pub recipe: String,
    /// Digest of the recipe with every default filled in.
    pub recipe_digest: attar_tensor::Digest,
    /// The checkpoint.
    pub model: ModelReport,
    /// Each way through the steps.
    pub variants: Vec<VariantReport>,
    /// What was measured.
    pub evals: Vec<EvalReport>,
    /// The gates' answers.
    pub gates: Vec<Verdict>,
    /// Whether every gate passed.
    pub passed: bool,
}

/// The checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelReport {
    /// As the recipe reaches it.
    pub path: String,
    /// What it is.
    pub architecture: String,
    /// Numbers in its weights; tied ones count once.
    pub parameters: u64,
}

/// What became of one variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VariantReport {
    /// Empty for the only one.
    pub name: String,
    /// True bits a weight over all weights: codes, scales, zeros, and whatever stayed as it was.
    pub bits_per_weight: f64,
    /// True bits a weight over the quantized ones; 0 if there is none.
    pub quantized_bits_per_weight: f64,
    /// What changed the weights and not the function, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transforms: Vec<TransformReport>,
    /// Every weight that a step changed, in the graph's order.
    pub tensors: Vec<TensorReport>,
    /// How budgets were spent, in the order of the steps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allocations: Vec<AllocationReport>,
    /// Every activation that is in integers, the one with the least signal to noise first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub activations: Vec<ActivationReport>,
    /// What passes did to the graph, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fusions: Vec<FusionReport>,
    /// What it was compiled to, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub compilations: Vec<CompilationReport>,
    /// How its products were cut for devices, in order; what is best in other ways is in `tiles.json`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tilings: Vec<Tiled>,
    /// Plans that were proven again, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub simulations: Vec<SimulationReport>,
    /// Buffers that were placed in a memory, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placements: Vec<PlacementReport>,
    /// What was written.
    pub artifacts: Vec<ArtifactReport>,
}

/// A plan that was run on real numbers and agreed with the reference in every bit. Cycles, times and energies are predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SimulationReport {
    /// Its file, or `FOLDER/FILE` of what the recipe compiled.
    pub plan: String,
    /// For what.
    pub device: String,
    /// What it runs.
    pub title: String,
    /// Always so: what is not proven fails the run.
    pub proven: bool,
    /// Multiply-accumulates.
    pub macs: u64,
    /// DRAM bytes moved.
    pub dram_bytes: u64,
    /// Bytes.
    pub peak_sram: u64,
    /// Of the device.
    pub cycles: u64,
    /// Seconds.
    pub latency: f64,
    /// Joules.
    pub energy: f64,
}

/// Buffers in a memory, none that live at once overlapping, which was checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlacementReport {
    /// Where they come from.
    pub file: String,
    /// How many.
    pub buffers: usize,
    /// Bytes that there are, if that was said.
    pub capacity: Option<u64>,
    /// The most bytes that live at one moment.
    pub max_live: u64,
    /// Bytes that the placement takes.
    pub height: u64,
    /// No placement takes fewer, where that was asked for.
    pub at_least: Option<u64>,
    /// The share of the height that is above what lives at once.
    pub fragmentation: f64,
    /// What found it.
    pub method: String,
    /// Nodes that were searched.
    pub nodes: u64,
}

/// A model for a device. Times, energies and bytes are predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompilationReport {
    /// For what.
    pub device: String,
    /// Nodes that stay with the host: the embedding; last norm and head where they are in float.
    pub host_nodes: usize,
    /// Sizes of chunks that the prompt could run in, the largest first.
    pub chunks: Vec<ChunkReport>,
    /// Sizes of chunks and goals that are best in some way, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<FrontReport>,
    /// Prefill, and decode if it was asked for.
    pub phases: Vec<PhaseReport>,
    /// The last norm and the head, if they are on the device and were proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<ProofReport>,
}

/// A size of chunks, and what a prompt costs with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChunkReport {
    /// Tokens.
    pub chunk: u64,
    /// How many there are.
    pub chunks: u64,
    /// DRAM bytes of all.
    pub dram_bytes: u64,
    /// Cycles of all.
    pub cycles: u64,
    /// Bytes.
    pub peak_sram: u64,
    /// Bytes of DRAM for activations.
    pub activations: u64,
    /// Whether each chunk was scheduled, not only some.
    pub exact: bool,
}

/// A size of chunks and a goal of which nothing is better in DRAM bytes, cycles, energy and SRAM at once. All are predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontReport {
    /// What was made small.
    pub goal: Goal,
    /// Joules of all chunks.
    pub energy: f64,
    /// What a prompt costs.
    #[serde(flatten)]
    pub prompt: ChunkReport,
}

/// One run of a compiled model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// `prefill` or `decode`.
    pub name: String,
    /// Tokens at once.
    pub rows: u64,
    /// Tokens before them.
    pub past: u64,
    /// Calls of the plan.
    pub kernels: usize,
    /// Different bodies of code that they call.
    pub bodies: usize,
    /// Multiply-accumulates.
    pub macs: u64,
    /// DRAM bytes moved.
    pub dram_bytes: u64,
    /// Seconds.
    pub latency: f64,
    /// Joules.
    pub energy: f64,
    /// Bytes.
    pub peak_sram: u64,
    /// Bytes.
    pub peak_dram: u64,
    /// How its first blocks were proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofReport>,
}

/// Blocks, or the head, whose plan was run on real numbers and agreed with the reference in every bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProofReport {
    /// How many blocks, from the first.
    pub blocks: usize,
    /// Multiply-accumulates, each done once.
    pub macs: u64,
    /// DRAM bytes moved, as foretold.
    pub dram_bytes: u64,
    /// Signal over the difference from the float graph, in decibels.
    pub snr_db: Option<f64>,
}

/// A step that keeps what the model computes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransformReport {
    /// Its kind.
    pub step: String,
    /// How many weights it changed.
    pub weights: usize,
    /// Largest difference of a logit from that before the step, over the largest logit, on a few windows.
    pub logits_off: f64,
    /// More than this fails the run.
    pub logits_off_at_most: f64,
    /// What was scaled, if channels were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<SiteReport>,
}

/// Channels that were scaled.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SiteReport {
    /// Canonical name of what makes them.
    pub name: String,
    /// The exponent that was chosen.
    pub alpha: f64,
    /// Error of the outputs behind them, rounded to nearest, as a share of that without scaling; absent where the method
    /// does not look.
    pub error: Option<f64>,
}

/// What became of one weight.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TensorReport {
    /// Canonical name.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Its encoding.
    pub encoding: String,
    /// Codes, scales and zeros.
    pub bits_per_weight: f64,
    /// Signal to quantization noise in decibels; absent when nothing was lost.
    pub snr_db: Option<f64>,
}

/// How a budget was spent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllocationReport {
    /// As in the recipe: `bits = 3.5`.
    pub budget: String,
    /// How losses were predicted.
    pub sensitivity: String,
    /// True bits a selected weight that the budget allows.
    pub allowed: f64,
    /// True bits a selected weight that the choices take.
    pub bits_per_weight: f64,
    /// Bytes of the whole model with these choices.
    pub bytes: u64,
    /// The smallest and the largest choices, in true bits a selected weight.
    pub range: [f64; 2],
    /// The sum of what the choices lose: in nats of KL divergence a token, or else without a unit.
    pub predicted: f64,
    /// Whether the prediction is a KL divergence.
    pub divergence: bool,
    /// Whether no other choices within the budget have a smaller sum.
    pub optimal: bool,
    /// What each selected weight gets, in the graph's order.
    pub choices: Vec<ChoiceReport>,
}

/// What a budget gave one weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChoiceReport {
    /// Canonical name.
    pub name: String,
    /// Its format.
    pub scheme: String,
    /// True bits a weight.
    pub bits_per_weight: f64,
    /// What it loses.
    pub predicted: f64,
}

/// What became of one activation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ActivationReport {
    /// The value's name in the graph.
    pub name: String,
    /// Size of its last dimension.
    pub width: usize,
    /// Codes, and what shares a scale: `int8/token`, `int8/tensor/asymmetric`, …
    pub encoding: String,
    /// Weights of the linear layers that read it, or the cache.
    pub feeds: Vec<String>,
    /// Signal to rounding noise on the calibration text in decibels; absent where there is no such text, or no noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snr_db: Option<f64>,
}

/// What a pass did to a graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusionReport {
    /// Its name.
    pub pass: String,
    /// How many values it made anew, replaced or dropped.
    pub changes: usize,
    /// How many nodes there were before.
    pub before: usize,
    /// And after; what is inside a fused node does not count.
    pub after: usize,
}

impl FusionReport {
    /// Without the time: reports hold none.
    pub fn of(report: &PassReport) -> FusionReport {
        let [before, after] = report.nodes;
        FusionReport { pass: report.name.into(), changes: report.changes.len(), before, after }
    }
}

/// Passes: one row each.
pub fn fusion_table<'f>(fusions: impl IntoIterator<Item = (&'f str, &'f FusionReport)>) -> Table {
    let row = |(variant, f): (&str, &FusionReport)| {
        let counts = [f.changes, f.before, f.after].map(|n| n.to_string());
        [or_dash(variant), f.pass.clone()].into_iter().chain(counts).collect()
    };
    Table { head: &["variant", "pass", "changes", "nodes before", "nodes after"], rows: fusions.into_iter().map(row).collect() }
}

fn phase_row(variant: &str, device: &str, phase: &PhaseReport) -> Vec<String> {
    let proof = phase.proof.as_ref();
    vec![
        or_dash(variant),
        device.into(),
        run_of(phase),
        format!("{} ({} distinct)", phase.kernels, phase.bodies),
        format!("{:.3} ms", 1e3 * phase.latency),
        format!("{:.3e}", phase.energy),
        bytes(phase.dram_bytes),
        bytes(phase.peak_sram),
        bytes(phase.peak_dram),
        proof.map_or("-".into(), |proof| proof.blocks.to_string()),
        proof.and_then(|proof| proof.snr_db).map_or("-".into(), |snr| format!("{snr:.1}")),
    ]
}

/// `prefill: 64 tokens, empty cache`, `decode: 1 token, 64 cached`.
fn run_of(phase: &PhaseReport) -> String {
    let tokens = if phase.rows == 1 { "1 token".into() } else { format!("{} tokens", phase.rows) };
    let cache = if phase.past == 0 { "empty cache".into() } else { format!("{} cached", phase.past) };
    format!("{}: {tokens}, {cache}", phase.name)
}

/// What was proven of the last norm and the head; their costs are included in those of the runs.
fn head_row(variant: &str, device: &str, proof: &ProofReport) -> Vec<String> {
    let snr = proof.snr_db.map_or("-".into(), |snr| format!("{snr:.1}"));
    let costs = std::iter::repeat_n("-".to_owned(), 6);
    let name = [or_dash(variant), device.into(), "norm and head".into()];
    name.into_iter().chain(costs).chain(["all".to_owned(), snr]).collect()
}

/// Columns of products cut for devices.
const TILING_HEAD: &[&str] = &columns::<{ 2 + ProductReport::HEAD.len() }>(&["variant", "device"], ProductReport::HEAD);

/// Columns of buffers in memories; sizes are bytes.
const PLACEMENT_HEAD: &[&str] =
    &["variant", "file", "buffers", "capacity", "peak live", "height", "lower bound", "fragmentation", "method", "search nodes"];

fn front_row(device: &str, point: &FrontReport) -> Vec<String> {
    let ChunkReport { chunk, chunks, dram_bytes, cycles, peak_sram, exact, .. } = &point.prompt;
    vec![
        device.into(),
        format!("{:?}", point.goal).to_lowercase(),
        format!("{chunks} of {chunk}"),
        bytes(*dram_bytes),
        bytes(*peak_sram),
        cycles.to_string(),
        format!("{:.3e}", point.energy),
        if *exact { "all" } else { "some, others interpolated" }.into(),
    ]
}

/// A written artifact.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactReport {
    /// How it was written.
    pub target: String,
    /// Where, relative to the output folder.
    pub folder: String,
    /// Of all its files.
    pub bytes: u64,
    /// Of its list of files.
    pub digest: attar_tensor::Digest,
    /// Weights and bits.
    pub totals: Totals,
    /// Numbers that were decoded from it and found equal to the model's.
    pub verified_weights: u64,
}

/// One eval of one variant by one runner.
pub type EvalReport = Evaluation;

impl Report {
    /// For CI pages.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}: {}\n\n", self.recipe, if self.passed { "passed" } else { "FAILED" });
        text += &format!(
            "{} ({}), {} parameters. {}.\n\n",
            self.model.path, self.model.architecture, self.model.parameters, self.tool
        );
        for (title, table) in self.tables() {
            text += &format!("## {title}\n\n{}\n", table.markdown());
        }
        text + &self.allocations()
    }

    /// Everything that is told in tables, each with its title, those with rows.
    pub fn tables(&self) -> Vec<(&'static str, Table)> {
        let tables = [
            ("Variants", self.variant_table()),
            ("Activations with the lowest SNR", self.activation_table()),
            ("Graph passes", self.fusion_table()),
            ("Tiling (predicted)", self.tiling_table()),
            ("Compiled (predicted)", self.compilation_table()),
            ("Pareto front (predicted)", self.front_table()),
            ("Simulated plans", self.simulation_table()),
            ("Memory plans", self.placement_table()),
            ("Evals", self.eval_table()),
            ("Gates", self.gate_table()),
        ];
        tables.into_iter().filter(|(_, table)| !table.rows.is_empty()).collect()
    }

    /// Which weight got what under a budget, the summed prediction beside what was measured.
    fn allocations(&self) -> String {
        let mut text = String::new();
        for (variant, allocation) in self.variants.iter().flat_map(|v| v.allocations.iter().map(move |a| (v, a))) {
            let of = if variant.name.is_empty() { String::new() } else { format!(" of {}", variant.name) };
            let unit = if allocation.divergence { " nats of KL divergence per token" } else { "" };
            text += &format!(
                "## Budget{of}: `{}`\n\n{:.4} bits per selected weight, {:.4} allowed; {} in total. Predicted loss (`{}`): {:.5}{unit}{}.\n\n{}\n",
                allocation.budget,
                allocation.bits_per_weight,
                allocation.allowed,
                bytes(allocation.bytes),
                allocation.sensitivity,
                allocation.predicted,
                self.measured_divergences(&variant.name),
                choice_table(allocation).markdown()
            );
        }
        text
    }

    /// `; measured on EVAL: KL`, for each eval of a variant that has it.
    fn measured_divergences(&self, variant: &str) -> String {
        let mut text = String::new();
        for eval in self.evals.iter().filter(|e| e.runner == "reference" && e.variant.as_deref().unwrap_or_default() == variant) {
            let Outcome::Measured(measured) = &eval.outcome else { continue };
            if let Some(base) = &measured.against_base {
                text += &format!("; measured on `{}`: {}", eval.eval, estimate(&base.kl_mean, 5));
            }
        }
        text
    }

    /// Sizes: one row an artifact.
    pub fn variant_table(&self) -> Table {
        let mut rows = Vec::new();
        for variant in &self.variants {
            let snr = variant.tensors.iter().filter_map(|t| t.snr_db).min_by(f64::total_cmp);
            let head = [
                or_dash(&variant.name),
                format!("{:.3}", variant.quantized_bits_per_weight),
                format!("{:.3}", variant.bits_per_weight),
                snr.map_or("-".into(), |snr| format!("{snr:.1}")),
            ];
            let artifacts = variant
                .artifacts
                .iter()
                .map(|a| [a.folder.clone(), bytes(a.bytes), format!("{} weights equal", a.verified_weights)]);
            let tails: Vec<[String; 3]> =
                if variant.artifacts.is_empty() { vec![["-".into(), "-".into(), "-".into()]] } else { artifacts.collect() };
            rows.extend(tails.into_iter().map(|tail| head.iter().cloned().chain(tail).collect()));
        }
        Table { head: &["variant", "bits/quantized weight", "bits/weight", "worst SNR dB", "artifact", "size", "verified"], rows }
    }

    /// Activations in integers: the worst ten of each variant whose noise was measured.
    pub fn activation_table(&self) -> Table {
        let mut rows = Vec::new();
        for variant in &self.variants {
            let measured = variant.activations.iter().filter_map(|activation| Some((activation, activation.snr_db?)));
            rows.extend(measured.take(WORST).map(|(activation, snr)| {
                let feeds = activation.feeds.join(", ");
                vec![or_dash(&variant.name), activation.name.clone(), activation.encoding.clone(), format!("{snr:.1}"), feeds]
            }));
        }
        Table { head: &["variant", "activation", "codes", "SNR dB", "read by"], rows }
    }

    /// What passes did to the graph.
    pub fn fusion_table(&self) -> Table {
        fusion_table(self.variants.iter().flat_map(|v| v.fusions.iter().map(move |fusion| (v.name.as_str(), fusion))))
    }

    /// Predictions for devices: one row a run of a compiled model.
    pub fn compilation_table(&self) -> Table {
        let mut rows = Vec::new();
        for variant in &self.variants {
            for compilation in &variant.compilations {
                rows.extend(compilation.phases.iter().map(|phase| phase_row(&variant.name, &compilation.device, phase)));
                rows.extend(compilation.head.as_ref().map(|head| head_row(&variant.name, &compilation.device, head)));
            }
        }
        let head = &[
            "variant",
            "device",
            "run",
            "kernels",
            "latency",
            "energy (J)",
            "DRAM traffic",
            "peak SRAM",
            "peak DRAM",
            "blocks proven",
            "SNR dB",
        ];
        Table { head, rows }
    }

    /// Of each variant, `rows` gives some; its name comes before their cells.
    fn rows_of<I>(&self, rows: impl Fn(&VariantReport) -> I) -> Vec<Vec<String>>
    where
        I: IntoIterator<Item = Vec<String>>,
    {
        let named = |name: &str, row: Vec<String>| std::iter::once(or_dash(name)).chain(row).collect();
        self.variants.iter().flat_map(|v| rows(v).into_iter().map(|row| named(&v.name, row)).collect::<Vec<_>>()).collect()
    }

    /// Products for devices: one row each.
    pub fn tiling_table(&self) -> Table {
        let of = |tiled: &Tiled| {
            let rows = tiled.products.iter().flat_map(ProductReport::rows);
            rows.map(|row| std::iter::once(tiled.device.clone()).chain(row).collect()).collect::<Vec<Vec<String>>>()
        };
        let rows = self.rows_of(|variant| variant.tilings.iter().flat_map(of).collect::<Vec<_>>());
        Table { head: TILING_HEAD, rows }
    }

    /// Goals and sizes of chunks: one row each that is best in some way.
    pub fn front_table(&self) -> Table {
        let of = |compilation: &CompilationReport| {
            compilation.front.iter().map(|point| front_row(&compilation.device, point)).collect::<Vec<_>>()
        };
        let rows = self.rows_of(|variant| variant.compilations.iter().flat_map(of).collect::<Vec<_>>());
        let head = &[
            "variant",
            "device",
            "goal",
            "chunks",
            "DRAM traffic",
            "peak SRAM",
            "cycles (predicted)",
            "energy (J, predicted)",
            "chunks scheduled",
        ];
        Table { head, rows }
    }

    /// Plans: one row each that was proven again.
    pub fn simulation_table(&self) -> Table {
        let row = |s: &SimulationReport| {
            let (latency, energy) = (format!("{:.3} ms", 1e3 * s.latency), format!("{:.3e}", s.energy));
            let counts = [s.macs.to_string(), bytes(s.dram_bytes), bytes(s.peak_sram), s.cycles.to_string(), latency, energy];
            [s.plan.clone(), s.device.clone()].into_iter().chain(counts).collect::<Vec<_>>()
        };
        let rows = self.rows_of(|variant| variant.simulations.iter().map(row).collect::<Vec<_>>());
        let head = &[
            "variant",
            "plan",
            "device",
            "MACs",
            "DRAM traffic",
            "peak SRAM",
            "cycles (predicted)",
            "latency (predicted)",
            "energy (J, predicted)",
        ];
        Table { head, rows }
    }

    /// Memories: one row each.
    pub fn placement_table(&self) -> Table {
        let row = |p: &PlacementReport| {
            let size = |bytes: Option<u64>| bytes.map_or("-".into(), |bytes| bytes.to_string());
            let bytes = [size(p.capacity), p.max_live.to_string(), p.height.to_string(), size(p.at_least)];
            let head = [p.file.clone(), p.buffers.to_string()];
            let tail = [format!("{:.2}%", 100.0 * p.fragmentation), p.method.clone(), p.nodes.to_string()];
            head.into_iter().chain(bytes).chain(tail).collect::<Vec<_>>()
        };
        let rows = self.rows_of(|variant| variant.placements.iter().map(row).collect::<Vec<_>>());
        Table { head: PLACEMENT_HEAD, rows }
    }

    /// Measurements: one row an eval, variant, runner and mode; the untouched model first.
    pub fn eval_table(&self) -> Table {
        Report::evals(&self.evals)
    }

    /// The same of any measurements.
    pub fn evals(evals: &[EvalReport]) -> Table {
        let mut rows = Vec::new();
        let mut seen = Vec::new();
        for eval in evals {
            let who = match eval.mode {
                Some(mode) => format!("{} ({mode})", eval.runner),
                None => eval.runner.clone(),
            };
            let variant = eval.variant.clone().unwrap_or_default();
            let row = match &eval.outcome {
                Outcome::Skipped { reason } => {
                    let mut row = vec![eval.eval.clone(), or_dash(&variant), who, "not run".into()];
                    row.extend([reason.clone(), "-".into(), "-".into(), "-".into(), "-".into()]);
                    row
                }
                // In a table of its own.
                Outcome::Predicted(_) => continue,
                Outcome::Measured(m) => {
                    if let Some(base) = &m.against_base
                        && !seen.contains(&eval.eval)
                    {
                        seen.push(eval.eval.clone());
                        let mut row =
                            vec![eval.eval.clone(), "(untouched)".into(), "reference".into(), estimate(&base.perplexity, 3)];
                        row.resize(9, "-".into());
                        rows.push(row);
                    }
                    let base = m.against_base.as_ref();
                    let of = |pick: fn(&attar_eval::AgainstBase) -> &attar_eval::Estimate, digits| {
                        base.map_or("-".into(), |b| estimate(pick(b), digits))
                    };
                    vec![
                        eval.eval.clone(),
                        or_dash(&variant),
                        who,
                        estimate(&m.perplexity, 3),
                        of(|b| &b.perplexity_ratio, 4),
                        of(|b| &b.kl_mean, 5),
                        of(|b| &b.kl_p99, 4),
                        of(|b| &b.top1_agreement, 4),
                        m.agreement.as_ref().map_or("-".into(), |a| format!("{:.1e}", a.relative)),
                    ]
                }
            };
            rows.push(row);
        }
        let head = &["eval", "variant", "runner", "perplexity", "ratio", "KL mean", "KL p99", "top-1", "max logit difference"];
        Table { head, rows }
    }

    /// Gates: one row a verdict.
    pub fn gate_table(&self) -> Table {
        let rows = self.gates.iter().map(|verdict| {
            let status = match verdict.status {
                Status::Passed => "passed",
                Status::Failed => "FAILED",
                Status::NotRun => "NOT RUN",
            };
            let runner = match verdict.mode {
                Some(mode) => format!("{} ({mode})", verdict.gate.runner),
                None => verdict.gate.runner.clone(),
            };
            let metric = format!("{}/{}", verdict.gate.eval, verdict.gate.metric);
            vec![metric, or_dash(verdict.variant.as_deref().unwrap_or_default()), runner, status.into(), verdict.reason.clone()]
        });
        Table { head: &["gate", "variant", "runner", "verdict", "details"], rows: rows.collect() }
    }
}

/// One row a weight, costly ones first.
fn choice_table(allocation: &AllocationReport) -> Table {
    let mut choices: Vec<&ChoiceReport> = allocation.choices.iter().collect();
    choices.sort_by(|a, b| b.predicted.total_cmp(&a.predicted));
    let row = |c: &&ChoiceReport| {
        vec![c.name.clone(), c.scheme.clone(), format!("{:.3}", c.bits_per_weight), format!("{:.2e}", c.predicted)]
    };
    Table { head: &["weight", "scheme", "bits/weight", "predicted loss"], rows: choices.iter().map(row).collect() }
}

/// Rows of text under a head.
pub struct Table {
    /// Names of the columns.
    pub head: &'static [&'static str],
    /// As many cells each as the head.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn markdown(&self) -> String {
        let line = |cells: &mut dyn Iterator<Item = String>| format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "));
        let mut text = line(&mut self.head.iter().map(|h| h.to_string()));
        text += &line(&mut self.head.iter().map(|_| "---".to_string()));
        for row in &self.rows {
            text += &line(&mut row.iter().map(|cell| cell.replace('|', "\\|").replace('\n', " ")));
        }
        text
    }
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".into() } else { text.into() }
}

fn estimate(estimate: &attar_eval::Estimate, digits: usize) -> String {
    match estimate.standard_error {
        Some(error) => format!("{:.digits$} ± {error:.digits$}", estimate.value),
        None => format!("{:.digits$}", estimate.value),
    }
}

/// `1.5 MB`: powers of ten, as disks are sold.
pub fn bytes(n: u64) -> String {
    let (unit, size) =
        [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)].into_iter().find(|(_, size)| n as f64 >= *size).unwrap_or(("B", 1.0));
    if unit == "B" { format!("{n} B") } else { format!("{:.1} {unit}", n as f64 / size) }
}
