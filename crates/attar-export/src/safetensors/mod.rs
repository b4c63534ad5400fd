//! A plain Hugging Face folder, which transformers and everything that builds on it load.
//!
//! `config.json` is derived from the graph ([`attar_model::describe`]), `model.safetensors` holds the tensors of the class that
//! it names ([`attar_model::Folder`]), in several files with an index where they are large. The folder is read back as any other
//! checkpoint: the architecture must build the same graph from the configuration, over the same weights.
//!
//! Number formats are those of the weights (`dtype = "auto"`), and the configuration states one that holds them all, so that
//! transformers rounds nothing when it loads them.

mod stored;

use std::{fs, path::Path};

use attar_graph::{Expr, Graph, Op};
use attar_model::{Folder, Model, OpenOptions, Pattern, same_structure};
use attar_settings::{Invalid, Size};
use attar_tensor::{Dtype, Encoding, Source, TensorInfo, write_atomically};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    Artifact, Error, Format, Input, Original, Packed, Plan, Progress, Result, Side, Target, TensorEntry, Verification,
    VerifiedTensor,
    kit::{self, Written},
    noise::{Noise, same},
};
use stored::{Stored, rounded};

pub(super) static TARGET: Target = Target {
    name: "safetensors",
    about: "a plain Hugging Face folder, for transformers and whatever reads its checkpoints",
    version: 1,
    schema: attar_settings::schema::<Safetensors>,
    parse: |options| {
        let format = attar_settings::parse::<Safetensors>(options)?;
        match format.shard_bytes {
            Size(0) => Err(Invalid { key: "shard_bytes".into(), message: "a file has 1 or more bytes".into() }),
            _ => Ok(Box::new(format)),
        }
    },
};

/// A plain Hugging Face folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Safetensors {
    /// Number format of the weights.
    pub dtype: Numbers,
    /// Bytes of one file, at most: weights that are larger together are divided among several. A tensor is never divided.
    pub shard_bytes: Size,
}

/// Number format of the weights in a folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Numbers {
    /// Each as it is: exact. What was computed, and blocks of a GGUF file, are f32.
    #[default]
    Auto,
    /// All rounded to bf16.
    Bf16,
    /// All rounded to f16; a number that is too large is an error.
    F16,
    /// All in f32.
    F32,
}

impl Default for Safetensors {
    fn default() -> Safetensors {
        Safetensors { dtype: Numbers::Auto, shard_bytes: Size(5_000_000_000) }
    }
}

const INDEX: &str = "model.safetensors.index.json";

/// What will be written.
struct Layout {
    folder: Folder,
    tensors: Vec<Stored>,
    /// Names of the files, and how many of the tensors each holds.
    files: Vec<(String, usize)>,
}

impl Layout {
    /// Number formats that depend on what is stored are known if there is a `source`.
    fn of(graph: &Graph, options: &Safetensors, source: Option<&dyn Source>) -> Result<Layout> {
        check_nodes(graph)?;
        let folder = Folder::of(graph)?;
        let tensors = folder.tensors.iter().map(|tensor| Stored::of(tensor, graph, options.dtype, source));
        let tensors: Vec<Stored> = tensors.collect::<Result<_>>()?;
        let files = shards(&tensors, options.shard_bytes.0);
        Ok(Layout { folder, tensors, files })
    }

    fn bytes(&self) -> u64 {
        self.tensors.iter().map(Stored::bytes).sum()
    }

    /// Every weight where it is.
    fn written(&self, graph: &Graph) -> Vec<Written> {
        self.tensors.iter().flat_map(|stored| written(stored, graph)).collect()
    }

    /// The configuration that describes `graph`, with a number format that holds all weights.
    fn config(&self, config: &Value, graph: &Graph) -> Result<Value> {
        let mut config = self.folder.config(config, graph)?;
        let mut dtypes = self.tensors.iter().map(|stored| stored.dtype);
        let first = dtypes.next().unwrap_or(Dtype::F32);
        let dtype = if dtypes.all(|dtype| dtype == first) { first } else { Dtype::F32 };
        let name = match dtype {
            Dtype::F16 => "float16",
            Dtype::BF16 => "bfloat16",
            _ => "float32",
        };
        let there: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|key| !config[key].is_null()).collect();
        let keys = if there.is_empty() { vec!["torch_dtype"] } else { there };
        keys.into_iter().for_each(|key| config[key] = name.into());
        Ok(config)
    }

    /// The tensors of every file.
    fn by_file(&self) -> impl Iterator<Item = (&str, &[Stored])> {
        let mut rest = &self.tensors[..];
        self.files.iter().map(move |(name, count)| {
            let (of_file, after) = rest.split_at(*count);
            rest = after;
            (name.as_str(), of_file)
        })
    }

    /// Which file holds which tensor.
    fn index(&self) -> Value {
        let placed = self.by_file().flat_map(|(file, tensors)| tensors.iter().map(move |t| (t.tensor.name.clone(), file.into())));
        json!({ "metadata": { "total_size": self.bytes() }, "weight_map": placed.collect::<Map<String, Value>>() })
    }
}

