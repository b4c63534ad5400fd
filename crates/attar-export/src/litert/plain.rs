//! LiteRT by itself: `model.tflite`, an encoder for texts of one length; or `prefill.tflite` and `decode.tflite`, a decoder for a part of a prompt and for
//! one token, which take and return whole caches as the sub-graphs of a bundle do.
//!
//! A model whose values are all in integers (`values = "all"` of the step `activations`) becomes an integer-only one, which compilers for NPUs of
//! microcontrollers take whole. Its decoders take the past of keys and values (`kv_cache_*`, in the order of their tokens), and return what is new
//! (`kv_slice_*`), for the caller to put behind it. `mask` is 0 where a token sees a key, and the least code where it does not.

use std::{fs, path::Path};

use attar_graph::{Graph, Op};
use attar_tensor::{Source, write_atomically};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    build::Call,
    emit,
    integer::{self, Content, Lookup, Lookups, TABLES},
    lm::{artifact, notes},
    schema::{self, Subgraph},
    verify,
    weight::{Part, Stored, write_model},
};
use crate::{
    Artifact, Error, Format, Input, Original, Plan, Progress, Result, Side, Target, Verification, decoder::Decoder, kit, target,
};

pub(crate) static TARGET: Target = Target {
    name: "tflite",
    about: "LiteRT models, in floats or integer-only for NPUs such as Arm Ethos-U",
    version: 2,
    schema: attar_settings::schema::<Tflite>,
    parse: target::parse::<Tflite>,
};

const MODEL: &str = "model.tflite";
const PREFILL: &str = "prefill.tflite";
const DECODE: &str = "decode.tflite";

/// What LiteRT's own converters call the only signature.
const SIGNATURE: &str = "serving_default";

/// Tokens of a text, of prompt and answer together, and of a part of a prompt, unless options say how many.
const LENGTH: usize = 128;
const CONTEXT: usize = 512;
const PART: usize = 32;

/// A model for LiteRT.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tflite {
    /// Of encoders: tokens of a text; shorter ones are padded behind [default: as many as the model takes, at most 128].
    pub tokens: Option<usize>,
    /// Of decoders: tokens that the caches hold [default: as many as the model takes, at most 512].
    pub context: Option<usize>,
    /// Of decoders: tokens of a part of a prompt [default: 32, or as many as the caches hold].
    pub prefill: Option<usize>,
    /// Of integer-only models: who looks up rows of embeddings, cosines and sines. `inside`: the model, by ids and positions. `outside`: the
    /// caller, from the tables beside the model; NPUs of microcontrollers cannot.
    pub lookups: Option<Lookups>,
}

/// A call that a file is for, in numbers.
struct Sizes {
    file: &'static str,
    tokens: usize,
    cache: usize,
    outputs: bool,
}

/// A file that is written.
struct File {
    name: &'static str,
    graph: Subgraph,
    stored: Vec<Stored>,
    /// Bytes of the weights.
    bytes: u64,
}

/// What is written.
struct Built {
    files: Vec<File>,
    tables: Vec<Lookup>,
    /// All weights.
    stored: Vec<Stored>,
}

impl Tflite {
    /// The calls of a model that takes so many tokens.
    fn sizes(&self, decoder: bool, takes: Option<usize>) -> Result<Vec<Sizes>> {
        let of = |key, asked: Option<usize>, most: Option<usize>, usual: usize| {
            let refuse =
                |found: usize, wanted: String| Err(Error::Option { target: TARGET.name, key, found: found.to_string(), wanted });
            match (asked, most) {
                (Some(0), _) => refuse(0, "1 or more".into()),
                (Some(asked), Some(most)) if asked > most && key == "prefill" => {
                    refuse(asked, format!("at most the {most} tokens that the caches hold"))
                }
                (Some(asked), Some(most)) if asked > most => {
                    refuse(asked, format!("at most the {most} tokens that the model takes"))
                }
                (asked, most) => Ok(asked.unwrap_or(most.unwrap_or(usual).min(usual))),
            }
        };
        let foreign = [("tokens", self.tokens, true), ("context", self.context, false), ("prefill", self.prefill, false)];
        for (key, given, of_encoder_refused) in foreign {
            if let Some(given) = given.filter(|_| decoder == of_encoder_refused) {
                let wanted = format!("only {} have it, so nothing", if decoder { "encoders" } else { "decoders" });
                return Err(Error::Option { target: TARGET.name, key, found: given.to_string(), wanted });
            }
        }
        if !decoder {
            let tokens = of("tokens", self.tokens, takes, LENGTH)?;
            return Ok(vec![Sizes { file: MODEL, tokens, cache: 0, outputs: true }]);
        }
        let cache = of("context", self.context, takes, CONTEXT)?;
        let part = of("prefill", self.prefill, Some(cache), PART)?;
        let call = |file, tokens, outputs| Sizes { file, tokens, cache, outputs };
        Ok(vec![call(PREFILL, part, false), call(DECODE, 1, true)])
    }

