//! What a run would do, before any work: headers are read, weights are not.

use attar_model::Model;
use serde::Serialize;

use crate::{
    ActivationReport, Engines, Error, FusionReport, Recipe, Result, adapters,
    model::Working,
    needs::missing,
    output,
    step::kind::{PlannedTensor, check_order},
    task::RunnerKind,
};

/// What a run would do.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// The checkpoint.
    pub model: String,
    /// What it is.
    pub architecture: String,
    /// Numbers in its weights.
    pub parameters: u64,
    /// Each way through the steps.
    pub variants: Vec<PlannedVariant>,
    /// What would be measured: `NAME: TASK with RUNNER`.
    pub evals: Vec<String>,
    /// How many gates would be judged.
    pub gates: usize,
    /// Bytes of memory at the peak, estimated from above.
    pub peak_memory: u64,
    /// What takes most of it.
    pub peak: String,
    /// What a run needs and this machine does not have.
    pub missing: Vec<String>,
}

/// What would become of one variant.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedVariant {
    /// Empty for the only one.
    pub name: String,
    /// Every weight that changes, in order.
    pub tensors: Vec<PlannedTensor>,
    /// Every activation that becomes integers, in running order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub activations: Vec<ActivationReport>,
    /// What passes would do to the graph, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fusions: Vec<FusionReport>,
    /// What would be written.
    pub exports: Vec<PlannedExport>,
    /// True bits a weight, over all weights.
    pub bits_per_weight: f64,
    /// True bits a weight, over the quantized ones.
    pub quantized_bits_per_weight: f64,
}

/// A folder that would be written.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedExport {
    /// How.
    pub target: String,
    /// Where.
    pub folder: String,
    /// How much.
    pub bytes: u64,
}

impl Plan {
    /// Refuses to start what would take more than `limit` bytes of memory.
    pub fn check_memory(&self, limit: Option<u64>) -> Result<()> {
        let Some(limit) = limit.filter(|limit| *limit < self.peak_memory) else { return Ok(()) };
        let message = format!(
            "{} needs about {} of memory, and {} are allowed",
            self.peak,
            crate::bytes(self.peak_memory),
            crate::bytes(limit)
        );
        let hint = "raise `--max-memory`, or take fewer or shorter calibration windows".to_owned();
        Err(Error::input(message).hint(hint))
    }
}

/// What an attar takes that has opened a model and done nothing.
const BASE_MEMORY: u64 = 40 << 20;

/// What an export takes beside its largest tensor's codes.
const EXPORT_MEMORY: u64 = 24 << 20;

