//! LiteRT-LM: one file, `model.litertlm`, with the model, its tokenizer, and what the runtime is told of both.
//!
//! A decoder has a sub-graph for each length of a part of the prompt, and one for a token that returns logits. Keys and values go in and come out;
//! weights are stored once.

use std::{fs, io::Write as _, path::Path};

use attar_graph::Graph;
use attar_model::ChatTemplate;
use attar_tensor::Encoding;
use flate2::{Compression, write::ZlibEncoder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    build::Call,
    bundle,
    emit::Model,
    metadata::{self, Metadata, Sampler},
    schema::{self, Subgraph},
    verify,
    weight::{Form, Stored, write_model},
};
use crate::{
    Artifact, Error, FileEntry, Format, Input, Original, Plan, Port, Progress, Result, Side, Target, Verification,
    decoder::Decoder, kit, target,
};

pub(crate) static TARGET: Target = Target {
    name: "litert-lm",
    about: "a bundle for LiteRT-LM (Android and desktops): model, tokenizer and chat template in one file",
    version: 1,
    schema: attar_settings::schema::<LiteRtLm>,
    parse: target::parse::<LiteRtLm>,
};

/// The bundle.
pub(super) const BUNDLE: &str = "model.litertlm";

/// The signature of a single token.
const DECODE: &str = "decode";

/// Tokens that caches hold at most, unless `context` says how many: the runtime keeps all of them in f32 from the start.
const LONGEST: usize = 2048;

/// A bundle for LiteRT-LM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LiteRtLm {
    /// Tokens that prompt and answer have together, at most: what caches hold [default: as many as the model takes, at most 2048].
    pub context: Option<usize>,
    /// Lengths of the parts in which prompts are read. The runtime fills the last part up, so a short one is what lets it come near the end of the
    /// context.
    pub prefill: Vec<usize>,
}

impl Default for LiteRtLm {
    fn default() -> LiteRtLm {
        LiteRtLm { context: None, prefill: vec![8, 128] }
    }
}

impl LiteRtLm {
    /// Tokens that caches hold, and the lengths of parts that fit, given how many the model takes.
    fn sizes(&self, takes: Option<usize>) -> Result<(usize, Vec<usize>)> {
        let refuse = |key, found: String, wanted: String| Err(Error::Option { target: TARGET.name, key, found, wanted });
        let cache = match (self.context, takes) {
            (Some(0), _) => return refuse("context", "0".into(), "1 or more".into()),
            (Some(asked), Some(takes)) if asked > takes => {
                return refuse("context", asked.to_string(), format!("at most the {takes} tokens that the model takes"));
            }
            (Some(asked), _) => asked,
            (None, takes) => takes.unwrap_or(LONGEST).min(LONGEST),
        };
        let mut lengths = self.prefill.clone();
        lengths.sort_unstable();
        lengths.dedup();
        if let Some(wrong) = lengths.iter().find(|length| **length == 0 || (self.context.is_some() && **length > cache)) {
            return refuse("prefill", wrong.to_string(), format!("lengths from 1 to the {cache} tokens of the context"));
        }
        lengths.retain(|length| *length <= cache);
        if lengths.is_empty() {
            return refuse("prefill", format!("{:?}", self.prefill), format!("a length that fits a context of {cache} tokens"));
        }
        Ok((cache, lengths))
    }

    /// All sub-graphs, the one that returns logits last.
    fn subgraphs(&self, model: &Model, takes: Option<usize>, scales: &[Vec<f32>]) -> Result<Vec<Subgraph>> {
        let (cache, lengths) = self.sizes(takes)?;
        let mut calls: Vec<(String, usize, bool)> =
            lengths.into_iter().map(|tokens| (format!("prefill_{tokens}"), tokens, false)).collect();
        calls.push((DECODE.into(), 1, true));
        let sub = |(signature, tokens, outputs): &(String, usize, bool)| {
            model.subgraph(Call { signature, tokens: *tokens, cache, outputs: *outputs }, scales)
        };
        calls.iter().map(sub).collect()
    }
}

