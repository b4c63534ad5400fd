//! What a run found, for machines (`report.json`, versioned), CI pages (`report.md`) and terminals.
//!
//! Nothing in a report depends on when or how fast it was made: the same recipe gives the same report.

mod activations;
mod beside;
mod budget;
mod coded;
mod compiled;
mod distilled;
mod evals;
mod finding;
mod findings;
mod fused;
mod junit;
mod lost;
mod placed;
mod pruned;
mod simulated;
mod sparse;
mod tiled;
mod timed;
mod transformed;
mod way;
mod widths;

use attar_eval::{Status, Verdict};
use attar_export::Totals;
use serde::{Deserialize, Serialize};

pub use self::{
    activations::ActivationReport,
    budget::{AllocationReport, ChoiceReport},
    coded::CodedReport,
    compiled::{ChunkReport, CompilationReport, FrontReport, PhaseReport, ProofReport},
    distilled::{DistillReport, MeasuredPoint},
    evals::EvalReport,
    findings::Findings,
    fused::{FusionReport, fusion_table},
    lost::LossReport,
    placed::PlacementReport,
    pruned::{CandidateReport, CutReport, PruneReport, RemovedReport},
    simulated::SimulationReport,
    sparse::SparseReport,
    timed::Timed,
    transformed::{SiteReport, TransformReport},
    way::Way,
    widths::{WidthReport, WidthsReport},
};
pub(crate) use self::{evals::runner, timed::latencies};
use crate::{
    shown::in_markdown,
    table::{Table, bytes, or_dash, wrapped_text},
};

/// Version of the report's JSON.
pub(crate) const FORMAT: u32 = 1;

/// The title of what several predict of one device.
pub(crate) const BESIDE: &str = "Predictions for a device, side by side";

/// The title of what may be done where a gate failed.
pub(crate) const WAYS: &str = "Ways out, by prediction";

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
    /// The vector instructions of the processor, if the numbers depend on them: those of measurements and of calibrated
    /// weights do, in their last bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instruction_set: Option<String>,
    /// Each way through the steps.
    pub variants: Vec<VariantReport>,
    /// What was measured.
    pub evals: Vec<EvalReport>,
    /// The gates' answers.
    pub gates: Vec<Verdict>,
    /// Whether every gate on these passed.
    pub passed: bool,
    /// What to know of the numbers: the texts that activations were seen on, and what was measured on text that was seen before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Changes of the recipe that may let a gate pass that failed, the best first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ways: Vec<Way>,
    /// What differs in each run, in a file of its own.
    #[serde(skip)]
    pub timed: Option<Timed>,
}

/// The checkpoint, or the artifact that was there before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelReport {
    /// As the recipe reaches it.
    pub path: String,
    /// What it is.
    pub architecture: String,
    /// Numbers in its weights; tied ones count once. Absent for an artifact that does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// What of it the artifacts lack: stored tensors that the recipe's `ignore` left out, a tokenizer that cannot be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// What became of one variant.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VariantReport {
    /// Empty for the only one.
    pub name: String,
    /// True bits per weight over all weights: codes, scales, zeros, and whatever stayed as it was.
    pub bits_per_weight: f64,
    /// True bits per weight over the quantized ones; 0 if there is none.
    pub quantized_bits_per_weight: f64,
    /// Every weight that a step changed, in the graph's order.
    pub tensors: Vec<TensorReport>,
    /// Matrices that no step quantized, where others are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plain: Vec<PlainReport>,
    /// What its steps found.
    #[serde(flatten)]
    pub findings: Findings,
    /// What was written.
    pub artifacts: Vec<ArtifactReport>,
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

/// A matrix that is not quantized.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlainReport {
    /// Canonical name.
    pub name: String,
    /// Its shape.
    pub dims: Vec<usize>,
    /// How it is stored.
    pub encoding: String,
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

impl Report {
    /// Whether every gate passed, those on times as well.
    pub fn all_passed(&self) -> bool {
        self.passed && self.timed.as_ref().is_none_or(|timed| timed.passed)
    }

    /// Every verdict, those on times last.
    pub fn verdicts(&self) -> impl Iterator<Item = &Verdict> {
        self.gates.iter().chain(self.timed.iter().flat_map(|timed| &timed.gates))
    }

