//! What a run would do, before any work: headers are read, weights are not.

use std::collections::BTreeSet;

use attar_eval::{DEVICE, DEVICE_METRICS, Gate, Output};
use attar_graph::Graph;
use attar_model::{Model, Summary};
use serde::Serialize;

use crate::{
    Engines, Error, ErrorKind, Existing, Recipe, Result, RunnerKind, Variant, adapters,
    data::described,
    kept::Kept,
    model::Working,
    needs::{check_needs, missing},
    opened::{Measured, Opened},
    output,
    recipe::Subject,
    report::Findings,
    shape,
    side::side,
    step::kind::{PlannedTensor, check_graph},
};

/// What a run would do.
#[derive(Debug, Serialize)]
pub struct Plan {
    /// The checkpoint, or the artifact that exists.
    pub model: String,
    /// What it is.
    pub architecture: String,
    /// Numbers in its weights; an artifact may not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<u64>,
    /// What was read of the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Summary>,
    /// Each way through the steps.
    pub variants: Vec<PlannedVariant>,
    /// Which texts activations would be seen on, and how many windows of each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// What would be measured: `NAME: TASK with RUNNER`.
    pub evals: Vec<String>,
    /// What compilers of vendors would be asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub predictions: Vec<String>,
    /// How many gates would be judged.
    pub gates: usize,
    /// Bytes of memory at the peak, estimated from above.
    pub peak_memory: u64,
    /// What takes most of it.
    pub peak: String,
    /// What is no mistake, and may not be meant.
    pub notes: Vec<String>,
    /// What a run needs and this machine does not have.
    pub missing: Vec<String>,
    /// Why a run would not start here, if something is missing that it cannot do without.
    #[serde(skip)]
    pub blocked: Option<Error>,
}

/// What would become of one variant.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedVariant {
    /// Empty for the only one.
    pub name: String,
    /// Every weight that changes, in order.
    pub tensors: Vec<PlannedTensor>,
    /// What planning computed and the run uses again.
    #[serde(skip)]
    pub(crate) kept: Kept,
    /// What a user should know before the steps run.
    #[serde(skip)]
    pub(crate) notes: Vec<String>,
    /// What the steps can say before they run.
    #[serde(flatten)]
    pub findings: Findings,
    /// What would be written.
    pub exports: Vec<PlannedExport>,
    /// True bits per weight, over all weights.
    pub bits_per_weight: f64,
    /// True bits per weight, over the quantized ones.
    pub quantized_bits_per_weight: f64,
}

/// A folder that would be written.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedExport {
    /// How.
    pub target: String,
    /// Where.
    pub folder: String,
    /// Bytes of its weights.
    pub bytes: u64,
    /// What a user should know before it is written.
    #[serde(skip)]
    pub(crate) notes: Vec<String>,
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
        let hint = "raise `--max-memory`, or take fewer or shorter windows of text".to_owned();
        Err(Error::input(message).hint(hint))
    }
}

/// Bytes that the process takes with a model opened and nothing done.
const BASE_MEMORY: u64 = 40 << 20;

/// Bytes that an export takes on top of its largest tensor's codes.
const EXPORT_MEMORY: u64 = 24 << 20;

/// Bytes of a tokenizer for each of its tokens, and of a piece of text while it is encoded; measured.
const TOKEN_MEMORY: u64 = 1400;
const PIECE_MEMORY: u64 = 24 << 20;

/// Bytes that it takes to read texts, if the recipe reads some.
fn text_memory(recipe: &Recipe, opened: &Opened) -> u64 {
    let texts = recipe.has_texts() || !recipe.evals.is_empty();
    let tokens = opened.model().or(opened.base()).map_or(0, |model| shape::vocabulary(&model.graph));
    u64::from(texts) * (PIECE_MEMORY + TOKEN_MEMORY * tokens)
}

/// Plans a run of `recipe`.
pub fn plan(recipe: &Recipe, engines: &Engines) -> Result<Plan> {
    recipe.check_places()?;
    output::check(recipe.output(), &recipe.owner())?;
    plan_work(recipe, engines)
}

