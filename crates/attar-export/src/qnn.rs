//! Qualcomm QNN: two ONNX graphs of fixed shapes over the same weights, for ONNX Runtime's execution provider for Hexagon (HTP).
//!
//! `prefill.onnx` reads a part of a prompt, `decode.onnx` one token. Both take a cache whose last places are in use, and return it with the new tokens
//! at its end: the caller drops as many from its front. `attention_mask` is 0 for places that hold nothing, and for padding, which is in front.
//! All weights in codes are in `MatMulNBits`, everything else is f32, which the processor computes in f16, so that no node is left to the CPU. Where
//! activations are in static integers around products, these are written as `QuantizeLinear` and `DequantizeLinear` around `MatMul`, which the provider
//! turns into products of integers. Codes of activations are unsigned, the form that was tried, and those of weights have zeros that are stored: without zeros it
//! computes something else, and says nothing.

use std::path::Path;

use attar_graph::{Expr, Graph, Node, Op, ValueId};
use attar_tensor::{Dtype, Encoding, Granularity, ScaleFormat, write_atomically};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    AccuracyLevel, Artifact, Error, Format, Input, Layout, Logits, Onnx, Original, Plan, Progress, Result, Side, Style, Target,
    Verification,
    decoder::Decoder,
    kit,
    onnx::{self, Fixed, verify::Written},
    target,
};

pub(super) static TARGET: Target = Target {
    name: "qnn",
    about: "ONNX of fixed shapes for Qualcomm Hexagon, through ONNX Runtime's QNN execution provider",
    version: 2,
    schema: attar_settings::schema::<Qnn>,
    parse: target::parse::<Qnn>,
};

const PREFILL: &str = "prefill.onnx";
const DECODE: &str = "decode.onnx";
/// What a program has to know: sizes, and the provider's options.
const CONFIG: &str = "qnn.json";

/// Tokens that the cache holds at most, unless `context` says how many.
const LONGEST: usize = 1024;

/// Tokens of a part of a prompt, unless `prefill` says how many.
const PART: usize = 128;

/// Graphs for a Hexagon processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Qnn {
    /// The chip. The provider takes any number for one without a word, so only those that were read back from its context binaries are known.
    pub soc: Soc,
    /// Tokens that prompt and answer have together, at most: what the cache holds, with the tokens of a call [default: as many as the model takes, at
    /// most 1024].
    pub context: Option<usize>,
    /// Tokens of a part of a prompt; a shorter one is padded in front [default: 128, or one less than the context].
    pub prefill: Option<usize>,
}

/// A chip with a Hexagon processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Soc {
    /// Snapdragon 8 Gen 2.
    Sm8550,
    /// Snapdragon 8 Gen 3.
    Sm8650,
    /// Snapdragon 8 Elite.
    #[default]
    Sm8750,
    /// Snapdragon 8 Elite Gen 5.
    Sm8850,
}

impl Soc {
    /// The provider's `soc_model` and `htp_arch`.
    fn options(self) -> [&'static str; 2] {
        match self {
            Soc::Sm8550 => ["43", "73"],
            Soc::Sm8650 => ["57", "75"],
            Soc::Sm8750 => ["69", "79"],
            Soc::Sm8850 => ["87", "81"],
        }
    }
}

impl Qnn {
    fn onnx(graph: &Graph) -> Onnx {
        let accuracy_level = AccuracyLevel::default();
        let layout = if is_rounded(graph) { Layout::DequantizeLinear } else { Layout::MatMulNBits };
        Onnx { layout, style: Style::Plain, accuracy_level, logits: Logits::All }
    }