impl Format for LiteRtLm {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        Decoder::of(graph, TARGET.name)?;
        let model = Model::new(graph, TARGET.name)?;
        self.subgraphs(&model, None, &[])?;
        let tensors = model.stored.iter().map(Stored::entry).collect();
        Ok(Plan { tensors, bytes: model.bytes, notes: notes(&model.stored) })
    }

    fn check_side(&self, side: &Side) -> Result<()> {
        self.sizes(side.context)?;
        told(side, 0).map(drop)
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        Decoder::of(model.graph, TARGET.name)?;
        let (cache, _) = self.sizes(model.side.context)?;
        let (metadata, json) = told(model.side, cache)?;
        let tokenizer = deflated(&json);
        let built = Model::new(model.graph, TARGET.name)?;
        model.graph.verify_weights(model.source)?;
        let subgraphs = self.subgraphs(&built, model.side.context, &built.row_scales(model.source)?)?;
        let flatbuffer = schema::flatbuffer(&subgraphs);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        write(&folder.join(BUNDLE), [&metadata, &tokenizer, &flatbuffer], &built, model, progress)?;
        let files = kit::files(folder, &[BUNDLE], model.side)?;
        Ok(artifact(&TARGET, self.options(), files, &subgraphs[subgraphs.len() - 1], &built.stored))
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let verification = verify::verify(model, artifact, &[folder.join(BUNDLE)], original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// What the runtime is told, and the `tokenizer.json`.
fn told(side: &Side, cache: usize) -> Result<(Vec<u8>, Vec<u8>)> {
    let lacks =
        |found, hint| Error::Kind { target: TARGET.name, wanted: "models with a tokenizer whose answers end", found, hint };
    let json = side.tokenizer()?.ok_or_else(|| lacks("has no `tokenizer.json`", "put the tokenizer beside the model"))?;
    let broken = |_| lacks("has a `tokenizer.json` that is no JSON", "mend the file beside the model");
    let tokenizer: Value = serde_json::from_slice(&json).map_err(broken)?;
    let ends = side.special_tokens()?.into_iter().find(|(name, _)| *name == "eos_token_id").map(|(_, value)| value);
    let ends = ends.map(|value| if let Value::Array(all) = value { all } else { vec![value] }).unwrap_or_default();
    let stops: Vec<i32> = ends.iter().filter_map(|id| i32::try_from(id.as_i64()?).ok()).collect();
    if stops.is_empty() {
        // The runtime refuses to begin without one.
        return Err(lacks(
            "does not say which token ends a text",
            "set `eos_token_id` in `generation_config.json` beside the model",
        ));
    }
    let start = metadata::start(&tokenizer);
    let template = side.chat_template()?.map(|template: ChatTemplate| metadata::template(&template, start.is_some()));
    let generation = side.object("generation_config.json")?.map_or(Value::Null, Value::Object);
    let metadata = Metadata { start, stops, sampler: Sampler::of(&generation), cache, template };
    Ok((metadata.bytes(), json))
}

/// A zlib stream behind the length of what it holds.
fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut to = ZlibEncoder::new((bytes.len() as u64).to_le_bytes().to_vec(), Compression::best());
    to.write_all(bytes).and_then(|()| to.finish()).expect("a vector takes all bytes")
}

/// Writes the bundle: metadata, tokenizer and model.
fn write(path: &Path, sections: [&[u8]; 3], built: &Model, model: &Input<'_>, progress: Progress<'_>) -> Result<()> {
    let [metadata, tokenizer, flatbuffer] = sections.map(|section| section.len() as u64);
    let of = [(bundle::METADATA, metadata), (bundle::TOKENIZER, tokenizer), (bundle::MODEL, flatbuffer + built.bytes)];
    let (header, places) = bundle::header(&of);
    let starts = places.iter().map(|place| place.start);
    let parts: Vec<(u64, &[u8])> = std::iter::once((0, header.as_slice())).chain(starts.zip(sections)).collect();
    write_model(path, &parts, &built.stored, model.source, progress)
}

/// What was written: `graph` is the call that callers see.
pub(super) fn artifact(target: &Target, options: Value, files: Vec<FileEntry>, graph: &Subgraph, stored: &[Stored]) -> Artifact {
    let written: Vec<kit::Written> = stored.iter().map(Stored::written).collect();
    Artifact {
        target: target.name.into(),
        options,
        files,
        inputs: ports(graph, &graph.inputs),
        outputs: ports(graph, &graph.outputs),
        tensors: stored.iter().map(Stored::entry).collect(),
        totals: kit::totals(&written),
        not_quantized: kit::not_quantized(&written),
        notes: Vec::new(),
    }
}

fn ports(graph: &Subgraph, of: &[(String, i32)]) -> Vec<Port> {
    let port = |(name, tensor): &(String, i32)| {
        let schema::Tensor { element, dims, .. } = &graph.tensors[*tensor as usize];
        Port { name: name.clone(), dims: dims.iter().map(ToString::to_string).collect(), dtype: element.name().into() }
    };
    of.iter().map(port).collect()
}

/// What to know before it is written.
pub(super) fn notes(stored: &[Stored]) -> Vec<String> {
    let wide = |stored: &&Stored| stored.form == Form::Plain && stored.dims.len() == 2 && !is_f32(stored.encoding());
    let Some(first) = stored.iter().find(wide) else { return Vec::new() };
    let (count, bytes) = stored.iter().filter(wide).fold((0, 0), |(count, bytes), s| (count + 1, bytes + s.entry().stored_bytes));
    vec![format!(
        "{count} matrices in 16 bits (`{}` first) are stored as f32, {bytes} bytes: LiteRT multiplies no others; quantize them to `int8` with \
         `group = \"row\"`, or to `int4`",
        first.name
    )]
}

fn is_f32(encoding: Encoding) -> bool {
    kit::plain_dtype(encoding) == Some(attar_tensor::Dtype::F32)
}
