//! Adapters as an artifact of their own: the folder that PEFT (<https://github.com/huggingface/peft>) loads on top of a
//! Hugging Face model.
//!
//! `adapter_model.safetensors` has the factors of every adapted module, `base_model.model.MODULE.lora_A.weight` `[rank, in]`
//! and `lora_B.weight` `[out, rank]`, in f32; `adapter_config.json` says that `B A` is added as it is (`lora_alpha` is the
//! rank). What was written is read back and compared.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

use attar_compress::learn::adapter_names;
use attar_export::{Artifact, FileEntry, PlainEntry, TensorEntry, Totals};
use attar_graph::{Expr, Graph, Origin};
use attar_model::{Model, Naming, module};
use attar_tensor::{
    Digest, Dtype, Source,
    safetensors::{Entry, Shards, Writer},
};
use serde_json::json;

use crate::{
    Error, Result,
    json::json as pretty,
    model::{Adapters, Working},
    output::Output,
    session::Session,
};

/// The folder's name.
pub(crate) const FOLDER: &str = "adapters";

/// What wrote it, among targets.
pub(crate) const TARGET: &str = "peft";

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

/// A factor of an adapter.
struct Factor<'a> {
    /// As PEFT calls it.
    name: String,
    /// As the graph does.
    canonical: String,
    dims: [usize; 2],
    expr: &'a Expr,
}

/// All factors, module by module.
fn factors<'a>(adapters: &Adapters, graph: &'a Graph) -> Vec<Factor<'a>> {
    let factor = |weight: &str, canonical: String, part: &str| {
        let value = graph.get(graph.find(&canonical)?);
        let Origin::Weight(expr) = &value.origin else { return None };
        let dims = value.fact.constant_dims()?.try_into().ok()?;
        let name = format!("base_model.model.{}.{part}.weight", module(graph, Naming::HuggingFace, weight)?);
        Some(Factor { name, canonical, dims, expr })
    };
    let of = |weight: &String| {
        let [a, b] = adapter_names(weight);
        [factor(weight, a, "lora_A"), factor(weight, b, "lora_B")]
    };
    adapters.weights.iter().flat_map(of).flatten().collect()
}

/// Bytes of all factors.
pub(crate) fn bytes(adapters: &Adapters, graph: &Graph) -> u64 {
    factors(adapters, graph).iter().map(Factor::bytes).sum()
}

impl Factor<'_> {
    fn bytes(&self) -> u64 {
        4 * self.dims.iter().product::<usize>() as u64
    }

    fn read(&self, source: &dyn Source) -> Result<Vec<f32>> {
        let mut values = vec![0.0; self.dims[0] * self.dims[1]];
        self.expr.read(source, 0..self.dims[0], &mut values)?;
        Ok(values)
    }

    fn entry(&self) -> TensorEntry {
        TensorEntry {
            packed: None,
            name: self.canonical.clone(),
            also: Vec::new(),
            dims: self.dims.to_vec(),
            encoding: Dtype::F32.name().into(),
            storage: format!("f32, as `{}`", self.name),
            true_bits: 8 * self.bytes(),
            stored_bytes: self.bytes(),
            snr_db: None,
        }
    }
}

/// Writes the folder and reads it back. Returns how many numbers were compared, too.
pub(crate) fn write(
    adapters: &Adapters,
    folder: &str,
    base: &Model,
    working: &Working,
    output: &Output,
    session: &Session<'_>,
) -> Result<(Artifact, u64)> {
    let factors = factors(adapters, &working.graph);
    let partial = output.unfinished()?;
    let weights = partial.join(WEIGHTS);
    attar_tensor::write_atomically(&weights, |to| write_weights(&factors, &*working.source, to, &weights))?;
    let config = partial.join(CONFIG);
    attar_tensor::write_atomically(&config, |to| {
        to.write_all(&pretty(&configuration(adapters, base))).map_err(|source| failed("write", &config, source))
    })?;
    let verified = verify(&factors, &*working.source, &weights)?;
    let artifact = describe(&factors, &partial)?;
    session.check_inputs()?;
    output.publish(folder)?;
    Ok((artifact, verified))
}

