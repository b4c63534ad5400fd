//! What every target needs: entries of files, sums over weights, runs of rows that fit in memory.

use std::{
    collections::{HashMap, HashSet},
    fs,
    ops::Range,
    path::Path,
};

use attar_graph::{Expr, Fact, Graph, Node, Origin, ValueId};
use attar_tensor::{Digest, Dtype, Encoding, Source, write_atomically};

use crate::{
    Artifact, Defect, Error, FileEntry, Input, Original, PlainEntry, Port, Result, Side, TensorEntry, Totals, Verification,
    VerifiedTensor,
    noise::{Noise, same},
    target::CONFIG,
};

/// The number format of a weight that is not quantized, where a target has that of its dtype. Blocks of a GGUF file are no form of any
/// target: their values are rounded to f16, half the size of f32, and [`notes_of_blocks`] says so.
pub(crate) fn plain_dtype(encoding: Encoding) -> Option<Dtype> {
    match encoding {
        Encoding::Quantized(_) => None,
        Encoding::Plain(dtype) => Some(dtype),
        Encoding::Blocks(_) => Some(Dtype::F16),
    }
}

/// Rounds `values` of a weight as they are stored, if they are not stored as they are.
pub(crate) fn as_stored(encoding: Encoding, values: &mut [f32]) {
    if let Encoding::Blocks(_) = encoding {
        values.iter_mut().for_each(|value| *value = Dtype::F16.round(*value));
    }
}

/// Gives zeros their usual sign. A negative one in a table makes Qualcomm's HTP (QNN 2.51) return numbers that have nothing to do with the row.
pub(crate) fn without_negative_zeros(values: &mut [f32]) {
    values.iter_mut().for_each(|value| *value += 0.0);
}

/// What to know of weights in blocks of a GGUF file.
pub(crate) fn notes_of_blocks<'e>(entries: impl Iterator<Item = (&'e str, Encoding)>) -> Vec<String> {
    let blocks: Vec<(&str, Encoding)> = entries.filter(|(_, encoding)| matches!(encoding, Encoding::Blocks(_))).collect();
    let Some((first, encoding)) = blocks.first() else { return Vec::new() };
    let more = if blocks.len() > 1 { format!(" and {} more", blocks.len() - 1) } else { String::new() };
    vec![format!("`{first}`{more} in {encoding} of a GGUF file would be stored as f16, rounded: quantize to choose another form")]
}

/// A written weight: its entry, and its encoding in the file.
pub(crate) struct Written {
    pub(crate) entry: TensorEntry,
    pub(crate) encoding: Encoding,
    /// Number format in the file, where it is not quantized.
    pub(crate) dtype: String,
}

impl Written {
    fn elements(&self) -> u64 {
        self.entry.dims.iter().product::<usize>() as u64
    }

    fn is_quantized(&self) -> bool {
        matches!(self.encoding, Encoding::Quantized(_))
    }
}

/// Sums over the weights of an artifact.
pub(crate) fn totals(written: &[Written]) -> Totals {
    let mut totals = Totals::default();
    let mut quantized_bits = 0;
    for weight in written {
        totals.weights += weight.elements();
        totals.true_bits += weight.entry.true_bits;
        totals.stored_bytes += weight.entry.stored_bytes;
        if weight.is_quantized() {
            totals.quantized_weights += weight.elements();
            quantized_bits += weight.entry.true_bits;
        }
    }
    totals.bits_per_weight = totals.true_bits as f64 / totals.weights.max(1) as f64;
    totals.quantized_bits_per_weight = quantized_bits as f64 / totals.quantized_weights.max(1) as f64;
    totals
}

/// The weights that kept a plain number format.
pub(crate) fn not_quantized(written: &[Written]) -> Vec<PlainEntry> {
    let all: u64 = written.iter().map(Written::elements).sum();
    let plain = written.iter().filter(|weight| !weight.is_quantized());
    plain
        .map(|weight| PlainEntry {
            name: weight.entry.name.clone(),
            dtype: weight.dtype.clone(),
            bytes: weight.entry.stored_bytes,
            share: weight.elements() as f64 / all.max(1) as f64,
        })
        .collect()
}

/// Inputs or outputs as the graph has them.
pub(crate) fn ports(graph: &Graph, ids: &[ValueId]) -> Vec<Port> {
    let port = |id: &ValueId| {
        let Fact { dims, encoding } = graph.fact(*id);
        Port {
            name: graph.get(*id).name.clone(),
            dims: dims.iter().map(ToString::to_string).collect(),
            dtype: encoding.to_string(),
        }
    };
    ids.iter().map(port).collect()
}

/// Writes the side files of a model; the entries of `written` and of these, in this order.
pub(crate) fn files(folder: &Path, written: &[&str], side: &Side) -> Result<Vec<FileEntry>> {
    let mut names = written.to_vec();
    let mut put = |name: &'static str, bytes: &[u8]| {
        let path = folder.join(name);
        names.push(name);
        write_atomically(&path, |to| to.write_all(bytes).map_err(Error::io("write", &path)))
    };
    if !side.config.is_null() {
        let text = serde_json::to_string_pretty(&side.config).expect("a configuration is JSON") + "\n";
        put(CONFIG, text.as_bytes())?;
    }
    side.files.iter().try_for_each(|(name, content)| put(name, &content.bytes()?))?;
    names.iter().map(|name| file_entry(folder, name)).collect()
}

