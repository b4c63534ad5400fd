//! Reads an artifact back and compares every weight with the model's.
//!
//! What codes mean is taken from the layers that read them, by OpenVINO's definitions of its operators and element types. Nothing here is
//! shared with the writer.

use std::{
    collections::HashMap,
    fs,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use attar_tensor::Dtype;
use roxmltree::{Document, ParsingOptions};

use crate::{
    Artifact, Defect, Error, Input, Original, Result, Verification, VerifiedTensor,
    kit::{self, Weight},
    onnx::verify::grid::float,
};

/// Longest XML that is parsed, and how many parts it may have: honest ones of the largest models are far below.
const LIMIT: u64 = 64 << 20;
const PARTS: u32 = 4 << 20;

/// NormalFloat of 4 bits (Dettmers et al. 2023), as OpenVINO has it.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Whether `text` is a model that [`Format::verify`](crate::Format::verify) could read. `path` is for the message.
pub fn check(path: &Path, text: &str) -> Result<()> {
    Network::parse(path, text).map(drop)
}

/// Compares all weights that a node of the graph reads, tied ones once.
pub(super) fn verify(
    model: &Input<'_>,
    artifact: &Artifact,
    folder: &Path,
    original: Option<Original<'_>>,
) -> Result<Verification> {
    let opened = Opened::open(folder)?;
    kit::compare_weights(model, artifact, folder, &|_| false, &|weight| compare(&opened, weight, original))
}

fn compare(opened: &Opened, weight: &Weight<'_>, original: Option<Original<'_>>) -> Result<(VerifiedTensor, usize)> {
    let name = weight.entry.name.as_str();
    let [rows, columns] = weight.expr.info(weight.source)?.matrix();
    let packed = weight.entry.packed.as_ref();
    let (tensor, first) = packed.map_or((name, 0), |packed| (packed.tensor.as_str(), packed.row));
    let meaning = opened.meaning(tensor, [first, rows, columns], packed.is_some())?;
    kit::compare_rows(weight, original, &mut |rows, columns, out| {
        opened.decode(&meaning, first + rows.start..first + rows.end, columns, out)
    })
}

/// A constant of the file of numbers.
#[derive(Clone, Debug)]
struct Place {
    element: String,
    dims: Vec<usize>,
    offset: u64,
    bytes: u64,
}

/// A layer: its type, and where its inputs come from.
#[derive(Debug, Default)]
struct Layer {
    kind: String,
    inputs: HashMap<usize, usize>,
    readers: Vec<(usize, usize)>,
    place: Option<Place>,
}

/// Layers by their numbers, and constants by their names.
struct Network {
    layers: HashMap<usize, Layer>,
    names: HashMap<String, usize>,
}

/// What a weight is made of.
struct Meaning<'f> {
    codes: &'f Place,
    scale: Option<&'f Place>,
    zero: Option<&'f Place>,
}

struct Opened {
    path: PathBuf,
    network: Network,
    data: fs::File,
    data_path: PathBuf,
}

impl Network {
    fn parse(path: &Path, text: &str) -> Result<Network> {
        let malformed = |reason: String| Error::Malformed { path: path.into(), defect: Defect::Parse(reason) };
        let options = ParsingOptions { allow_dtd: false, nodes_limit: PARTS, ..ParsingOptions::default() };
        let document = Document::parse_with_options(text, options).map_err(|error| malformed(error.to_string()))?;
        let mut network = Network { layers: HashMap::new(), names: HashMap::new() };
        let number = |node: roxmltree::Node<'_, '_>, key: &str| {
            node.attribute(key)
                .and_then(|text| text.parse::<usize>().ok())
                .ok_or_else(|| malformed(format!("a {} has no number `{key}`", node.tag_name().name())))
        };
        for node in document.descendants().filter(|node| node.has_tag_name("layer")) {
            let id = number(node, "id")?;
            let kind = node.attribute("type").unwrap_or_default().to_owned();
            let place = match kind.as_str() {
                "Const" => Some(place(&node).ok_or_else(|| malformed(format!("the constant {id} has no place")))?),
                _ => None,
            };
            if place.is_some() {
                network.names.insert(node.attribute("name").unwrap_or_default().to_owned(), id);
            }
            network.layers.insert(id, Layer { kind, place, ..Layer::default() });
        }
        for node in document.descendants().filter(|node| node.has_tag_name("edge")) {
            let [from, to, port] = ["from-layer", "to-layer", "to-port"].map(|key| number(node, key));
            let (from, to, port) = (from?, to?, port?);
            let missing = || malformed(format!("an edge goes from layer {from} to {to}, of which one does not exist"));
            network.layers.get_mut(&to).ok_or_else(missing)?.inputs.insert(port, from);
            network.layers.get_mut(&from).ok_or_else(missing)?.readers.push((to, port));
        }
        Ok(network)
    }

