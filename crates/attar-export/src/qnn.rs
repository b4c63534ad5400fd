//! Qualcomm QNN: ONNX graphs of fixed shapes, for ONNX Runtime's execution provider for Hexagon (HTP). Those of a decoder are two over the same weights,
//! that of an encoder is one, `model.onnx`, for a text of so many tokens; shorter ones are padded behind, which `attention_mask` says.
//!
//! `prefill.onnx` reads a part of a prompt, `decode.onnx` one token. Both take a cache whose last places are in use, and return it with the new tokens
//! at its end: the caller drops as many from its front. `attention_mask` is 0 for places that hold nothing, and for padding, which is in front.
//! All weights in codes are in `MatMulNBits`, everything else is f32, which the processor computes in f16, so that no node is left to the CPU. Where
//! activations are in static integers around products, these are written as `QuantizeLinear` and `DequantizeLinear` around `MatMul`, which the provider
//! turns into products of integers. Codes of activations are unsigned, the form that was tried, and those of weights have zeros that are stored: without zeros it
//! computes something else, and says nothing.

use std::path::Path;

use attar_graph::{Expr, Graph, Node, Op, ValueId};
use attar_tensor::{Dtype, Encoding, Granularity, ScaleFormat, Scheme, write_atomically};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    AccuracyLevel, Artifact, Error, Format, Input, Layout, Logits, Onnx, Original, Plan, Progress, Result, Side, Style, Target,
    Verification,
    decoder::{Decoder, check_attention},
    kit,
    onnx::{self, Fixed, verify::Written},
    target,
};

pub(super) static TARGET: Target = Target {
    name: "qnn",
    about: "ONNX of fixed shapes for Qualcomm Hexagon, through ONNX Runtime's QNN execution provider",
    version: 4,
    schema: attar_settings::schema::<Qnn>,
    parse: target::parse::<Qnn>,
};

const MODEL: &str = "model.onnx";
const PREFILL: &str = "prefill.onnx";
const DECODE: &str = "decode.onnx";
/// What a program has to know: sizes, and the provider's options.
const CONFIG: &str = "qnn.json";

/// Tokens that the cache holds at most, unless `context` says how many.
const LONGEST: usize = 1024;

/// Tokens of a part of a prompt, unless `prefill` says how many.
const PART: usize = 128;

/// Tokens of an encoder's text, unless `tokens` says how many.
const LENGTH: usize = 128;

/// A graph that is written: its file, and the sizes of its call.
type Call = (&'static str, Fixed);

/// Graphs for a Hexagon processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Qnn {
    /// The chip. The provider takes any number for one without a word, so only those that were read back from its context binaries are known.
    pub soc: Soc,
    /// Of encoders: tokens of a text; shorter ones are padded behind [default: as many as the model takes, at most 128].
    pub tokens: Option<usize>,
    /// Of decoders: tokens that prompt and answer have together, at most: what the cache holds, with the tokens of a call [default: as many as the model
    /// takes, at most 1024].
    pub context: Option<usize>,
    /// Of decoders: tokens of a part of a prompt; a shorter one is padded in front [default: 128, or one less than the context].
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

    /// The graphs of a model that takes so many tokens; the first is that with the most tokens.
    fn calls(&self, kind: Kind, takes: Option<usize>) -> Result<Vec<Call>> {
        self.check_options(kind)?;
        match kind {
            Kind::Encoder => self.text(takes),
            Kind::Decoder => self.prompt_and_token(takes),
        }
    }

    /// Options of the other kind of model are mistakes.
    fn check_options(&self, kind: Kind) -> Result<()> {
        let options = [
            ("tokens", self.tokens, Kind::Encoder),
            ("context", self.context, Kind::Decoder),
            ("prefill", self.prefill, Kind::Decoder),
        ];
        let foreign = options.into_iter().find_map(|(key, given, of)| given.filter(|_| of != kind).map(|given| (key, given)));
        let Some((key, given)) = foreign else { return Ok(()) };
        let wanted = format!("only {} have it, so nothing", if kind == Kind::Decoder { "encoders" } else { "decoders" });
        refuse(key, given, wanted)
    }

    fn text(&self, takes: Option<usize>) -> Result<Vec<Call>> {
        let tokens = at_most("tokens", self.tokens, takes, LENGTH)?;
        if tokens == 0 {
            return refuse("tokens", tokens, "1 or more".into());
        }
        Ok(vec![(MODEL, Fixed { tokens, past: 0 })])
    }

    fn prompt_and_token(&self, takes: Option<usize>) -> Result<Vec<Call>> {
        let context = at_most("context", self.context, takes, LONGEST)?;
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
        Ok(vec![(PREFILL, call(prefill)), (DECODE, call(1))])
    }

    /// What a program has to know of the graphs.
    fn config(&self, calls: &[Call], side: &Side) -> Result<Value> {
        let [soc_model, htp_arch] = self.soc.options();
        let Fixed { tokens, past } = calls[0].1;
        let mut config = match calls {
            [_] => json!({ "tokens": tokens }),
            _ => json!({ "context": past + tokens, "prefill": tokens }),
        };
        config["provider_options"] = json!({ "soc_model": soc_model, "htp_arch": htp_arch });
        for (name, value) in side.special_tokens()? {
            config[name] = value;
        }
        Ok(config)
    }
}

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It returns something for a text.
    Encoder,
    /// It returns logits, and keeps keys and values.
    Decoder,
}

