//! attar's own checkpoint folder: what every verb reads back.
//!
//! `attar.json` names the files and the quantized tensors with their schemes ([`attar_tensor::Manifest`]), `graph.ir`
//! is the graph in text form, `model.safetensors` holds every weight under its canonical name: plain ones in their own
//! number format (blocks of a GGUF file as f32, exactly), quantized ones as codes, scales and zeros
//! ([`attar_tensor::safetensors`] has the layout). Tied weights are written once.

use std::{collections::BTreeMap, fs, io::Write, ops::Range, path::Path};

use attar_graph::{Expr, Graph, ValueId};
use attar_tensor::{
    Checkpoint, Dtype, Encoding, MANIFEST, Manifest, QuantizedEntry, SharedParts, TensorInfo,
    safetensors::{Entry, PartLayout, Writer},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Artifact, Error, Format, Input, Original, Plan, Progress, Result, Target, TensorEntry, Verification, VerifiedTensor,
    kit::{self, Written, chunks},
    noise::{Noise, same},
    target,
};

pub(super) static TARGET: Target = Target {
    name: "checkpoint",
    about: "attar's own checkpoint folder, which every verb reads back",
    version: 1,
    schema: attar_settings::schema::<CheckpointFolder>,
    parse: target::parse::<CheckpointFolder>,
};

/// The target `checkpoint`, which has no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointFolder {}

const GRAPH: &str = "graph.ir";
const WEIGHTS: &str = "model.safetensors";

/// Bytes of f32 in memory at a time.
const PIECE: usize = 1 << 22;

/// A weight as it will be stored.
struct Item {
    name: String,
    also: Vec<String>,
    ids: Vec<ValueId>,
    dims: Vec<usize>,
    encoding: Encoding,
    expr: Expr,
}

impl Item {
    fn info(&self) -> TensorInfo {
        TensorInfo { dims: self.dims.clone(), encoding: self.encoding }
    }

    fn entries(&self) -> Vec<Entry> {
        match self.encoding {
            Encoding::Quantized(scheme) => PartLayout::new(&self.name, scheme, self.info().matrix()).entries().collect(),
            Encoding::Plain(dtype) => vec![Entry { name: self.name.clone(), dtype, dims: self.dims.clone() }],
            Encoding::Blocks(_) => unreachable!("`items` turns blocks into f32"),
        }
    }

    fn entry(&self) -> TensorEntry {
        let stored_bytes = self.entries().iter().map(|e| (e.dims.iter().product::<usize>() * e.dtype.bytes()) as u64).sum();
        TensorEntry {
            packed: None,
            name: self.name.clone(),
            also: self.also.clone(),
            dims: self.dims.clone(),
            encoding: self.encoding.to_string(),
            storage: match self.encoding {
                Encoding::Quantized(_) => "codes, scales and zeros in attar's packing".into(),
                other => other.to_string(),
            },
            true_bits: self.info().true_bits(),
            stored_bytes,
            snr_db: None,
        }
    }

    /// Runs of rows that fit in memory.
    fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let [rows, columns] = self.info().matrix();
        let step = (PIECE / 4 / columns.max(1)).max(1);
        chunks(rows, step)
    }
}

/// The weights in order of first use; those of one expression and encoding are one.
fn items(graph: &Graph) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    for (id, value, expr) in graph.weights() {
        let encoding = match value.fact.encoding {
            Encoding::Blocks(_) => Encoding::Plain(Dtype::F32),
            other => other,
        };
        if let Some(item) = items.iter_mut().find(|item| item.expr == *expr && item.encoding == encoding) {
            item.also.push(value.name.clone());
            item.ids.push(id);
            continue;
        }
        let dims = value.fact.constant_dims().unwrap_or_default();
        items.push(Item { name: value.name.clone(), also: Vec::new(), ids: vec![id], dims, encoding, expr: expr.clone() });
    }
    items
}

impl Format for CheckpointFolder {
    fn options(&self) -> Value {
        json!(self)
    }

    fn check(&self, graph: &Graph) -> Result<Plan> {
        let tensors: Vec<TensorEntry> = items(graph).iter().map(Item::entry).collect();
        let bytes = tensors.iter().map(|t| t.stored_bytes).sum();
        Ok(Plan { tensors, bytes, notes: Vec::new() })
    }