/// The same, wherever the output goes.
pub(crate) fn plan_work(recipe: &Recipe, engines: &Engines) -> Result<Plan> {
    let opened = Opened::of(recipe)?;
    recipe.check_texts(opened.config())?;
    check_written(recipe, &opened)?;
    opened.check_chat(recipe)?;
    check_evals(recipe, &opened)?;
    check_gates(recipe, &opened)?;
    if !recipe.evals.is_empty() {
        opened.check_tokenizers().map_err(|e| recipe.document.place(e, "baseline"))?;
    }
    let mut peak = Peak::default();
    let mut variants = Vec::new();
    for (variant, model) in recipe.variants.iter().filter_map(|variant| Some((variant, opened.model()?))) {
        variants.push(plan_variant(recipe, variant, model, &mut peak)?);
    }
    if let (Some(text), Some(model)) = (recipe.calibration().filter(|text| text.is_written()), opened.model()) {
        peak.raise(eval_memory(model, text.length(opened.config())), || "the text that the model writes".into());
    }
    for eval in &recipe.evals {
        let longest = eval.task.longest().or(opened.config().context).unwrap_or(0);
        for model in opened.model().into_iter().chain(opened.base()) {
            peak.raise(eval_memory(model, longest), || format!("the eval `{}`", eval.name));
        }
    }
    Ok(Plan {
        model: recipe.subject().path().display().to_string(),
        architecture: opened.config().architecture.clone(),
        parameters: opened.parameters(),
        read: opened.model().map(Model::summary).transpose()?,
        notes: recipe.notes().into_iter().chain(notes_of_variants(&variants)).collect(),
        variants,
        calibration: recipe.calibration().map(|text| described(text.length(opened.config()), &text.asked())),
        evals: recipe.evals.iter().flat_map(|e| e.runners.iter().map(|(r, m)| describe(e, *r, *m))).collect(),
        predictions: recipe.predictions.iter().map(ToString::to_string).collect(),
        gates: recipe.gates.len(),
        peak_memory: BASE_MEMORY + text_memory(recipe, &opened) + peak.bytes,
        peak: peak.what,
        missing: missing(recipe, engines),
        blocked: check_needs(recipe, engines).err(),
    })
}

/// An encoder writes no text.
fn check_written(recipe: &Recipe, opened: &Opened) -> Result<()> {
    let written = recipe.calibration().is_some_and(|text| text.is_written());
    match opened.model().filter(|model| written && !shape::predicts_tokens(&model.graph)) {
        None => Ok(()),
        Some(model) => {
            let message = format!("`{}` writes no text: it is an encoder", model.graph.name());
            let error = Error::recipe(message).hint("name a text, or take attar's own: `kind = \"mixture\"`".to_owned());
            Err(recipe.document.place(error, "data.calibration.sources"))
        }
    }
}

/// What steps and exports say of themselves, each once.
fn notes_of_variants(variants: &[PlannedVariant]) -> BTreeSet<String> {
    let of_exports = variants.iter().flat_map(|variant| &variant.exports).flat_map(|export| &export.notes);
    variants.iter().flat_map(|variant| &variant.notes).chain(of_exports).cloned().collect()
}

/// The most memory that any part of a run takes, and which part.
#[derive(Default)]
struct Peak {
    bytes: u64,
    what: String,
}

impl Peak {
    fn raise(&mut self, bytes: u64, what: impl FnOnce() -> String) {
        if bytes > self.bytes {
            *self = Peak { bytes, what: what() };
        }
    }
}

fn plan_variant(recipe: &Recipe, variant: &Variant, model: &Model, peak: &mut Peak) -> Result<PlannedVariant> {
    let mut working = Working::new(&variant.name, model, recipe.data())?;
    let tensors = plan_steps(recipe, variant, &mut working, peak)?;
    let mut exports = plan_exports(recipe, variant, model, &working, peak)?;
    exports.extend(plan_adapters(recipe, variant, &working)?);
    let (bits_per_weight, quantized_bits_per_weight) = working.bits();
    Ok(PlannedVariant {
        name: variant.name.clone(),
        tensors,
        kept: working.kept,
        notes: working.notes,
        findings: working.findings,
        exports,
        bits_per_weight,
        quantized_bits_per_weight,
    })
}

/// Every weight that the steps of a variant change; then `working` is what it would be.
fn plan_steps(recipe: &Recipe, variant: &Variant, working: &mut Working, peak: &mut Peak) -> Result<Vec<PlannedTensor>> {
    let mut tensors = Vec::new();
    for (at, (key, step)) in variant.steps.iter().enumerate() {
        let kind = step.kind();
        working.kept.at(at);
        working.walking = 0;
        check_graph(kind, &working.graph).map_err(|e| recipe.failed_step(key, kind, e))?;
        let planned = step.plan(working).map_err(|e| recipe.failed_step(key, kind, e))?;
        match planned.iter().max_by_key(|tensor| tensor.memory) {
            Some(tensor) => {
                peak.raise(working.walking + tensor.memory, || format!("the step `{}` on `{}`", kind.name, tensor.name));
            }
            None => peak.raise(working.walking, || format!("the step `{}`", kind.name)),
        }
        tensors.extend(planned);
    }
    Ok(tensors)
}

