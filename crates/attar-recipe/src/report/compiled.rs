//! What the step `compile` planned for a device, and proved.

use attar_compile::{
    Quality,
    report::{MARK, Picture},
    schedule::Goal,
};
use attar_eval::Prediction;
use serde::{Deserialize, Serialize};

use super::{
    evals::EvalReport,
    finding::{Finding, Found},
};
use crate::{
    shown::in_markdown,
    table::{Table, bytes, rows_of},
};

/// A model for a device. Times, energies and bytes are predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompilationReport {
    /// For what.
    pub device: String,
    /// Nodes that stay with the host: the embedding; last norm and head where they are in float.
    pub host_nodes: usize,
    /// Sizes of chunks that the prompt could run in, the largest first.
    pub chunks: Vec<ChunkReport>,
    /// The Pareto front over chunk sizes and goals, if it was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<FrontReport>,
    /// Prefill, and decode and verify if they were asked for.
    pub phases: Vec<PhaseReport>,
    /// The last norm and the head, if they are on the device and were proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<ProofReport>,
    /// The same for every token of the run `verify`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verify_head: Option<ProofReport>,
    /// Which assumed numbers of the device count most for the prompt, in a sentence; none where nothing is assumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rests_on: Option<String>,
    /// What the integers lose, where they end with logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quality: Option<Quality>,
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
    /// Tokens at once, of each sequence.
    pub rows: u64,
    /// Sequences side by side.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub batch: u64,
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
    /// Cycles of the device's clock.
    #[serde(default)]
    pub cycles: u64,
    /// Seconds.
    pub latency: f64,
    /// Joules.
    pub energy: f64,
    /// Whether the seconds and the joules rest on assumed numbers of the device.
    #[serde(default)]
    pub assumed: [bool; 2],
    /// Bytes.
    pub peak_sram: u64,
    /// Bytes.
    pub peak_dram: u64,
    /// How its first blocks were proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofReport>,
    /// Pictures of the plan. They are on the page of the run alone.
    #[serde(skip)]
    pub pictures: Vec<Picture>,
}

/// Blocks, or the head, whose plan was run on real numbers and agreed with the reference in every bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProofReport {
    /// How many blocks, from the first.
    pub blocks: usize,
    /// Multiply-accumulates, each done once.
    pub macs: u64,
    /// DRAM bytes moved, as predicted.
    pub dram_bytes: u64,
    /// Signal over the difference from the float graph, in decibels.
    pub snr_db: Option<f64>,
}

fn one() -> u64 {
    1
}

fn is_one(batch: &u64) -> bool {
    *batch == 1
}

impl Finding for CompilationReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![
            ("Compiled (predicted)", table(found)),
            ("Integers of the compiled model", quality_table(found)),
            ("Integers of the compiled encoder", embedding_table(found)),
            ("Pareto front (predicted)", front_table(found)),
        ]
    }

    fn sections(found: &Found<'_, Self>, _: &[EvalReport]) -> String {
        let mut text = String::new();
        for compilation in found.iter().flat_map(|(_, compilations)| compilations.iter()) {
            let Some(sentence) = &compilation.rests_on else { continue };
            let said = format!("\\{MARK} {}: {sentence}\n\n", in_markdown(&compilation.device));
            if !text.contains(&said) {
                text += &said;
            }
        }
        text
    }

    fn prediction(&self) -> Option<Prediction> {
        let decode = self.phases.iter().find(|phase| phase.name == "decode");
        let reads = |phase: &&PhaseReport| phase.name.starts_with("prefill") || phase.name == "encode";
        let prefill: Vec<&PhaseReport> = self.phases.iter().filter(reads).collect();
        let tokens: u64 = prefill.iter().map(|phase| phase.rows * phase.batch).sum();
        let shared = || prefill.iter().map(|phase| phase.energy).sum::<f64>() / tokens.max(1) as f64;
        let rest = |phase: &PhaseReport, of: usize, name: &str| phase.assumed[of].then(|| name.to_owned());
        let prompt = prefill.iter().find_map(|phase| rest(phase, 0, "latency"));
        let energy = prefill.iter().copied().chain(decode).find_map(|phase| rest(phase, 1, "energy-per-token"));
        Some(Prediction {
            assumed: [prompt, decode.and_then(|phase| rest(phase, 0, "decode-latency")), energy].into_iter().flatten().collect(),
            latency: Some(prefill.iter().map(|phase| phase.latency).sum()),
            decode_latency: decode.map(|phase| phase.latency),
            peak_sram: self.phases.iter().map(|phase| phase.peak_sram).max(),
            peak_dram: self.phases.iter().map(|phase| phase.peak_dram).max(),
            dram_bytes: Some(prefill.iter().map(|phase| phase.dram_bytes).sum()),
            energy_per_token: Some(decode.map_or_else(shared, |phase| phase.energy / phase.batch.max(1) as f64)),
            kl: self.quality.and_then(|quality| quality.kl),
            perplexity_ratio: self.quality.and_then(|quality| quality.perplexity_ratio),
            snr: self.quality.map(|quality| quality.snr_db),
            tokens: self.quality.map(|quality| quality.tokens),
            ..Prediction::default()
        })
    }
}

/// Predictions for devices: one row per phase of a compiled model.
fn table(variants: &Found<'_, CompilationReport>) -> Table {
    let rows = |compilation: &CompilationReport| {
        let device = &compilation.device;
        let phases = compilation.phases.iter().map(|phase| phase_row(device, phase));
        let encodes = compilation.phases.iter().any(|phase| phase.name == "encode");
        let last = if encodes { "last norm" } else { "norm and head" };
        let heads = [(last, &compilation.head), ("norm and head of verify", &compilation.verify_head)];
        let heads = heads.into_iter().filter_map(|(name, head)| Some(head_row(device, name, head.as_ref()?)));
        phases.chain(heads).collect::<Vec<_>>()
    };
    Table { head: HEAD, rows: rows_of(variants.iter().copied(), rows) }
}

