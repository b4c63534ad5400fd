//! Checkpoints that another tool quantized: weights are decoded to what that tool's library computes, or the checkpoint is
//! refused by name.
//!
//! `quantization_config` of `config.json` (`compression_config` of older files, `quantize_config.json` of AutoGPTQ,
//! `quant_config.json` of AutoAWQ) names a [`Method`]. It finds the layers that are stored quantized by the names of their
//! tensors. [`Decoded`] then presents `MODULE.weight` with the numbers that the codes stand for and hides the tensors that
//! it is made of. A decoded number has the format of its scale, as in the libraries: code less zero, times scale, rounded once.
//!
//! A file for each method holds its layout: [`gptq`], [`awq`], [`fp8`] (blocks, as DeepSeek writes them) and
//! [`compressed`] (compressed-tensors). To run in the method's own activations is left to others: here they are float.

mod awq;
mod compressed;
mod fp8;
mod gptq;
mod parts;
mod refused;
mod scaled;

use std::{collections::BTreeMap, fmt, ops::Range, path::Path, sync::Arc};

use attar_tensor::{Checkpoint, Digest, Dtype, Encoding, Format, QuantizedTensor, Source, StoredTensor, TensorInfo};
use serde_json::Value;

use crate::{
    Error, Result,
    settings::{Asked, Settings, short},
};
use parts::Part;

/// What a checkpoint says of the tool that quantized it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Already {
    /// `GPTQ`, `AWQ`, …
    pub method: &'static str,
    /// `int4 g128`, `fp8 128x128`, …
    pub format: String,
    /// Weights that are stored so.
    pub weights: usize,
    /// Whether activations are meant to be quantized as well, which they are not here.
    pub activations: bool,
}

impl fmt::Display for Already {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "already quantized: {} {}, {} weights", self.method, self.format, self.weights)?;
        if self.activations {
            f.write_str(" (its activations, too; here they stay float)")?;
        }
        Ok(())
    }
}

/// How a tool stores quantized weights.
struct Method {
    /// Its `quant_method`.
    names: &'static [&'static str],
    /// Its name for people.
    title: &'static str,
    /// Every key that its configuration may have. `*` at the end stands for anything.
    keys: &'static [&'static str],
    /// The layers, and the format as in [`Already`].
    find: fn(&Files<'_>, &Settings<'_>) -> Result<Found>,
}

/// The methods that are read, in the order of the documentation.
static METHODS: &[&Method] = &[&gptq::METHOD, &awq::METHOD, &fp8::METHOD, &compressed::METHOD];

/// What a method finds.
struct Found {
    format: String,
    activations: bool,
    layers: BTreeMap<String, Box<dyn Layer>>,
}

/// A weight that is stored quantized.
trait Layer: Send + Sync {
    /// Rows and columns.
    fn dims(&self) -> [usize; 2];

    /// The format of its decoded numbers.
    fn dtype(&self) -> Dtype;

    /// The tensors that it is made of.
    fn parts(&self) -> Vec<&Part>;

    /// `rows`, at most [`BLOCK`], decoded. `out` is `[rows, columns]`.
    fn read(&self, source: &dyn Source, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()>;
}

/// Rows that are decoded at a time: what a layer reads for them stands in memory besides.
const BLOCK: usize = 64;

/// The tensors of a checkpoint and who quantized them.
struct Files<'a> {
    source: &'a dyn Source,
    path: &'a Path,
    title: &'static str,
}

/// Opens what another tool quantized: the source of `checkpoint` then has decoded weights.
pub(crate) fn open(checkpoint: &mut Checkpoint) -> Result<Option<Already>> {
    if !matches!(checkpoint.format, Format::HuggingFace) {
        return Ok(None);
    }
    let Some((file, key, json)) = declared(checkpoint)? else { return Ok(None) };
    let (path, asked) = (checkpoint.path.join(file), Asked::default());
    let whole = Settings::new(&path, &json, &asked)?;
    let settings = match key {
        Some(key) => whole.need(key, whole.inner(key)?, "an object")?,
        None => whole,
    };
    let method = method(&settings, file, key)?;
    let source = checkpoint.source.clone();
    let files = Files { source: &*source, path: &checkpoint.path, title: method.title };
    let found = check_keys(&settings, method).and_then(|()| (method.find)(&files, &settings));
    let Found { format, activations, layers } =
        found.map_err(|source| Error::Undecodable { method: method.title, source: Box::new(source) })?;
    if layers.is_empty() {
        return Err(settings.wrong("quant_method", method.title, "no such setting: no stored tensor is quantized"));
    }
    let already = Already { method: method.title, format, weights: layers.len(), activations };
    checkpoint.source = Arc::new(Decoded::new(source, layers));
    if key.is_none() {
        checkpoint.files.push(path);
    }
    Ok(Some(already))
}

/// `config.json` as it would be without quantization: what is written from the model is not quantized that way.
pub(crate) fn without(json: &mut Value) {
    let map = json.as_object_mut();
    map.into_iter().for_each(|map| map.retain(|key, _| !KEYS.contains(&key.as_str())));
}

/// Keys of `config.json` that say how weights are quantized.
const KEYS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// Files of older tools that say so.
const SIDE_FILES: [&str; 2] = ["quantize_config.json", "quant_config.json"];