/// The folders of the exports. What a budget may choose must be possible, too.
fn plan_exports(
    recipe: &Recipe,
    variant: &Variant,
    model: &Model,
    working: &Working,
    peak: &mut Peak,
) -> Result<Vec<PlannedExport>> {
    let mut exports = Vec::new();
    for export in recipe.exports_of(variant) {
        let check = |graph: &Graph| {
            export.profile.map_or(Ok(()), |profile| profile.check(graph)).map_err(|e| recipe.at_export(export, e))?;
            export.format.check(graph).map_err(|e| recipe.refused_export(export, e))
        };
        if export.format.needs_plans() {
            check_plans(export.target.name, working.compiled).map_err(|e| recipe.at_export(export, e))?;
        }
        let written = check(&working.graph)?;
        let side = side(model, &working.graph)?;
        export.format.check_side(&side).map_err(|e| recipe.refused_export(export, e))?;
        working.possible.iter().try_for_each(|graph| check(graph).map(drop))?;
        let largest = written.tensors.iter().map(|t| t.stored_bytes).max().unwrap_or(0).min(128 << 20);
        peak.raise(EXPORT_MEMORY + largest, || format!("the export `{}`", export.target.name));
        let folder = recipe.folder(&variant.name, &export.folder);
        let (target, bytes, notes) = (export.target.name.into(), written.bytes, written.notes);
        exports.push(PlannedExport { target, folder, bytes, notes });
    }
    Ok(exports)
}

/// There are plans, and they end with logits. `compiled` says the latter of the last step `compile`.
fn check_plans(target: &str, compiled: Option<bool>) -> Result<()> {
    let (message, hint) = match compiled {
        Some(true) => return Ok(()),
        Some(false) => (
            format!("the plans of `compile` end before the logits, which `{target}` needs"),
            "quantize the weight of the head and, in `activations`, its input: `select` of both includes `lm_head`",
        ),
        None => (
            format!("`{target}` writes the plans of a step `compile`, and there is none"),
            "add a step `kind = \"compile\"` at the end",
        ),
    };
    Err(Error::recipe(message).hint(hint.to_owned()))
}

/// The folder of the adapters that a step would leave.
fn plan_adapters(recipe: &Recipe, variant: &Variant, working: &Working) -> Result<Option<PlannedExport>> {
    let Some(adapted) = &working.adapters else { return Ok(None) };
    if let Some(export) = recipe.exports.iter().find(|export| export.folder == adapters::FOLDER) {
        let message = format!("the adapters of a `recover` step are written to `{}`, too", adapters::FOLDER);
        let error = Error::recipe(message).hint("give the export another `folder`".to_owned());
        return Err(recipe.document.place(error, &format!("{}.folder", export.key)));
    }
    let (bytes, folder) = (adapters::bytes(adapted, &working.graph), recipe.folder(&variant.name, adapters::FOLDER));
    Ok(Some(PlannedExport { target: adapters::TARGET.into(), folder, bytes, notes: Vec::new() }))
}

fn describe(eval: &crate::Eval, runner: RunnerKind, mode: attar_eval::Mode) -> String {
    let mode = runner.engine().map(|_| format!(", {mode} mode")).unwrap_or_default();
    let device = runner.engine().and(eval.device.as_ref()).map(|device| format!(", on {device}")).unwrap_or_default();
    format!("{}: {} with {runner}{mode}{device}", eval.name, eval.task.task().name)
}

/// No gate is about what no step `compile` measures or plans.
fn check_compiled_gates(recipe: &Recipe) -> Result<()> {
    let steps = recipe.variants.iter().flat_map(|variant| &variant.steps).filter(|(_, step)| step.kind().name == "compile");
    let settings: Vec<serde_json::Value> = steps.map(|(_, step)| step.settings()).collect();
    let without = |metric: &str| match metric {
        "kl" | "perplexity-ratio" | "snr" => settings.iter().all(|step| step["quality"] == 0).then_some("quality = 0"),
        "decode-latency" => settings.iter().all(|step| step["decode"] == false).then_some("decode = false"),
        _ => None,
    };
    let gates = recipe.gates.iter().enumerate().filter(|(_, gate)| gate.eval == DEVICE && !settings.is_empty());
    for (index, gate) in gates {
        if let Some(setting) = without(&gate.metric) {
            let message = format!("nothing would measure `{DEVICE}/{}`: the step `compile` has `{setting}`", gate.metric);
            let error = Error::recipe(message).hint("leave that setting out, or the gate".to_owned());
            return Err(recipe.document.place(error, &format!("gate[{index}].metric")));
        }
    }
    Ok(())
}