const HEAD: &[&str] =
    &["variant", "device", "run", "kernels", "latency", "J", "DRAM traffic", "peak SRAM", "peak DRAM", "blocks proven", "SNR dB"];

/// `prefill: 64 tokens, empty cache`; `decode: 1 token, 64 in the cache`.
fn phase_title(phase: &PhaseReport) -> String {
    let tokens = if phase.rows == 1 { "1 token".into() } else { format!("{} tokens", phase.rows) };
    let tokens = if is_one(&phase.batch) { tokens } else { format!("{tokens} of each of {} sequences", phase.batch) };
    let cache = match phase.past {
        _ if phase.name == "encode" => String::new(),
        0 => ", empty cache".into(),
        past => format!(", {past} in the cache"),
    };
    format!("{}: {tokens}{cache}", phase.name)
}

fn phase_row(device: &str, phase: &PhaseReport) -> Vec<String> {
    let proof = phase.proof.as_ref();
    vec![
        device.into(),
        phase_title(phase),
        format!("{} of {} kinds", phase.kernels, phase.bodies),
        marked(format!("{:.3} ms", 1e3 * phase.latency), phase.assumed[0]),
        marked(format!("{:.3e}", phase.energy), phase.assumed[1]),
        bytes(phase.dram_bytes),
        bytes(phase.peak_sram),
        bytes(phase.peak_dram),
        proof.map_or("-".into(), |proof| proof.blocks.to_string()),
        proof.and_then(|proof| proof.snr_db).map_or("-".into(), |snr| format!("{snr:.1}")),
    ]
}

/// A figure, marked where it rests on assumed numbers.
pub(super) fn marked(text: String, assumed: bool) -> String {
    if assumed { text + MARK } else { text }
}

/// What was proven of the norm and the head; their costs are within those of the runs.
fn head_row(device: &str, name: &str, proof: &ProofReport) -> Vec<String> {
    let snr = proof.snr_db.map_or("-".into(), |snr| format!("{snr:.1}"));
    let costs = std::iter::repeat_n("-".to_owned(), 6);
    let name = [device.into(), name.into()];
    name.into_iter().chain(costs).chain(["all".to_owned(), snr]).collect()
}

/// The integers beside float activations: all blocks and the head.
fn quality_table(variants: &Found<'_, CompilationReport>) -> Table {
    let row = |quality: &Quality| {
        let [kl, ratio] = [quality.kl?, quality.perplexity_ratio?].map(|x| format!("{x:.4}"));
        Some(vec![quality.tokens.to_string(), kl, ratio, format!("{:.1}", quality.snr_db)])
    };
    Table { head: QUALITY_HEAD, rows: quality_rows(variants, row) }
}

const QUALITY_HEAD: &[&str] = &["variant", "device", "tokens", "KL from float activations", "perplexity ratio", "logits' SNR dB"];

/// The same of encoders, which have no logits.
fn embedding_table(variants: &Found<'_, CompilationReport>) -> Table {
    let row = |quality: &Quality| {
        Some(vec![quality.tokens.to_string(), format!("{:.5}", quality.cosine?), format!("{:.1}", quality.snr_db)])
    };
    Table { head: EMBEDDING_HEAD, rows: quality_rows(variants, row) }
}

const EMBEDDING_HEAD: &[&str] = &["variant", "device", "tokens", "mean cosine to float activations", "rows' SNR dB"];

fn quality_rows(variants: &Found<'_, CompilationReport>, row: impl Fn(&Quality) -> Option<Vec<String>>) -> Vec<Vec<String>> {
    let rows = |compilation: &CompilationReport| {
        let row = compilation.quality.as_ref().and_then(&row);
        row.map(|row| std::iter::once(compilation.device.clone()).chain(row).collect()).into_iter().collect::<Vec<Vec<String>>>()
    };
    rows_of(variants.iter().copied(), rows)
}

/// Goals and sizes of chunks on the Pareto front: one row each.
fn front_table(variants: &Found<'_, CompilationReport>) -> Table {
    let rows = |compilation: &CompilationReport| {
        let all = compilation.phases.iter().map(|phase| phase.assumed);
        let assumed = all.fold([false; 2], |[seconds, joules], phase| [seconds || phase[0], joules || phase[1]]);
        compilation.front.iter().map(|point| front_row(&compilation.device, point, assumed)).collect::<Vec<_>>()
    };
    Table { head: FRONT_HEAD, rows: rows_of(variants.iter().copied(), rows) }
}

const FRONT_HEAD: &[&str] =
    &["variant", "device", "goal", "chunks", "DRAM traffic", "peak SRAM", "cycles (predicted)", "J (predicted)", "counted"];

fn front_row(device: &str, point: &FrontReport, assumed: [bool; 2]) -> Vec<String> {
    let ChunkReport { chunk, chunks, dram_bytes, cycles, peak_sram, exact, .. } = &point.prompt;
    vec![
        device.into(),
        format!("{:?}", point.goal).to_lowercase(),
        format!("{chunks} of {chunk}"),
        bytes(*dram_bytes),
        bytes(*peak_sram),
        marked(cycles.to_string(), assumed[0]),
        marked(format!("{:.3e}", point.energy), assumed[1]),
        if *exact { "every chunk" } else { "some chunks, the rest between" }.into(),
    ]
}