    fn write(&self, model: &Input<'_>, folder: &Path, progress: Progress<'_>) -> Result<Artifact> {
        let plan = self.check(model.graph)?;
        let items = items(model.graph);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        attar_tensor::write_atomically(&folder.join(WEIGHTS), |to| write_weights(to, model, &items, plan.bytes, progress))?;
        let text = stored_graph(model.graph, &items).to_string();
        attar_tensor::write_atomically(&folder.join(GRAPH), |to| {
            to.write_all(text.as_bytes()).map_err(Error::io("write", folder.join(GRAPH)))
        })?;
        let mut manifest = serde_json::to_string_pretty(&manifest(&items)).expect("a manifest is JSON");
        manifest.push('\n');
        attar_tensor::write_atomically(&folder.join(MANIFEST), |to| {
            to.write_all(manifest.as_bytes()).map_err(Error::io("write", folder.join(MANIFEST)))
        })?;
        let written = written(&items);
        Ok(Artifact {
            target: TARGET.name.into(),
            options: self.options(),
            files: kit::files(folder, &[WEIGHTS, GRAPH, MANIFEST], model.side)?,
            inputs: kit::ports(model.graph, model.graph.inputs()),
            outputs: kit::ports(model.graph, model.graph.outputs()),
            totals: kit::totals(&written),
            not_quantized: kit::not_quantized(&written),
            notes: Vec::new(),
            tensors: plan.tensors,
        })
    }

    fn verify(
        &self,
        model: &Input<'_>,
        artifact: &Artifact,
        folder: &Path,
        original: Option<Original<'_>>,
    ) -> Result<Verification> {
        let written = Checkpoint::open(folder)?;
        let text = fs::read_to_string(folder.join(GRAPH)).map_err(Error::io("read", folder.join(GRAPH)))?;
        let graph = Graph::parse(&text)?;
        graph.verify_weights(&*written.source)?;
        let mut verification = Verification { tensors: Vec::new(), weights: 0 };
        for item in items(model.graph) {
            let mut noise = Noise::default();
            for rows in item.pieces() {
                compare(model, &item, &*written.source, rows, original, &mut noise)?;
            }
            verification.weights += item.dims.iter().product::<usize>() as u64;
            let snr_db = noise.judge(&item.name, item.encoding)?;
            verification.tensors.push(VerifiedTensor { name: item.name, snr_db });
        }
        kit::same_files(artifact, folder)?;
        Ok(verification)
    }
}

fn compare(
    model: &Input<'_>,
    item: &Item,
    written: &dyn attar_tensor::Source,
    rows: Range<usize>,
    original: Option<Original<'_>>,
    noise: &mut Noise,
) -> Result<()> {
    let columns = item.info().matrix()[1];
    let mut wanted = vec![0.0; rows.len() * columns];
    let mut found = wanted.clone();
    item.expr.read(model.source, rows.clone(), &mut wanted)?;
    written.read(&item.name, rows.clone(), &mut found)?;
    same(&item.name, rows.start, columns, &found, &wanted)?;
    if let Some(original) = original
        && original(&item.name, rows, &mut wanted)?
    {
        noise.add(&found, &wanted);
    }
    Ok(())
}

fn write_weights(to: &mut dyn Write, model: &Input<'_>, items: &[Item], total: u64, progress: Progress<'_>) -> Result<()> {
    let failed = || Error::io("write", WEIGHTS);
    let entries: Vec<Entry> = items.iter().flat_map(Item::entries).collect();
    let mut writer = Writer::new(to, &entries, &BTreeMap::new()).map_err(failed())?;
    let mut done = 0;
    for item in items {
        match item.encoding {
            Encoding::Quantized(_) => {
                let mut shared = SharedParts::default();
                for rows in item.pieces() {
                    let part = item.expr.read_quantized(model.source, rows)?;
                    writer.append(&part.codes).map_err(failed())?;
                    shared.add(&part);
                }
                shared.bytes().try_for_each(|part| writer.append(part)).map_err(failed())?;
            }
            Encoding::Plain(dtype) => {
                let columns = item.info().matrix()[1];
                for rows in item.pieces() {
                    let mut values = vec![0.0; rows.len() * columns];
                    item.expr.read(model.source, rows, &mut values)?;
                    let mut bytes = Vec::new();
                    dtype.encode(&values, &mut bytes);
                    writer.append(&bytes).map_err(failed())?;
                }
            }
            Encoding::Blocks(_) => unreachable!("`items` turns blocks into f32"),
        }
        done += item.entry().stored_bytes;
        progress(done, total);
    }
    writer.finish();
    Ok(())
}

/// The graph over the names of the folder.
fn stored_graph(graph: &Graph, items: &[Item]) -> Graph {
    let mut graph = graph.clone();
    for item in items {
        for id in &item.ids {
            graph.replace_weight(*id, item.encoding, Expr::tensor(item.name.clone()));
        }
    }
    graph
}

fn manifest(items: &[Item]) -> Manifest {
    let quantized = items.iter().filter_map(|item| match item.encoding {
        Encoding::Quantized(scheme) => {
            Some((item.name.clone(), QuantizedEntry { scheme: scheme.to_string(), dims: item.info().matrix() }))
        }
        _ => None,
    });
    let tool = concat!("attar ", env!("CARGO_PKG_VERSION")).to_owned();
    Manifest { attar: 1, tool, shards: vec![WEIGHTS.into()], quantized: quantized.collect() }
}

fn written(items: &[Item]) -> Vec<Written> {
    items.iter().map(|item| Written { entry: item.entry(), encoding: item.encoding, dtype: item.encoding.to_string() }).collect()
}