/// No gate is about tokens that an encoder would have to predict.
fn check_gates(recipe: &Recipe, opened: &Opened) -> Result<()> {
    check_compiled_gates(recipe)?;
    let Some(model) = opened.model().filter(|model| !shape::predicts_tokens(&model.graph)) else { return Ok(()) };
    let of_tokens = |name: &str| DEVICE_METRICS.iter().any(|metric| metric.name == name && metric.of_tokens);
    let of_tokens = |gate: &Gate| gate.eval == DEVICE && of_tokens(&gate.metric);
    let Some((index, gate)) = recipe.gates.iter().enumerate().find(|(_, gate)| of_tokens(gate)) else { return Ok(()) };
    let (metric, name) = (&gate.metric, model.graph.name());
    let message =
        format!("`{DEVICE}/{metric}` is about tokens that a model predicts, and `{name}` predicts none: it is an encoder");
    let error = Error::recipe(message).hint("`device/snr` is about its last values, `device/latency` about a text".to_owned());
    Err(recipe.document.place(error, &format!("gate[{index}].metric")))
}

/// What cannot be measured so is known before hours of work, not after: a setting that this model cannot have, an output that
/// it does not have, an artifact that the engine does not open.
fn check_evals(recipe: &Recipe, opened: &Opened) -> Result<()> {
    for eval in &recipe.evals {
        eval.task.check(opened.config()).map_err(|e| {
            let key = format!("{}.{}", eval.key, e.key().unwrap_or_default());
            recipe.document.place(e.into(), &key)
        })?;
        let output = eval.task.task().output;
        for (model, key) in [(opened.model(), format!("{}.task", eval.key)), (opened.base(), "baseline".to_owned())] {
            let Some(model) = model else { continue };
            let refused = |e: attar_eval::Error| recipe.document.place(Error { kind: ErrorKind::Recipe, ..e.into() }, &key);
            output.of(&attar_eval::outputs(&model.graph)).map_err(refused)?;
        }
        if let Measured::Artifact(existing) = &opened.subject
            && output == Output::Logits
            && existing.returns_last()
        {
            let message = format!(
                "eval `{}` needs the logits of all tokens, and `{}` returns the last",
                eval.name,
                existing.folder.display()
            );
            let error = Error::recipe(message).hint("export it with `logits = \"all\"`".to_owned());
            return Err(recipe.document.place(error, "artifact"));
        }
        if let Subject::Artifact(path) = recipe.subject() {
            let check = |engine| Existing::check(path, engine);
            eval.engines().try_for_each(check).map_err(|e| recipe.document.place(e, &format!("{}.runners", eval.key)))?;
        }
    }
    match recipe.subject() {
        Subject::Artifact(path) => recipe
            .predictions
            .iter()
            .try_for_each(|asked| Existing::check(path, asked.compiler).map_err(|e| recipe.document.place(e, &asked.key))),
        Subject::Model(_) => Ok(()),
    }
}

/// Two heads in f32, a block in f32, two windows of logits and what computes them, and the activations of a lane.
fn eval_memory(model: &Model, window: usize) -> u64 {
    let graph = &model.graph;
    let weights = 2 * shape::head_numbers(graph) + shape::largest_block(graph);
    4 * (weights + 3 * window as u64 * shape::output_width(graph) + 4 * EVAL_LANE * shape::widest_linear(graph))
}