    /// The layer of that type that reads `from` at `port`.
    fn reader(&self, from: usize, kind: &str, port: usize) -> Option<usize> {
        let readers = &self.layers.get(&from)?.readers;
        readers.iter().find(|(to, at)| *at == port && self.layers[to].kind == kind).map(|(to, _)| *to)
    }

    /// The constant that input `port` of a layer is, perhaps converted.
    fn constant(&self, layer: usize, port: usize) -> Option<&Place> {
        let from = self.layers.get(self.layers.get(&layer)?.inputs.get(&port)?)?;
        match from.kind.as_str() {
            "Convert" => self.layers.get(from.inputs.get(&0)?)?.place.as_ref(),
            _ => from.place.as_ref(),
        }
    }
}

fn place(node: &roxmltree::Node<'_, '_>) -> Option<Place> {
    let data = node.children().find(|child| child.has_tag_name("data"))?;
    let shape = data.attribute("shape")?;
    let dims =
        shape.split(',').map(str::trim).filter(|dim| !dim.is_empty()).map(|dim| dim.parse().ok()).collect::<Option<_>>()?;
    let number = |key: &str| data.attribute(key)?.parse().ok();
    Some(Place { element: data.attribute("element_type")?.into(), dims, offset: number("offset")?, bytes: number("size")? })
}

/// Bits of an element type.
fn bits(element: &str) -> Option<u64> {
    Some(match element {
        "i4" | "u4" | "nf4" => 4,
        "i8" | "u8" | "f8e4m3" | "f8e5m2" | "boolean" => 8,
        "f16" | "bf16" => 16,
        "f32" | "i32" => 32,
        "i64" => 64,
        _ => return None,
    })
}

impl Opened {
    fn open(folder: &Path) -> Result<Opened> {
        let (path, data_path) = (folder.join(super::MODEL), folder.join(super::DATA));
        let length = fs::metadata(&path).map_err(Error::io("read", &path))?.len();
        if length > LIMIT {
            return Err(Error::Malformed { path, defect: Defect::TooLong { length, limit: LIMIT } });
        }
        let text = fs::read_to_string(&path).map_err(Error::io("read", &path))?;
        let network = Network::parse(&path, &text)?;
        let data = fs::File::open(&data_path).map_err(Error::io("read", &data_path))?;
        let opened = Opened { path, network, data, data_path };
        opened.check_places()?;
        Ok(opened)
    }

    /// Every constant is inside the file of numbers, and as long as its shape says.
    fn check_places(&self) -> Result<()> {
        let length = self.data.metadata().map_err(Error::io("read", &self.data_path))?.len();
        for (name, id) in &self.network.names {
            let Some(place) = &self.network.layers[id].place else { continue };
            let elements = place.dims.iter().try_fold(1u64, |count, dim| count.checked_mul(*dim as u64));
            let wanted = elements.and_then(|count| Some(count.checked_mul(bits(&place.element)?)?.div_ceil(8)));
            if wanted != Some(place.bytes) {
                let shape = format!("that of {:?} of type {}", place.dims, place.element);
                return Err(Error::unexpected(&self.path, format!("the size of `{name}`"), place.bytes.to_string(), shape));
            }
            let end = place.offset.checked_add(place.bytes);
            if end.is_none_or(|end| end > length) {
                let (start, end) = (place.offset, place.offset.saturating_add(place.bytes));
                let defect = Defect::Extent { tensor: name.clone(), start, end, length };
                return Err(Error::Malformed { path: self.path.clone(), defect });
            }
        }
        Ok(())
    }