/// The file and the key that say how it is quantized, with the content of the file.
fn declared(checkpoint: &Checkpoint) -> Result<Option<(&'static str, Option<&'static str>, Value)>> {
    if let Some(json) = checkpoint.json("config.json")?
        && let Some(key) = KEYS.into_iter().find(|key| json.get(key).is_some_and(|value| !value.is_null()))
    {
        return Ok(Some(("config.json", Some(key), json)));
    }
    for file in SIDE_FILES {
        if let Some(json) = checkpoint.json(file)? {
            return Ok(Some((file, None, json)));
        }
    }
    Ok(None)
}

fn method(settings: &Settings<'_>, file: &str, key: Option<&str>) -> Result<&'static Method> {
    let name = match (settings.text("quant_method")?, file, key) {
        (Some(name), ..) => name,
        (None, "quantize_config.json", _) => "gptq",
        (None, "quant_config.json", _) => "awq",
        (None, _, Some("quantization")) => "mlx",
        (None, _, Some("compression_config")) => "compressed-tensors",
        _ if settings.get("load_in_4bit").or(settings.get("load_in_8bit")).is_some() => "bitsandbytes",
        _ => return Err(settings.wrong("quant_method", "missing", "the name of a method")),
    };
    let known = METHODS.iter().copied().find(|method| method.names.contains(&name));
    known.ok_or_else(|| refused::by_name(settings, name))
}

/// A key that is not known could change what the codes mean.
fn check_keys(settings: &Settings<'_>, method: &Method) -> Result<()> {
    let fits = |key: &str| method.keys.iter().any(|known| known.strip_suffix('*').map_or(*known == key, |k| key.starts_with(k)));
    let strange = settings.entries().find(|(key, value)| *key != "quant_method" && !value.is_null() && !fits(key));
    strange.map_or(Ok(()), |(key, value)| {
        Err(settings.wrong(key, short(value), format!("no such key: {} has {}", method.title, method.keys.join(", "))))
    })
}

/// A source in which quantized layers are their decoded weights.
struct Decoded {
    below: Arc<dyn Source>,
    layers: BTreeMap<String, Box<dyn Layer>>,
    tensors: BTreeMap<String, TensorInfo>,
    unreadable: Vec<String>,
}

impl Decoded {
    fn new(below: Arc<dyn Source>, layers: BTreeMap<String, Box<dyn Layer>>) -> Decoded {
        let hidden: std::collections::BTreeSet<String> =
            layers.values().flat_map(|layer| layer.parts()).map(|part| part.name.clone()).collect();
        let mut tensors = below.tensors().clone();
        tensors.retain(|name, _| !hidden.contains(name));
        for (name, layer) in &layers {
            let info = TensorInfo { dims: layer.dims().to_vec(), encoding: Encoding::Plain(layer.dtype()) };
            tensors.insert(name.clone(), info);
        }
        let unreadable = below.unreadable().into_iter().filter(|name| !hidden.contains(name)).collect();
        Decoded { below, layers, tensors, unreadable }
    }
}

impl Source for Decoded {
    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    fn unreadable(&self) -> Vec<String> {
        self.unreadable.clone()
    }

    fn stored(&self, name: &str) -> Option<StoredTensor> {
        if self.layers.contains_key(name) { None } else { self.below.stored(name) }
    }

    fn read_stored(&self, name: &str, start: u64, out: &mut [u8]) -> attar_tensor::Result<()> {
        self.below.read_stored(name, start, out)
    }

    fn info(&self, name: &str) -> attar_tensor::Result<&TensorInfo> {
        match self.tensors.get(name) {
            Some(info) => Ok(info),
            None if self.unreadable.iter().any(|tensor| tensor == name) => self.below.info(name),
            None => Err(self.unknown(name)),
        }
    }

    fn read(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> attar_tensor::Result<()> {
        let [_, columns] = self.check(name, &rows)?.matrix();
        let Some(layer) = self.layers.get(name) else { return self.below.read(name, rows, out) };
        for (i, out) in out.chunks_mut((BLOCK * columns).max(1)).enumerate() {
            let start = rows.start + i * BLOCK;
            layer.read(&*self.below, start..(start + BLOCK).min(rows.end), out)?;
        }
        Ok(())
    }

    fn read_quantized(&self, name: &str, rows: Range<usize>) -> attar_tensor::Result<QuantizedTensor> {
        match self.layers.get(name) {
            Some(layer) => Err(attar_tensor::Error::WrongEncoding {
                name: name.into(),
                encoding: layer.dtype().to_string(),
                wanted: "a quantized tensor of attar",
            }),
            None => self.below.read_quantized(name, rows),
        }
    }

    /// Of the decoded numbers, so that two ways to store the same weight agree.
    fn digest(&self, name: &str) -> attar_tensor::Result<Digest> {
        let Some(layer) = self.layers.get(name) else { return self.below.digest(name) };
        let [rows, columns] = layer.dims();
        let mut digests = vec![Digest::of(format!("{} {:?}\n", layer.dtype(), layer.dims()).as_bytes())];
        let mut block = vec![0.0; BLOCK.min(rows) * columns];
        for start in (0..rows).step_by(BLOCK) {
            let end = (start + BLOCK).min(rows);
            let (values, mut bytes) = (&mut block[..(end - start) * columns], Vec::new());
            layer.read(&*self.below, start..end, values)?;
            layer.dtype().encode(values, &mut bytes);
            digests.push(Digest::of(&bytes));
        }
        Ok(Digest::of_parts(digests.iter().map(|digest| &digest.as_bytes()[..])))
    }
}