/// Tokens that the reference runs at a time, and some more.
const EVAL_LANE: u64 = 4096;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A recipe over a model of the test data; `rest` follows its head.
    fn recipe(model: &str, rest: &str) -> Recipe {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata");
        let text = format!(
            "recipe = 1\nmodel = \"{}\"\noutput = \"/nonexistent/out\"\n{}",
            data.join("models").join(model).display(),
            rest.replace("DATA", &data.display().to_string())
        );
        Recipe::parse(Path::new("r.toml"), &text).unwrap()
    }

    const TEXT: &str = "[data.calibration]\npath = \"DATA/evals/shakespeare-train.txt\"\nsamples = 4\nlength = 64\n";

    fn planned(model: &str, rest: &str) -> Result<Plan> {
        plan(&recipe(model, rest), &Engines::default())
    }

    /// Message and causes of a refusal.
    fn refused(model: &str, rest: &str) -> String {
        let error = planned(model, rest).unwrap_err();
        format!("{}: {}", error.message, error.causes.join(": "))
    }

    #[test]
    fn a_quantized_model_is_planned_tensor_by_tensor() {
        let plan = planned("shakespeare-1m", "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\ngroup = 64\n").unwrap();
        let [variant] = &plan.variants[..] else { panic!("one variant") };
        assert_eq!(variant.tensors.len(), 4 * 7, "seven matrices in each of four blocks");
        let query = &variant.tensors[0];
        assert_eq!((query.name.as_str(), &query.dims[..]), ("blocks.0.attention.query", &[128, 128][..]));
        assert_eq!((query.from.as_str(), query.to.as_str()), ("bf16", "int4/g64"));
        assert_eq!(variant.quantized_bits_per_weight, 4.25);
    }

    #[test]
    fn memory_is_estimated_from_the_graph_for_decoders_and_encoders() {
        let step = "[[step]]\nkind = \"quantize\"\ngrid = \"int8\"\ngroup = \"row\"\n";
        for model in ["shakespeare-1m", "tiny-gpt2", "tiny-bert"] {
            let small = planned(model, step).unwrap().peak_memory;
            let step = step.replace("int8\"", "int8\"\nalgorithm = \"gptq\"");
            let calibrated = planned(model, &format!("{TEXT}{step}")).unwrap().peak_memory;
            assert!(BASE_MEMORY < small && BASE_MEMORY < calibrated, "{model}: {small} and {calibrated} bytes");
            // What reads a few rows at a time takes more than all windows of a model of a few kilobytes.
            assert!(model != "shakespeare-1m" || small < calibrated, "{model}: {small} and {calibrated} bytes");
        }
    }

    #[test]
    fn steps_that_need_predicted_tokens_refuse_an_encoder_by_name() {
        let said = refused("tiny-bert", &format!("{TEXT}[[step]]\nkind = \"recover\"\n"));
        assert!(said.contains("`recover` needs a model that predicts tokens"), "{said}");
        let budget = "[[step]]\nkind = \"quantize\"\nbits = 6.0\nsensitivity = \"kl\"\n";
        let said = refused("tiny-bert", &format!("{TEXT}{budget}"));
        assert!(said.contains("an encoder predicts none"), "{said}");
    }

    #[test]
    fn steps_in_an_order_that_cannot_work_are_refused() {
        let fused = "[[step]]\nkind = \"fuse\"\n[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n";
        assert!(refused("shakespeare-1m", fused).contains("the graph is fused"));
        assert!(
            refused("shakespeare-1m", "[[step]]\nkind = \"simulate\"\n").contains("no `compile` step before it makes a proof")
        );
    }

    #[test]
    fn steps_that_look_at_a_text_have_attars_own_where_none_is_named() {
        let calibrated = "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\nalgorithm = \"gptq\"\n";
        let told = planned("shakespeare-1m", calibrated).unwrap().calibration.unwrap();
        assert!(told.starts_with("calibration: windows of 512 tokens, ") && told.contains(" of prose, "), "{told}");
        assert_eq!(planned("shakespeare-1m", &calibrated.replace("gptq", "rtn")).unwrap().calibration, None);
    }

    #[test]
    fn what_planning_placed_is_kept_for_the_run() {
        let plan = planned("shakespeare-1m", "[[step]]\nkind = \"memory-plan\"\nfile = \"DATA/memory/pieces.csv\"\n").unwrap();
        assert_eq!(format!("{:?}", plan.variants[0].kept), "Kept([0])");
    }

    #[test]
    fn a_plan_over_the_limit_of_memory_names_what_takes_it() {
        let plan = planned("shakespeare-1m", "[[step]]\nkind = \"quantize\"\ngrid = \"int4\"\n").unwrap();
        plan.check_memory(Some(plan.peak_memory)).unwrap();
        let error = plan.check_memory(Some(plan.peak_memory - 1)).unwrap_err();
        assert!(error.message.starts_with("the step `quantize` on `"), "{}", error.message);
        assert_eq!(error.exit_code(), 3);
    }
}