    /// What the layers that read the constant of that name make of it: of `rows` rows from the first one on, which are all unless others are
    /// packed with them.
    fn meaning(&self, name: &str, [first, rows, columns]: [usize; 3], packed: bool) -> Result<Meaning<'_>> {
        let missing = |what: &str| Error::unexpected(&self.path, format!("{what} of `{name}`"), "missing", "one");
        let id = *self.network.names.get(name).ok_or_else(|| missing("the constant"))?;
        let codes = self.network.layers[&id].place.as_ref().ok_or_else(|| missing("the place"))?;
        let held = codes.dims.iter().product::<usize>();
        let fits = |all: usize| if packed { all >= first + rows } else { all == rows };
        let has_rows = codes.dims.first().is_some_and(|all| fits(*all) && held == all * columns);
        if !(has_rows || (first, rows, held) == (0, 1, columns)) {
            let (found, wanted) = (format!("{:?}", codes.dims), format!("{} x {columns}", first + rows));
            return Err(Error::unexpected(&self.path, format!("the shape of `{name}`"), found, wanted));
        }
        if matches!(codes.element.as_str(), "f32" | "f16" | "bf16") {
            return Ok(Meaning { codes, scale: None, zero: None });
        }
        let number = self.network.reader(id, "Convert", 0).ok_or_else(|| missing("the conversion"))?;
        let distance = self.network.reader(number, "Subtract", 0);
        let product = self.network.reader(distance.unwrap_or(number), "Multiply", 0).ok_or_else(|| missing("the scale"))?;
        let scale = self.network.constant(product, 1).ok_or_else(|| missing("the scale"))?;
        let zero = match distance {
            Some(layer) => Some(self.network.constant(layer, 1).ok_or_else(|| missing("the zero"))?),
            None => None,
        };
        for (what, shared) in [("scale", Some(scale)), ("zero", zero)] {
            let Some(shared) = shared else { continue };
            let each = match codes.dims[..] {
                [rows, groups, _] => vec![rows, groups, 1],
                [rows, _] => vec![rows, 1],
                _ => Vec::new(),
            };
            if shared.dims != each && shared.dims.iter().any(|dim| *dim != 1) {
                let found = format!("{:?}", shared.dims);
                return Err(Error::unexpected(
                    &self.path,
                    format!("the shape of the {what} of `{name}`"),
                    found,
                    format!("{each:?}"),
                ));
            }
        }
        Ok(Meaning { codes, scale: Some(scale), zero })
    }

    /// Rows as f32.
    fn decode(&self, meaning: &Meaning<'_>, rows: Range<usize>, columns: usize, out: &mut [f32]) -> Result<()> {
        self.numbers(meaning.codes, rows.start * columns, out)?;
        let Some(scale) = meaning.scale else { return Ok(()) };
        let groups = if let [_, groups, _] = meaning.codes.dims[..] { groups } else { 1 };
        let scales = self.of_groups(scale, &rows, groups)?;
        let zeros = match meaning.zero {
            Some(zero) => self.of_groups(zero, &rows, groups)?,
            None => vec![0.0; scales.len()],
        };
        for ((values, scale), zero) in out.chunks_mut(columns / groups).zip(scales).zip(zeros) {
            values.iter_mut().for_each(|value| *value = (*value - zero) * scale);
        }
        Ok(())
    }

    /// What groups of rows share, one for each.
    fn of_groups(&self, shared: &Place, rows: &Range<usize>, groups: usize) -> Result<Vec<f32>> {
        let count = rows.len() * groups;
        let all = shared.dims.iter().product::<usize>();
        let mut values = vec![0.0; if all == 1 { 1 } else { count }];
        self.numbers(shared, if all == 1 { 0 } else { rows.start * groups }, &mut values)?;
        values.resize(count, values[0]);
        Ok(values)
    }

    /// Elements from `first` on as f32.
    fn numbers(&self, place: &Place, first: usize, out: &mut [f32]) -> Result<()> {
        let width = bits(&place.element).unwrap_or(8);
        let (start, end) = (first as u64 * width / 8, ((first + out.len()) as u64 * width).div_ceil(8));
        let mut bytes = vec![0; (end - start) as usize];
        self.data.read_exact_at(&mut bytes, place.offset + start).map_err(Error::io("read", &self.data_path))?;
        let skip = first - (start * 8 / width) as usize;
        let nibble = |i: usize| bytes[(i + skip) / 2] >> (4 * ((i + skip) % 2)) & 15;
        match place.element.as_str() {
            "f32" => Dtype::F32.decode(&bytes, out),
            "f16" => Dtype::F16.decode(&bytes, out),
            "bf16" => Dtype::BF16.decode(&bytes, out),
            "i4" => out.iter_mut().enumerate().for_each(|(i, out)| *out = f32::from((nibble(i) << 4) as i8 >> 4)),
            "u4" => out.iter_mut().enumerate().for_each(|(i, out)| *out = f32::from(nibble(i))),
            "nf4" => out.iter_mut().enumerate().for_each(|(i, out)| *out = NF4[usize::from(nibble(i))]),
            "i8" => out.iter_mut().zip(&bytes).for_each(|(out, byte)| *out = f32::from(*byte as i8)),
            "u8" => out.iter_mut().zip(&bytes).for_each(|(out, byte)| *out = f32::from(*byte)),
            "f8e4m3" => out.iter_mut().zip(&bytes).for_each(|(out, byte)| *out = float(*byte, 4, 3)),
            "f8e5m2" => out.iter_mut().zip(&bytes).for_each(|(out, byte)| *out = float(*byte, 5, 2)),
            other => return Err(Error::unexpected(&self.path, "the type of a weight".into(), other, "a type of weights")),
        }
        Ok(())
    }
}