    /// Without numbers if there is no source.
    fn build(&self, graph: &Graph, takes: Option<usize>, source: Option<&dyn Source>) -> Result<Built> {
        let decoder = graph.nodes().iter().any(|node| matches!(node.op, Op::Cache { .. }));
        let sizes = self.sizes(decoder, takes)?;
        if integer::is_integer(graph) {
            return self.build_integers(graph, &sizes, source);
        }
        if self.lookups.is_some() {
            let (wanted, found) = ("integer-only models", "has values in f32");
            let hint = "add the step `activations` with `mode = \"static\"` and `values = \"all\"`";
            return Err(Error::Kind { target: TARGET.name, wanted, found, hint });
        }
        if decoder {
            Decoder::of(graph, TARGET.name)?;
        }
        let model = emit::Model::new(graph, TARGET.name)?;
        let scales = source.map_or_else(|| Ok(Vec::new()), |source| model.row_scales(source))?;
        let files = sizes.iter().map(|size| {
            let Sizes { tokens, cache, outputs, .. } = *size;
            let call = Call { signature: SIGNATURE, tokens, cache, outputs };
            let graph = model.subgraph(call, &scales)?;
            Ok(File { name: size.file, graph, stored: model.stored.clone(), bytes: model.bytes })
        });
        Ok(Built { files: files.collect::<Result<_>>()?, tables: Vec::new(), stored: model.stored })
    }

    fn build_integers(&self, graph: &Graph, sizes: &[Sizes], source: Option<&dyn Source>) -> Result<Built> {
        let model = integer::Model::new(graph, TARGET.name, self.lookups.unwrap_or_default(), source)?;
        let (mut files, mut tables) = (Vec::new(), Vec::<Lookup>::new());
        for Sizes { file, tokens, cache, outputs } in sizes {
            let call = Call { signature: SIGNATURE, tokens: *tokens, cache: *cache, outputs: *outputs };
            let integer::Called { graph, stored, bytes, tables: read } = model.subgraph(call)?;
            files.push(File { name: file, graph, stored, bytes });
            let new: Vec<Lookup> = read.into_iter().filter(|read| !tables.contains(read)).collect();
            tables.extend(new);
        }
        Ok(Built { files, tables, stored: model.stored })
    }
}

impl Built {
    fn bytes(&self) -> u64 {
        let tables = self.tables.iter().map(|table| 2 * (table.rows * table.columns) as u64);
        self.files.iter().map(|file| file.bytes).chain(tables).sum()
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Vec<String>> {
        let (source, count) = (model.source, self.files.len() as u64);
        let mut written = Vec::new();
        for (at, File { name, graph, stored, .. }) in self.files.iter().enumerate() {
            let flatbuffer = schema::flatbuffer(std::slice::from_ref(graph));
            let mut part = |done, total| progress(at as u64 * total + done, count * total);
            write_model(&folder.join(name), &[(0, &flatbuffer)], stored, source, &mut part)?;
            written.push((*name).to_owned());
        }
        if self.tables.is_empty() {
            return Ok(written);
        }
        for table in &self.tables {
            let (name, path) = (table.file(), folder.join(table.file()));
            let failed = || Error::io("write", &path);
            write_atomically(&path, |to| match &table.of {
                Content::Weight(at) => {
                    self.stored[*at].stream(Part::Numbers, source, &mut |bytes| to.write_all(bytes).map_err(failed()))
                }
                Content::Rotation(..) => {
                    integer::rotation(table).into_iter().try_for_each(|code| to.write_all(&code.to_le_bytes())).map_err(failed())
                }
            })?;
            written.push(name);
        }
        let path = folder.join(TABLES);
        let text = serde_json::to_string_pretty(&json!({ "tables": self.described() })).expect("tables are JSON") + "\n";
        write_atomically(&path, |to| to.write_all(text.as_bytes()).map_err(Error::io("write", &path)))?;
        written.push(TABLES.into());
        Ok(written)
    }

    fn described(&self) -> Vec<Value> {
        let one = |table: &Lookup| {
            let mut described = json!(table);
            described["file"] = json!(table.file());
            if let Content::Weight(at) = table.of {
                described["weight"] = json!(self.stored[at].name);
            }
            described
        };
        self.tables.iter().map(one).collect()
    }
}

impl Lookup {
    fn file(&self) -> String {
        format!("{}.bin", self.input)
    }
}

impl Format for Tflite {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        let built = self.build(graph, None, None)?;
        let tensors = built.stored.iter().map(Stored::entry).collect();
        Ok(Plan { tensors, bytes: built.bytes(), notes: notes(&built.stored) })
    }

    fn check_side(&self, side: &Side) -> Result<()> {
        // Which of them are for this model is known by `check`.
        let decoder = self.context.is_some() || self.prefill.is_some();
        self.sizes(decoder, side.context).map(drop)
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        model.graph.verify_weights(model.source)?;
        let built = self.build(model.graph, model.side.context, Some(model.source))?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        let written = built.write(model, folder, progress)?;
        let written: Vec<&str> = written.iter().map(String::as_str).collect();
        let files = kit::files(folder, &written, model.side)?;
        let last = built.files.last().expect("a model has a file");
        Ok(artifact(&TARGET, self.options(), files, &last.graph, &built.stored))
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let models = artifact.files.iter().filter(|file| file.name.ends_with(".tflite"));
        let paths: Vec<_> = models.map(|file| folder.join(&file.name)).collect();
        let verification = verify::verify(model, artifact, &paths, original)?;
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}