    /// The report with what is in `measured.json`, as `measured`.
    pub fn whole(&self) -> serde_json::Value {
        let mut whole = serde_json::to_value(self).expect("reports are JSON");
        if let Some(timed) = &self.timed {
            whole["measured"] = serde_json::to_value(timed).expect("reports are JSON");
        }
        whole
    }

    /// For CI pages.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}: {}\n\n", in_markdown(&self.recipe), if self.all_passed() { "passed" } else { "FAILED" });
        let parameters = self.model.parameters.map(|count| format!(", {count} parameters")).unwrap_or_default();
        text += &format!(
            "{} ({}){parameters}. {}.\n\n",
            in_markdown(&self.model.path),
            in_markdown(&self.model.architecture),
            self.tool
        );
        if let Some(set) = &self.instruction_set {
            text += &format!(
                "Computed with {set}. On other processors, measurements, and weights that were calibrated, differ in the last bits \
                 of f32 sums.\n\n"
            );
        }
        if !self.model.left_out.is_empty() {
            text += &format!("Left out: {}.\n\n", in_markdown(&self.model.left_out.join("; ")));
        }
        if !self.notes.is_empty() {
            let notes: String = self.notes.iter().map(|note| format!("- {}\n", in_markdown(note))).collect();
            text += &format!("{notes}\n");
        }
        for (title, table) in self.tables() {
            text += &format!("## {title}\n\n{}\n", table.markdown());
        }
        let of_times = self.timed_gate_table();
        if !of_times.rows.is_empty() {
            text += &format!("## Gates on times, of this run\n\n{}\n", of_times.markdown());
        }
        text += &way::snippets(&self.ways);
        wrapped_text(&(text + &Findings::sections(&self.findings(), &self.evals)))
    }

    /// Everything that is told in tables, each with its title, those with rows.
    pub fn tables(&self) -> Vec<(&'static str, Table)> {
        let head = [("Variants", self.variant_table())];
        let found = self.finding_tables();
        let judged = [(BESIDE, self.beside_table()), ("Gates", self.gate_table()), (WAYS, self.way_table())];
        let tables = head.into_iter().chain(found).chain(evals::tables(&self.evals)).chain(judged);
        tables.filter(|(_, table)| !table.rows.is_empty()).collect()
    }

    /// Changes of the recipe that may let a gate pass that failed.
    pub(crate) fn way_table(&self) -> Table {
        way::table(&self.ways)
    }

    /// What attar's plans and compilers of vendors predict of the same devices, one beside the other.
    pub(crate) fn beside_table(&self) -> Table {
        beside::table(&self.findings(), &self.evals)
    }

    /// What steps found, in tables with their titles.
    pub(crate) fn finding_tables(&self) -> Vec<(&'static str, Table)> {
        Findings::tables(&self.findings())
    }

    fn findings(&self) -> Vec<(&str, &Findings)> {
        self.variants.iter().map(|variant| (variant.name.as_str(), &variant.findings)).collect()
    }

    /// Sizes: one row per artifact.
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

    /// Measurements, a table per task with its title: one row per eval, variant, runner and mode; the baseline
    /// first.
    pub fn evals(evals: &[EvalReport]) -> Vec<(&'static str, Table)> {
        evals::tables(evals).into_iter().filter(|(_, table)| !table.rows.is_empty()).collect()
    }

    /// Gates: one row per verdict.
    pub fn gate_table(&self) -> Table {
        gate_table(self.gates.iter())
    }

    /// The same of those on times.
    pub fn timed_gate_table(&self) -> Table {
        gate_table(self.timed.iter().flat_map(|timed| &timed.gates))
    }
}

fn gate_table<'v>(verdicts: impl Iterator<Item = &'v Verdict>) -> Table {
    let rows = verdicts.map(|verdict| {
        let status = match verdict.status {
            Status::Passed => "passed",
            Status::Failed => "FAILED",
            Status::NotRun => "NOT RUN",
            Status::CannotTell => "CANNOT TELL",
        };
        let runner = evals::runner(&verdict.gate.runner, verdict.mode, verdict.device.as_deref());
        let metric = format!("{}/{}", verdict.gate.eval, verdict.gate.metric);
        vec![metric, or_dash(verdict.variant.as_deref().unwrap_or_default()), runner, status.into(), verdict.reason.clone()]
    });
    Table { head: &["gate", "variant", "runner", "verdict", "details"], rows: rows.collect() }
}