/// A file of an artifact, as it is on the disk.
fn file_entry(folder: &Path, name: &str) -> Result<FileEntry> {
    let path = folder.join(name);
    let bytes = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
    Ok(FileEntry { name: name.into(), bytes, digest: Digest::of_file(&path)? })
}

/// A weight to compare with what an artifact holds.
pub(crate) struct Weight<'a> {
    pub(crate) source: &'a dyn Source,
    pub(crate) entry: &'a TensorEntry,
    pub(crate) expr: &'a Expr,
    pub(crate) encoding: Encoding,
}

/// Compares all weights that a node of the graph reads, tied ones once, each by `compare`: its noise, and how many numbers it has. Nodes whose weights
/// are no tensors of the artifact are left out.
pub(crate) fn compare_weights(
    model: &Input<'_>,
    artifact: &Artifact,
    folder: &Path,
    is_elsewhere: &dyn Fn(&Node) -> bool,
    compare: &dyn Fn(&Weight<'_>) -> Result<(VerifiedTensor, usize)>,
) -> Result<Verification> {
    let mut verification = Verification { tensors: Vec::new(), weights: 0 };
    let mut seen = HashSet::new();
    let nodes = model.graph.nodes().iter().filter(|node| !is_elsewhere(node));
    let read: HashSet<ValueId> = nodes.flat_map(|node| node.inputs.iter().copied()).collect();
    for (id, value, expr) in model.graph.weights().filter(|(id, ..)| read.contains(id)) {
        let entry = artifact.tensors.iter().find(|t| t.name == value.name || t.also.contains(&value.name));
        let missing = || Error::unexpected(folder, format!("`{}`", value.name), "missing", "a tensor of the manifest");
        let entry = entry.ok_or_else(missing)?;
        if !seen.insert((&entry.name, expr, value.fact.encoding.to_string())) {
            continue;
        }
        let encoding = model.graph.fact(id).encoding;
        let (tensor, count) = compare(&Weight { source: model.source, entry, expr, encoding })?;
        verification.tensors.push(tensor);
        verification.weights += count as u64;
    }
    Ok(verification)
}

/// Reads rows of a weight from an artifact: which, how many columns they have, and where they go.
pub(crate) type Decode<'d> = &'d mut dyn FnMut(Range<usize>, usize, &mut [f32]) -> Result<()>;

/// Compares the rows of a weight with what `decode` makes of the artifact's, a few at a time.
pub(crate) fn compare_rows(
    weight: &Weight<'_>,
    original: Option<Original<'_>>,
    decode: Decode<'_>,
) -> Result<(VerifiedTensor, usize)> {
    /// Bytes of f32 that are compared at a time.
    const CHUNK: usize = 4 << 20;
    let name = weight.entry.name.as_str();
    let [rows, columns] = weight.expr.info(weight.source)?.matrix();
    let mut noise = Noise::default();
    let [mut found, mut wanted, mut before] = [(); 3].map(|()| Vec::new());
    for chunk in chunks(rows, (CHUNK / (4 * columns).max(1)).clamp(1, 4096)) {
        let count = chunk.len() * columns;
        [&mut found, &mut wanted, &mut before].into_iter().for_each(|values| values.resize(count, 0.0));
        decode(chunk.clone(), columns, &mut found)?;
        weight.expr.read(weight.source, chunk.clone(), &mut wanted)?;
        as_stored(weight.encoding, &mut wanted);
        same(name, chunk.start, columns, &found, &wanted)?;
        if let Some(original) = original
            && original(name, chunk, &mut before)?
        {
            noise.add(&found, &before);
        }
    }
    Ok((VerifiedTensor { name: name.into(), snr_db: noise.judge(name, weight.encoding)? }, rows * columns))
}

/// Weights that nodes read, each once: its values, how it is made, all nodes that read it.
pub(crate) fn distinct(graph: &Graph) -> Vec<(Vec<ValueId>, &Expr, Vec<&Node>)> {
    let mut all: Vec<(Vec<ValueId>, &Expr, Vec<&Node>)> = Vec::new();
    let mut known: HashMap<(&Expr, String), usize> = HashMap::new();
    for node in graph.nodes() {
        for id in &node.inputs {
            let value = graph.get(*id);
            let Origin::Weight(expr) = &value.origin else { continue };
            let at = *known.entry((expr, value.fact.to_string())).or_insert(all.len());
            match all.get_mut(at) {
                None => all.push((vec![*id], expr, vec![node])),
                Some((values, _, readers)) => {
                    if !values.contains(id) {
                        values.push(*id);
                    }
                    readers.push(node);
                }
            }
        }
    }
    all
}

/// Every file is what it was when the artifact was written.
pub(crate) fn same_files(artifact: &Artifact, folder: &Path) -> Result<()> {
    for file in &artifact.files {
        let found = file_entry(folder, &file.name)?;
        if found != *file {
            let describe = |f: &FileEntry| format!("{} bytes with digest {}", f.bytes, f.digest.short());
            let (what, found, wanted) = ("its content".into(), describe(&found), describe(file));
            return Err(Error::Malformed { path: folder.join(&file.name), defect: Defect::Unexpected { what, found, wanted } });
        }
    }
    Ok(())
}

/// A model without its data must not be mistaken for a whole artifact.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("delete", path)(error)),
        _ => Ok(()),
    }
}

/// `0..count` in runs of `size`, at least 1.
pub(crate) fn chunks(count: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    let size = size.max(1);
    (0..count).step_by(size).map(move |start| start..(start + size).min(count))
}
