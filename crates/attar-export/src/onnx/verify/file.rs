//! An artifact as it is on the disk: tensors and who reads them.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use onnx_protobuf::{GraphProto, Message, ModelProto, NodeProto, TensorProto, tensor_proto::DataLocation};
use protobuf::Enum;

use super::guard;
use crate::{Defect, Error, Result, onnx};

/// Longest model we parse: weights are elsewhere, so an honest one is far below.
const LIMIT: u64 = 256 << 20;

/// A model and its open data file.
pub(super) struct Opened {
    pub(super) path: PathBuf,
    data: fs::File,
    data_path: PathBuf,
    nodes: Vec<NodeProto>,
    tensors: HashMap<String, TensorProto>,
    /// The node that makes a value.
    makers: HashMap<String, usize>,
    /// The nodes that read a value.
    readers: HashMap<String, Vec<usize>>,
    places: HashMap<String, Place>,
}

/// An initializer of the data file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Place {
    pub(super) code: i32,
    pub(super) dims: Vec<usize>,
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Opened {
    pub(super) fn open(folder: &Path, file: &str) -> Result<Opened> {
        let (path, data_path) = (folder.join(file), folder.join(onnx::DATA));
        let graph = parse(&path, &read_bounded(&path)?)?;
        let data = fs::File::open(&data_path).map_err(Error::io("read", &data_path))?;
        let (mut makers, mut readers) = (HashMap::new(), HashMap::<String, Vec<usize>>::new());
        for (at, node) in graph.node.iter().enumerate() {
            makers.extend(node.output.iter().map(|name| (name.clone(), at)));
            node.input.iter().for_each(|name| readers.entry(name.clone()).or_default().push(at));
        }
        let tensors = graph.initializer.into_iter().map(|t| (t.name.clone(), t)).collect();
        let mut opened = Opened { path, data, data_path, nodes: graph.node, tensors, makers, readers, places: HashMap::new() };
        opened.find_places()?;
        Ok(opened)
    }

    /// Every external tensor is inside the data file and as long as its shape says.
    fn find_places(&mut self) -> Result<()> {
        let length = self.data.metadata().map_err(Error::io("read", &self.data_path))?.len();
        for (name, tensor) in &self.tensors {
            if tensor.data_location.value() != DataLocation::EXTERNAL.value() {
                continue;
            }
            let place = self.place_of(name, tensor)?;
            let end = place.offset.checked_add(place.bytes);
            if end.is_none_or(|end| end > length) {
                let (start, end) = (place.offset, place.offset.saturating_add(place.bytes));
                let defect = Defect::Extent { tensor: name.clone(), start, end, length };
                return Err(Error::Malformed { path: self.path.clone(), defect });
            }
            self.places.insert(name.clone(), place);
        }
        Ok(())
    }

    fn place_of(&self, name: &str, tensor: &TensorProto) -> Result<Place> {
        let text = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map_or("missing", |e| e.value.as_str());
        if text("location") != onnx::DATA {
            return Err(Error::unexpected(&self.path, format!("the location of `{name}`"), text("location"), onnx::DATA));
        }
        let number = |key: &str| {
            let wanted = "a whole number";
            text(key)
                .parse::<u64>()
                .map_err(|_| Error::unexpected(&self.path, format!("the {key} of `{name}`"), text(key), wanted))
        };
        let dims: Option<Vec<usize>> = tensor.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let elements = dims.as_ref().and_then(|dims| dims.iter().try_fold(1u64, |n, d| n.checked_mul(*d as u64)));
        let wanted = elements.and_then(|n| Some(n.checked_mul(bits(tensor.data_type)?)?.div_ceil(8)));
        let (offset, bytes) = (number("offset")?, number("length")?);
        match (dims, wanted) {
            (Some(dims), Some(wanted)) if wanted == bytes => Ok(Place { code: tensor.data_type, dims, offset, bytes }),
            _ => {
                let shape = format!("that of {:?} of type {}", tensor.dims, tensor.data_type);
                Err(Error::unexpected(&self.path, format!("the length of `{name}`"), bytes, shape))
            }
        }
    }

    pub(super) fn place(&self, name: &str) -> Result<&Place> {
        self.places
            .get(name)
            .ok_or_else(|| Error::unexpected(&self.path, format!("`{name}`"), "missing", "a tensor of the data file"))
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&TensorProto> {
        self.tensors.get(name)
    }

    pub(super) fn maker(&self, name: &str) -> Option<&NodeProto> {
        self.makers.get(name).map(|at| &self.nodes[*at])
    }

    pub(super) fn readers(&self, name: &str) -> impl Iterator<Item = &NodeProto> {
        self.readers.get(name).into_iter().flatten().map(|at| &self.nodes[*at])
    }

    /// Bytes `range` of a tensor.
    pub(super) fn read(&self, place: &Place, range: std::ops::Range<u64>, out: &mut Vec<u8>) -> Result<()> {
        debug_assert!(range.end <= place.bytes);
        out.resize((range.end - range.start) as usize, 0);
        self.data.read_exact_at(out, place.offset + range.start).map_err(Error::io("read", &self.data_path))
    }
}

/// The graph in the bytes of a model.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<GraphProto> {
    let malformed = |reason| Error::Malformed { path: path.into(), defect: Defect::Parse(reason) };
    if let Some(reason) = guard::defect(bytes) {
        return Err(malformed(reason));
    }
    let model = ModelProto::parse_from_bytes(bytes).map_err(|e| malformed(e.to_string()))?;
    model.graph.into_option().ok_or_else(|| malformed("it has no graph".into()))
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let length = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if length > LIMIT {
        return Err(Error::Malformed { path: path.into(), defect: Defect::TooLong { length, limit: LIMIT } });
    }
    fs::read(path).map_err(Error::io("read", path))
}

/// Bits an element, by the codes of `TensorProto.DataType`.
fn bits(code: i32) -> Option<u64> {
    Some(match code {
        21 | 22 => 4,
        2 | 3 | 17 | 19 => 8,
        5 | 10 | 16 => 16,
        1 => 32,
        _ => return None,
    })
}

/// An integer attribute.
pub(super) fn int(node: &NodeProto, name: &str) -> Option<i64> {
    node.attribute.iter().find(|a| a.name == name).map(|a| a.i)
}