    /// Tokens that the cache holds with those of a call, given how many the model takes, and both graphs.
    fn calls(&self, takes: Option<usize>) -> Result<(usize, [(&'static str, Fixed); 2])> {
        let refuse =
            |key, found: usize, wanted: String| Err(Error::Option { target: TARGET.name, key, found: found.to_string(), wanted });
        let context = match (self.context, takes) {
            (Some(asked), Some(takes)) if asked > takes => {
                return refuse("context", asked, format!("at most the {takes} tokens that the model takes"));
            }
            (asked, takes) => asked.unwrap_or(takes.unwrap_or(LONGEST).min(LONGEST)),
        };
        if context < 2 {
            return refuse("context", context, "2 tokens or more".into());
        }
        // The cache before a call has a place at least: no runtime likes empty tensors.
        let longest = context - 1;
        let prefill = self.prefill.unwrap_or(PART.min(longest));
        if prefill == 0 || prefill > longest {
            return refuse("prefill", prefill, format!("from 1 to {longest} tokens, one less than the context"));
        }
        let call = |tokens| Fixed { tokens, past: context - tokens };
        Ok((context, [(PREFILL, call(prefill)), (DECODE, call(1))]))
    }
}

impl Format for Qnn {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        let (_, calls) = self.calls(None)?;
        Qnn::onnx(graph).check_fixed(&prepared(graph)?, calls[0].1)
    }

    fn check_side(&self, side: &Side) -> Result<()> {
        self.calls(side.context).map(drop)
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let (context, calls) = self.calls(model.side.context)?;
        let graph = prepared(model.graph)?;
        model.graph.verify_weights(model.source)?;
        kit::remove(&folder.join(CONFIG))?;
        let artifact = Qnn::onnx(&graph).write_fixed(&Input { graph: &graph, ..*model }, &calls, folder, progress)?;
        let [soc_model, htp_arch] = self.soc.options();
        let mut config = json!({
            "context": context,
            "prefill": calls[0].1.tokens,
            "provider_options": { "soc_model": soc_model, "htp_arch": htp_arch },
        });
        for (name, value) in model.side.special_tokens()? {
            config[name] = value;
        }
        let (path, text) = (folder.join(CONFIG), serde_json::to_string_pretty(&config).expect("a configuration is JSON") + "\n");
        write_atomically(&path, |file| file.write_all(text.as_bytes()).map_err(Error::io("write", &path)))?;
        let files = kit::files(folder, &[PREFILL, DECODE, onnx::DATA, CONFIG], model.side)?;
        Ok(Artifact { target: TARGET.name.into(), options: self.options(), files, ..artifact })
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let graph = prepared(model.graph)?;
        let model = Input { graph: &graph, ..*model };
        let written = |file| Written { file, unsigned_zeros: true };
        onnx::verify::verify(&model, artifact, folder, written(DECODE), None)?;
        let verification = onnx::verify::verify(&model, artifact, folder, written(PREFILL), original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// The model as it is written: tables, and whatever is not in codes, in f32. The provider leaves rows of codes and of bf16 to the CPU.
fn prepared(graph: &Graph) -> Result<Graph> {
    Decoder::of(graph, TARGET.name)?;
    if is_rounded(graph) {
        check_rounding(graph)?;
    }
    graph.nodes().iter().filter(|node| node.op == Op::Linear).try_for_each(|node| check_codes(graph, node))?;
    let mut prepared = graph.clone();
    let tables: Vec<ValueId> = graph.nodes().iter().filter(|node| node.op == Op::Embedding).map(|node| node.inputs[1]).collect();
    let f32 = Encoding::Plain(Dtype::F32);
    let weights: Vec<(ValueId, Expr)> = graph
        .weights()
        .filter(|(id, value, _)| {
            value.fact.encoding != f32 && (tables.contains(id) || !matches!(value.fact.encoding, Encoding::Quantized(_)))
        })
        .map(|(id, _, expr)| (id, Expr::Round(Box::new(expr.clone()), Dtype::F32)))
        .collect();
    weights.into_iter().for_each(|(id, expr)| prepared.replace_weight(id, f32, expr));
    Ok(prepared)
}

/// Whether some activations are in integers.
fn is_rounded(graph: &Graph) -> bool {
    graph.nodes().iter().any(is_rounding)
}

fn is_rounding(node: &Node) -> bool {
    matches!(node.op, Op::Quantize { .. })
}

/// Products in integers have static scales, one for what they read and one for what they make.
fn check_rounding(graph: &Graph) -> Result<()> {
    let refuse = |node: &Node, found: &str| {
        let (name, op) = (graph.get(node.output()).name.clone(), node.op.def().name);
        let wanted = "static scales around products: the step `activations` with `mode = \"static\"` and `values = \"linear\"`";
        Err(Error::Node { node: name, op, found: found.into(), target: TARGET.name, wanted })
    };
    for node in graph.nodes().iter().filter(|node| is_rounding(node)) {
        let one = node.inputs.get(1).is_some_and(|scale| graph.fact(*scale).constant_dims().as_deref() == Some(&[1]));
        if !one {
            return refuse(node, "an activation with scales of tokens or channels");
        }
        if node.inputs.len() > 2 {
            return refuse(node, "an activation with a zero point: set `asymmetric = false`");
        }
    }
    for node in graph.nodes().iter().filter(|node| node.op == Op::Linear) {
        if !matches!(graph.fact(node.inputs[1]).encoding, Encoding::Quantized(_)) {
            continue;
        }
        let reads = graph.maker(node.inputs[0]).is_some_and(is_rounding);
        let mut readers = graph.nodes().iter().filter(|reader| reader.inputs.contains(&node.output()));
        if !reads || graph.outputs().contains(&node.output()) || !readers.all(is_rounding) {
            return refuse(node, "a product of which not both sides are in integers");
        }
    }
    Ok(())
}

/// The provider crashes on scales that are computed, and takes no short groups; all else that `MatMulNBits` lacks the layout knows.
fn check_codes(graph: &Graph, node: &Node) -> Result<()> {
    let fact = graph.fact(node.inputs[1]);
    let (Encoding::Quantized(scheme), Some(dims)) = (fact.encoding, fact.constant_dims()) else { return Ok(()) };
    let refuse = |wanted, hint| {
        let [node, tensor] = [node.output(), node.inputs[1]].map(|id| graph.get(id).name.clone());
        Err(Error::Weight { node, tensor, found: scheme.to_string(), layout: format!("target `{}`", TARGET.name), wanted, hint })
    };
    if is_rounded(graph) {
        return match scheme.scale {
            _ if scheme.granularity != Granularity::Row || !scheme.is_symmetric() => {
                refuse("symmetric codes with a scale a row", "set `group = \"row\"`")
            }
            // It takes negative ones for others, and says nothing.
            _ if !scheme.has_positive_scales() => refuse("codes with positive scales", "set `positive_scales = true`"),
            ScaleFormat::F32 if scheme.grid.bits() >= 3 => Ok(()),
            ScaleFormat::F32 => refuse("codes of 3 bits and more", "quantize to `int4`"),
            _ => refuse("scales in f32", "set `scale_dtype = \"f32\"`"),
        };
    }
    if scheme.scale.plain().is_none() {
        return refuse("scales in f16, bf16 or f32", "set `scale_dtype = \"f16\"`");
    }
    match scheme.granularity {
        Granularity::Group(size) if dims[1].is_multiple_of(size) => Ok(()),
        _ => refuse("groups that divide a row", "use another `group`, such as 32"),
    }
}