/// Plans a run of `recipe`.
pub fn plan(recipe: &Recipe, engines: &Engines) -> Result<Plan> {
    output::check(recipe.output(), &recipe.owner())?;
    let model = recipe.open_model()?;
    check_evals(recipe, &model)?;
    let (mut memory, mut most) = (0, String::new());
    let mut variants = Vec::new();
    for variant in &recipe.variants {
        let mut working = Working::new(&variant.name, &model, recipe.calibration());
        let mut tensors = Vec::new();
        for (key, step) in &variant.steps {
            check_order(step.kind(), &working.graph).map_err(|e| recipe.failed_step(key, step.kind(), e))?;
            let planned = step.plan(&mut working).map_err(|e| recipe.failed_step(key, step.kind(), e))?;
            if let Some(tensor) = planned.iter().max_by_key(|tensor| tensor.memory).filter(|tensor| tensor.memory > memory) {
                (memory, most) = (tensor.memory, format!("the step `{}` on `{}`", step.kind().name, tensor.name));
            }
            tensors.extend(planned);
        }
        let mut exports = Vec::new();
        for export in &recipe.exports {
            let written = export.target.check(&working.graph, &export.options).map_err(|e| recipe.refused_export(export, e))?;
            for graph in &working.possible {
                export.target.check(graph, &export.options).map_err(|e| recipe.refused_export(export, e))?;
            }
            let largest = written.tensors.iter().map(|t| t.stored_bytes).max().unwrap_or(0).min(128 << 20);
            if EXPORT_MEMORY + largest > memory {
                (memory, most) = (EXPORT_MEMORY + largest, format!("the export `{}`", export.target.name()));
            }
            let folder = recipe.folder(&variant.name, &export.folder);
            exports.push(PlannedExport { target: export.target.name().into(), folder, bytes: written.bytes });
        }
        if let Some(beside) = &working.adapters {
            if let Some(export) = recipe.exports.iter().find(|export| export.folder == adapters::FOLDER) {
                let message = format!("the adapters of a `recover` step are written to `{}`, too", adapters::FOLDER);
                let error = Error::recipe(message).hint("give the export another `folder`".to_owned());
                return Err(recipe.document.place(error, &format!("{}.folder", export.key)));
            }
            let (bytes, folder) = (adapters::bytes(beside, &working.graph), recipe.folder(&variant.name, adapters::FOLDER));
            exports.push(PlannedExport { target: adapters::TARGET.into(), folder, bytes });
        }
        let (bits_per_weight, quantized_bits_per_weight) = working.bits();
        variants.push(PlannedVariant {
            name: variant.name.clone(),
            tensors,
            activations: working.activations,
            fusions: working.fusions,
            exports,
            bits_per_weight,
            quantized_bits_per_weight,
        });
    }
    memory += recipe.calibration().map_or(0, |c| activation_memory(&model, c.samples.saturating_mul(c.length)));
    for eval in &recipe.evals {
        let wanted = eval_memory(&model, eval.task.longest());
        if wanted > memory {
            (memory, most) = (wanted, format!("the eval `{}`", eval.name));
        }
    }
    Ok(Plan {
        model: recipe.model().display().to_string(),
        architecture: model.config.architecture.clone(),
        parameters: model.parameters(),
        variants,
        evals: recipe.evals.iter().flat_map(|e| e.runners.iter().map(|(r, m)| describe(e, *r, *m))).collect(),
        gates: recipe.gates.len(),
        peak_memory: BASE_MEMORY + memory,
        peak: most,
        missing: missing(recipe, engines),
    })
}

fn describe(eval: &crate::Eval, runner: RunnerKind, mode: attar_eval::Mode) -> String {
    match runner {
        RunnerKind::Reference => format!("{}: {} with reference", eval.name, eval.task.task().name),
        engine => format!("{}: {} with {engine}, {mode} mode", eval.name, eval.task.task().name),
    }
}

/// A setting that this model cannot have is known before hours of work, not after.
fn check_evals(recipe: &Recipe, model: &Model) -> Result<()> {
    for eval in &recipe.evals {
        eval.task.check(&model.config).map_err(|e| {
            let key = format!("{}.{}", eval.key, e.key().unwrap_or_default());
            recipe.document.place(e.into(), &key)
        })?;
    }
    Ok(())
}

/// What waits between two blocks and inside one: at most four values as wide as the residual stream, for every token.
fn activation_memory(model: &Model, tokens: usize) -> u64 {
    let width = model.graph.find("final_norm").and_then(|id| model.graph.fact(id).width()).unwrap_or(0);
    4 * 4 * tokens as u64 * width as u64
}

/// Two heads in f32, a block in f32, two windows of logits and what computes them, and the activations of a lane.
fn eval_memory(model: &Model, window: usize) -> u64 {
    let dims = |name: &str| model.graph.find(name).and_then(|id| model.graph.fact(id).constant_dims()).unwrap_or_default();
    let bytes = |name: &str| 4 * dims(name).iter().product::<usize>() as u64;
    let block: u64 =
        model.graph.weights().filter(|(_, v, _)| v.name.starts_with("blocks.0.")).map(|(_, v, _)| bytes(&v.name)).sum();
    let vocabulary = dims("lm_head").first().copied().unwrap_or(0) as u64;
    let widest = dims("blocks.0.mlp.gate").iter().copied().max().unwrap_or(0) as u64;
    2 * bytes("lm_head") + block + 3 * 4 * window as u64 * vocabulary + 4 * 4 * EVAL_LANE * widest
}

/// Tokens that the reference runs at a time, and some more.
const EVAL_LANE: u64 = 4096;