/// Refuses what the classes of transformers do not have.
fn check_nodes(graph: &Graph) -> Result<()> {
    for node in graph.nodes() {
        let name = &graph.get(node.outputs[0]).name;
        let found = match node.op {
            Op::Quantize { .. } => "rounding to integers",
            Op::Fused(_) => "several nodes in one",
            _ => "",
        };
        if !found.is_empty() {
            return Err(Error::Node {
                node: name.clone(),
                op: node.op.def().name,
                found: found.into(),
                target: TARGET.name,
                wanted: "ops in floating point, one by one",
            });
        }
        for input in &node.inputs {
            if let Encoding::Quantized(scheme) = graph.fact(*input).encoding {
                return Err(Error::Weight {
                    node: name.clone(),
                    tensor: graph.get(*input).name.clone(),
                    found: scheme.to_string(),
                    layout: TARGET.name.into(),
                    wanted: "floating-point numbers",
                    hint: "use `target = \"checkpoint\"`, which holds codes, or leave out the step that quantizes",
                });
            }
        }
    }
    Ok(())
}

/// Files that hold the tensors in their order, each of at most `most` bytes or one tensor.
fn shards(tensors: &[Stored], most: u64) -> Vec<(String, usize)> {
    let mut counts = vec![0];
    let mut filled = 0;
    for stored in tensors {
        if filled > 0 && filled + stored.bytes() > most {
            counts.push(0);
            filled = 0;
        }
        filled += stored.bytes();
        counts.last_mut().into_iter().for_each(|count| *count += 1);
    }
    let all = counts.len();
    let name = |at: usize| match all {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{all:05}.safetensors", at + 1),
    };
    counts.into_iter().enumerate().map(|(at, count)| (name(at), count)).collect()
}

/// The weights of a tensor.
fn written(stored: &Stored, graph: &Graph) -> Vec<Written> {
    let (mut row, mut all) = (0, Vec::new());
    for part in &stored.tensor.parts {
        let value = graph.get(part.weight);
        let dims = value.fact.constant_dims().unwrap_or_default();
        let encoding = Encoding::Plain(stored.dtype);
        let info = TensorInfo { dims, encoding };
        let below = stored.tensor.parts.len() > 1 && !stored.tensor.across;
        let entry = TensorEntry {
            name: value.name.clone(),
            also: tied(graph, &value.name),
            packed: below.then(|| Packed { tensor: stored.tensor.name.clone(), row }),
            encoding: value.fact.encoding.to_string(),
            storage: encoding.to_string(),
            true_bits: info.true_bits(),
            stored_bytes: (info.elements() * stored.dtype.bytes()) as u64,
            snr_db: None,
            dims: info.dims,
        };
        row += entry.dims[0];
        all.push(Written { entry, encoding, dtype: stored.dtype.to_string() });
    }
    all
}

/// The head, where it is the table of that name.
fn tied(graph: &Graph, name: &str) -> Vec<String> {
    let expr = |name: &str| graph.weights().find(|(_, value, _)| value.name == name).map(|(.., expr)| expr);
    let head = (name == "embedding" && expr("lm_head") == expr(name)).then(|| "lm_head".to_owned());
    head.into_iter().collect()
}