fn failed(action: &'static str, path: &Path, source: std::io::Error) -> Error {
    attar_tensor::Error::Io { action, path: path.into(), source }.into()
}

fn write_weights(factors: &[Factor<'_>], source: &dyn Source, to: &mut dyn Write, path: &Path) -> Result<()> {
    let entry = |factor: &Factor<'_>| Entry { name: factor.name.clone(), dtype: Dtype::F32, dims: factor.dims.to_vec() };
    let entries: Vec<Entry> = factors.iter().map(entry).collect();
    let made_for = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = Writer::new(to, &entries, &made_for).map_err(|e| failed("write", path, e))?;
    for factor in factors {
        let mut bytes = Vec::new();
        Dtype::F32.encode(&factor.read(source)?, &mut bytes);
        writer.append(&bytes).map_err(|e| failed("write", path, e))?;
    }
    writer.finish();
    Ok(())
}

/// PEFT's `LoraConfig`.
fn configuration(adapters: &Adapters, base: &Model) -> serde_json::Value {
    let module = |weight: &String| module(&base.graph, Naming::HuggingFace, weight);
    let modules: Vec<String> = adapters.weights.iter().filter_map(module).collect();
    json!({
        "base_model_name_or_path": base.path.display().to_string(),
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": adapters.rank,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": adapters.rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
    })
}

/// What was written is what the model has, to the bit. Returns how many numbers were compared.
fn verify(factors: &[Factor<'_>], source: &dyn Source, path: &PathBuf) -> Result<u64> {
    let written = Shards::open(std::slice::from_ref(path), &BTreeMap::new())?;
    let mut compared = 0;
    for factor in factors {
        let (wanted, mut found) = (factor.read(source)?, vec![0.0; factor.dims[0] * factor.dims[1]]);
        written.read(&factor.name, 0..factor.dims[0], &mut found)?;
        if let Some(at) = found.iter().zip(&wanted).position(|(f, w)| f.to_bits() != w.to_bits() || !f.is_finite()) {
            let (row, column) = (at / factor.dims[1], at % factor.dims[1]);
            let tensor = factor.canonical.clone();
            return Err(attar_export::Error::Differs { tensor, row, column, found: found[at], wanted: wanted[at] }.into());
        }
        compared += found.len() as u64;
    }
    Ok(compared)
}

fn describe(factors: &[Factor<'_>], folder: &Path) -> Result<Artifact> {
    let file = |name: &str| {
        let path = folder.join(name);
        let bytes = std::fs::metadata(&path).map_err(|e| failed("read", &path, e))?.len();
        Ok(FileEntry { name: name.into(), bytes, digest: Digest::of_file(&path)? })
    };
    let bytes: u64 = factors.iter().map(Factor::bytes).sum();
    let plain = |factor: &Factor<'_>| PlainEntry {
        name: factor.canonical.clone(),
        dtype: Dtype::F32.name().into(),
        bytes: factor.bytes(),
        share: factor.bytes() as f64 / bytes.max(1) as f64,
    };
    let totals =
        Totals { weights: bytes / 4, true_bits: 8 * bytes, stored_bytes: bytes, bits_per_weight: 32.0, ..Totals::default() };
    Ok(Artifact {
        target: TARGET.into(),
        options: serde_json::json!({}),
        files: [WEIGHTS, CONFIG].into_iter().map(file).collect::<Result<_>>()?,
        inputs: Vec::new(),
        outputs: Vec::new(),
        tensors: factors.iter().map(Factor::entry).collect(),
        totals,
        not_quantized: factors.iter().map(plain).collect(),
        notes: Vec::new(),
    })
}