impl Kind {
    /// Of `graph`, if it is one that the target takes.
    fn of(graph: &Graph) -> Result<Kind> {
        let cached = graph.nodes().iter().any(|node| matches!(node.op, Op::Cache { .. }));
        if cached || graph.outputs().iter().any(|id| graph.get(*id).name == "logits") {
            return Decoder::of(graph, TARGET.name).map(|_| Kind::Decoder);
        }
        check_attention(graph, TARGET.name).map(|()| Kind::Encoder)
    }
}

fn refuse<T>(key: &'static str, found: usize, wanted: String) -> Result<T> {
    Err(Error::Option { target: TARGET.name, key, found: found.to_string(), wanted })
}

/// What was asked for, if the model takes so many tokens; else as many as it takes, but no more than is usual.
fn at_most(key: &'static str, asked: Option<usize>, takes: Option<usize>, usual: usize) -> Result<usize> {
    match (asked, takes) {
        (Some(asked), Some(takes)) if asked > takes => {
            refuse(key, asked, format!("at most the {takes} tokens that the model takes"))
        }
        (asked, takes) => Ok(asked.unwrap_or(takes.unwrap_or(usual).min(usual))),
    }
}

impl Format for Qnn {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        let calls = self.calls(Kind::of(graph)?, None)?;
        Qnn::onnx(graph).check_fixed(&prepared(graph)?, calls[0].1)
    }

    fn check_side(&self, side: &Side) -> Result<()> {
        // For which kind of model they are is known by `check`.
        let kind = if self.tokens.is_some() { Kind::Encoder } else { Kind::Decoder };
        self.calls(kind, side.context).map(drop)
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let calls = self.calls(Kind::of(model.graph)?, model.side.context)?;
        let graph = prepared(model.graph)?;
        model.graph.verify_weights(model.source)?;
        kit::remove(&folder.join(CONFIG))?;
        let artifact = Qnn::onnx(&graph).write_fixed(&Input { graph: &graph, ..*model }, &calls, folder, progress)?;
        let config = self.config(&calls, model.side)?;
        let (path, text) = (folder.join(CONFIG), serde_json::to_string_pretty(&config).expect("a configuration is JSON") + "\n");
        write_atomically(&path, |file| file.write_all(text.as_bytes()).map_err(Error::io("write", &path)))?;
        let graphs = calls.iter().map(|(file, _)| *file);
        let files = kit::files(folder, &graphs.chain([onnx::DATA, CONFIG]).collect::<Vec<_>>(), model.side)?;
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
        let calls = self.calls(Kind::of(&graph)?, model.side.context)?;
        for (file, _) in &calls[1..] {
            onnx::verify::verify(&model, artifact, folder, written(file), None)?;
        }
        let verification = onnx::verify::verify(&model, artifact, folder, written(calls[0].0), original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// The model as it is written: tables, and whatever is not in codes, in f32. The provider leaves rows of codes and of bf16 to the CPU.
fn prepared(graph: &Graph) -> Result<Graph> {
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
        let bias = node.inputs.len() > 2;
        return rounded_product_lacks(&scheme, dims[1], bias).map_or(Ok(()), |(wanted, hint)| refuse(wanted, hint));
    }
    if scheme.scale.plain().is_none() {
        return refuse("scales in f16, bf16 or f32", "set `scale_dtype = \"f16\"`");
    }
    match scheme.granularity {
        Granularity::Group(size) if dims[1].is_multiple_of(size) => Ok(()),
        _ => refuse("groups that divide a row", "use another `group`, such as 32"),
    }
}

/// What codes of products in integers lack, and what would do. With a negative scale a row, and of blocks with a bias, with an odd number of blocks of 16, and of 8
/// inputs, Qualcomm's library computes something else, and says nothing.
fn rounded_product_lacks(scheme: &Scheme, columns: usize, bias: bool) -> Option<(&'static str, &'static str)> {
    let in_rows = scheme.granularity == Granularity::Row;
    let in_blocks = matches!(scheme.granularity, Granularity::Group(16 | 32 | 64 | 128));
    let lack = match scheme.scale {
        _ if !scheme.is_symmetric() || !(in_rows || in_blocks) => (
            "symmetric codes with a scale a row, or in groups of 16, 32, 64 or 128",
            "set `group = \"row\"`, or `group = 32` with `scale_dtype = \"int4\"`",
        ),
        _ if !scheme.has_positive_scales() => ("codes with positive scales", "set `positive_scales = true`"),
        _ if scheme.grid.bits() < 3 => ("codes of 3 bits and more", "quantize to `int4`"),
        ScaleFormat::F32 if in_rows => return None,
        _ if in_rows => ("scales in f32", "set `scale_dtype = \"f32\"`"),
        _ if bias => {
            ("a scale a row, for a layer with a bias", "set `group = \"row\"` and `scale_dtype = \"f32\"` for layers with a bias")
        }
        ScaleFormat::Int4 if scheme.grid.bits() > 4 => {
            ("groups of codes of at most 4 bits", "quantize to `int4`, or set `group = \"row\"`")
        }
        ScaleFormat::Int4 if !columns.is_multiple_of(BLOCK) => {
            ("groups in rows of a multiple of 32 inputs", "set `group = \"row\"`")
        }
        ScaleFormat::Int4 => return None,
        _ => ("groups with scales in `int4`", "set `scale_dtype = \"int4\"`, or `group = \"row\"` with scales in f32"),
    };
    Some(lack)
}

/// Groups of 16 are read two by two.
const BLOCK: usize = 32;