impl Format for Safetensors {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        let layout = Layout::of(graph, self, None)?;
        let tensors = layout.written(graph).into_iter().map(|written| written.entry).collect();
        Ok(Plan { tensors, bytes: layout.bytes(), notes: Vec::new() })
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let layout = Layout::of(model.graph, self, Some(model.source))?;
        let config = layout.config(&model.side.config, model.graph)?;
        model.graph.verify_weights(model.source)?;
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        kit::remove(&folder.join(INDEX))?;
        let (mut done, total) = (0, layout.bytes());
        let mut names: Vec<&str> = Vec::new();
        for (name, tensors) in layout.by_file() {
            write_atomically(&folder.join(name), |to| {
                stored::write(to, tensors, model.source, &mut |bytes| {
                    done += bytes;
                    progress(done, total);
                })
            })?;
            names.push(name);
        }
        let index = (layout.files.len() > 1).then(|| (INDEX, layout.index()));
        for (name, value) in index.into_iter().chain(layout.folder.beside(model.graph)) {
            let path = folder.join(name);
            path.parent().map_or(Ok(()), fs::create_dir_all).map_err(Error::io("create", &path))?;
            let text = serde_json::to_string_pretty(&value).expect("it is JSON") + "\n";
            write_atomically(&path, |to| to.write_all(text.as_bytes()).map_err(Error::io("write", &path)))?;
            names.push(name);
        }
        let written = layout.written(model.graph);
        Ok(Artifact {
            target: TARGET.name.into(),
            options: self.options(),
            files: kit::files(folder, &names, &Side { config, ..model.side.clone() })?,
            inputs: kit::ports(model.graph, model.graph.inputs()),
            outputs: kit::ports(model.graph, model.graph.outputs()),
            totals: kit::totals(&written),
            not_quantized: kit::not_quantized(&written),
            notes: notes(model.side),
            tensors: written.into_iter().map(|written| written.entry).collect(),
        })
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        // Keys that the model was opened without travel with it.
        let opened = Model::open_with(folder, &OpenOptions { ignore: vec![Pattern::new("config.**")] })?;
        same_structure(model.graph, &opened.graph)?;
        let mut verification = Verification { tensors: Vec::new(), weights: 0 };
        for stored in &Layout::of(model.graph, self, Some(model.source))?.tensors {
            for at in 0..stored.tensor.parts.len() {
                let name = &model.graph.get(stored.tensor.parts[at].weight).name;
                let (noise, weights) = compare(model, stored, at, &opened, original)?;
                verification.weights += weights;
                let snr_db = noise.judge(name, Encoding::Plain(stored.dtype))?;
                verification.tensors.push(VerifiedTensor { name: name.clone(), snr_db });
            }
        }
        for name in tied(model.graph, "embedding") {
            if weight(&opened.graph, &name) != weight(&opened.graph, "embedding") {
                return Err(Error::unexpected(folder, format!("`{name}`"), "a weight of its own", "the embedding"));
            }
        }
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

/// Compares a part of a tensor with the weight that the folder's own graph has there: the noise, and how many numbers.
fn compare(
    model: &Input<'_>,
    stored: &Stored,
    at: usize,
    opened: &Model,
    original: Option<Original<'_>>,
) -> Result<(Noise, u64)> {
    let part = &stored.tensor.parts[at];
    let value = model.graph.get(part.weight);
    let expr = weight(model.graph, &value.name).expect("parts are weights of the graph");
    let there = weight(&opened.graph, &value.name).expect("graphs of one structure have the same weights");
    let [rows, columns] =
        TensorInfo { dims: value.fact.constant_dims().unwrap_or_default(), encoding: value.fact.encoding }.matrix();
    let mut noise = Noise::default();
    for rows in stored::pieces(rows, columns) {
        let mut wanted = vec![0.0; rows.len() * columns];
        let mut found = wanted.clone();
        match part.gain {
            true => {
                part.read(model.source, rows.clone(), &mut wanted)?;
                wanted.iter_mut().for_each(|x| *x = stored.dtype.round(*x) + 1.0);
            }
            false => {
                expr.read(model.source, rows.clone(), &mut wanted)?;
                rounded(&value.name, stored.dtype, rows.start, columns, &mut wanted)?;
            }
        }
        there.read(&*opened.source, rows.clone(), &mut found)?;
        same(&value.name, rows.start, columns, &found, &wanted)?;
        if let Some(original) = original
            && original(&value.name, rows, &mut wanted)?
        {
            noise.add(&found, &wanted);
        }
    }
    Ok((noise, (rows * columns) as u64))
}

fn weight<'g>(graph: &'g Graph, name: &str) -> Option<&'g Expr> {
    graph.weights().find(|(_, value, _)| value.name == name).map(|(.., expr)| expr)
}

fn notes(side: &Side) -> Vec<String> {
    const TOKENIZERS: [&str; 4] = ["tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt"];
    let note = "the model has no tokenizer: the folder takes tokens, and no text";
    let has = TOKENIZERS.iter().any(|name| side.files.contains_key(name));
    (!has).then(|| note.to_owned()).into_iter().collect()
}
