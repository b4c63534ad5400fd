//! Everything that knows protobuf: codes and versions of the format, and how its messages are built.
//!
//! Follows onnx.proto of ONNX 1.16, of which later versions changed nothing that is written here.

use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto::AttributeType, tensor_proto::DataLocation, tensor_shape_proto,
    type_proto,
};

use attar_tensor::Dtype;

use super::style::Versions;

/// Where ONNX Runtime's own operators live.
pub(super) const MICROSOFT: &str = "com.microsoft";

/// An element type, by its code in `TensorProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Element(pub(super) i32);

impl Element {
    pub(super) const F32: Element = Element(1);
    pub(super) const U8: Element = Element(2);
    pub(super) const I8: Element = Element(3);
    pub(super) const U16: Element = Element(4);
    pub(super) const I16: Element = Element(5);
    pub(super) const I64: Element = Element(7);
    pub(super) const BOOL: Element = Element(9);
    pub(super) const F16: Element = Element(10);
    pub(super) const BF16: Element = Element(16);
    pub(super) const F8_E4M3: Element = Element(17);
    pub(super) const F8_E5M2: Element = Element(19);
    pub(super) const I32: Element = Element(6);
    pub(super) const U4: Element = Element(21);
    pub(super) const I4: Element = Element(22);

    /// The element type of a number format, if the exporter writes it.
    pub(super) fn of(dtype: Dtype) -> Option<Element> {
        Some(match dtype {
            Dtype::F32 => Element::F32,
            Dtype::F16 => Element::F16,
            Dtype::BF16 => Element::BF16,
            Dtype::I64 => Element::I64,
            Dtype::I16 => Element::I16,
            Dtype::I8 => Element::I8,
            _ => return None,
        })
    }

    /// Bits per element.
    pub(super) fn bits(self) -> u64 {
        match self {
            Element::U4 | Element::I4 => 4,
            Element::F16 | Element::BF16 | Element::I16 | Element::U16 => 16,
            Element::F32 | Element::I32 => 32,
            Element::I64 => 64,
            _ => 8,
        }
    }

    /// Bytes of a tensor: elements are packed without gaps, the first in the lowest bits.
    pub(super) fn bytes(self, dims: &[usize]) -> u64 {
        (dims.iter().product::<usize>() as u64 * self.bits()).div_ceil(8)
    }
}

/// The value of an attribute.
pub(super) enum Value {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Text(&'static str),
}

/// Attributes of a node, in the order in which they are written.
pub(super) type Attributes = Vec<(&'static str, Value)>;

pub(super) fn node(domain: &str, op: &str, name: &str, inputs: &[&str], attributes: Attributes) -> NodeProto {
    NodeProto {
        domain: domain.into(),
        op_type: op.into(),
        name: name.into(),
        input: inputs.iter().map(|i| (*i).into()).collect(),
        output: vec![name.into()],
        attribute: attributes.into_iter().map(|(name, value)| attribute(name, value)).collect(),
        ..Default::default()
    }
}

fn attribute(name: &str, value: Value) -> AttributeProto {
    let mut proto = AttributeProto { name: name.into(), ..Default::default() };
    let kind = match value {
        Value::Int(i) => {
            proto.i = i;
            AttributeType::INT
        }
        Value::Ints(all) => {
            proto.ints = all;
            AttributeType::INTS
        }
        Value::Float(f) => {
            proto.f = f;
            AttributeType::FLOAT
        }
        Value::Text(text) => {
            proto.s = text.into();
            AttributeType::STRING
        }
    };
    proto.type_ = kind.into();
    proto
}

/// A constant whose bytes are in the model itself.
pub(super) fn inline(name: &str, element: Element, dims: &[usize], bytes: Vec<u8>) -> TensorProto {
    TensorProto { raw_data: bytes, ..tensor(name, element, dims) }
}

/// A constant whose bytes are in another file.
pub(super) fn external(name: &str, element: Element, dims: &[usize], file: &str, offset: u64, length: u64) -> TensorProto {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
    TensorProto {
        data_location: DataLocation::EXTERNAL.into(),
        external_data: vec![
            entry("location", file.into()),
            entry("offset", offset.to_string()),
            entry("length", length.to_string()),
        ],
        ..tensor(name, element, dims)
    }
}

fn tensor(name: &str, element: Element, dims: &[usize]) -> TensorProto {
    TensorProto { name: name.into(), dims: dims.iter().map(|d| *d as i64).collect(), data_type: element.0, ..Default::default() }
}

/// An input or output. A dimension that is no number is a name.
pub(super) fn port(name: &str, element: Element, dims: &[String]) -> ValueInfoProto {
    let dimension = |text: &String| {
        let mut dim = tensor_shape_proto::Dimension::default();
        match text.parse() {
            Ok(number) => dim.set_dim_value(number),
            Err(_) => dim.set_dim_param(text.clone()),
        }
        dim
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dimension).collect(), ..Default::default() };
    let mut type_ = TypeProto::default();
    type_.set_tensor_type(type_proto::Tensor { elem_type: element.0, shape: Some(shape).into(), ..Default::default() });
    ValueInfoProto { name: name.into(), type_: Some(type_).into(), ..Default::default() }
}

/// A whole model, as bytes. The domain [`MICROSOFT`] is imported if a node uses it.
///
/// The fields of every message are in the order of their numbers, as protobuf's own serializers write them: OpenVINO takes a file in another
/// order for another format. The library writes them in the order of their declaration, and unknown fields last. So what is declared early and
/// has the highest number is written as an unknown field.
pub(super) fn model(mut graph: GraphProto, versions: Versions) -> protobuf::Result<Vec<u8>> {
    let import = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version, ..Default::default() };
    let contributed = graph.node.iter().any(|n| n.domain == MICROSOFT);
    for node in &mut graph.node {
        for attribute in &mut node.attribute {
            let kind = std::mem::take(&mut attribute.type_).value();
            attribute.special_fields.mut_unknown_fields().add_varint(ATTRIBUTE_TYPE, kind as u64);
        }
        let domain = std::mem::take(&mut node.domain);
        if !domain.is_empty() {
            node.special_fields.mut_unknown_fields().add_length_delimited(NODE_DOMAIN, domain.into_bytes());
        }
    }
    let mut model = ModelProto {
        ir_version: versions.ir,
        producer_name: "attar".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        graph: Some(graph).into(),
        ..Default::default()
    };
    let imports = std::iter::once(import("", versions.opset)).chain(contributed.then(|| import(MICROSOFT, 1)));
    for import in imports {
        model.special_fields.mut_unknown_fields().add_length_delimited(OPSET_IMPORT, import.write_to_bytes()?);
    }
    model.write_to_bytes()
}

/// Numbers of fields in onnx.proto.
const ATTRIBUTE_TYPE: u32 = 20;
const NODE_DOMAIN: u32 = 7;
const OPSET_IMPORT: u32 = 8;

#[cfg(test)]
mod tests {
    use onnx_protobuf::GraphProto;
    use protobuf::CodedInputStream;

    use super::*;

    /// Messages by the names of their types, and which of their fields are messages of ours.
    const INSIDE: &[(&str, u32, &str)] = &[
        ("model", 7, "graph"),
        ("model", 8, "import"),
        ("graph", 1, "node"),
        ("graph", 5, "tensor"),
        ("graph", 11, "port"),
        ("graph", 12, "port"),
        ("node", 5, "attribute"),
        ("tensor", 13, "entry"),
        ("port", 2, "type"),
    ];

    /// Counts messages, and fails where a field has a lower number than the one before.
    fn check(kind: &str, bytes: &[u8]) -> usize {
        let mut stream = CodedInputStream::from_bytes(bytes);
        let (mut last, mut messages) = (0, 1);
        while let Some(tag) = stream.read_raw_tag_or_eof().unwrap() {
            let (number, wire) = (tag >> 3, tag & 7);
            assert!(number >= last, "{kind}: field {number} behind {last}");
            last = number;
            match wire {
                0 => drop(stream.read_raw_varint64().unwrap()),
                5 => drop(stream.read_fixed32().unwrap()),
                2 => {
                    let content = stream.read_bytes().unwrap();
                    let inside = INSIDE.iter().find(|(outer, field, _)| (*outer, *field) == (kind, number));
                    messages += inside.map_or(0, |(_, _, inner)| check(inner, &content));
                }
                other => panic!("{kind}: wire type {other}"),
            }
        }
        messages
    }

    #[test]
    fn fields_are_in_the_order_of_their_numbers_and_mean_what_they_did() {
        let attributes = || vec![("axis", Value::Int(-1)), ("scale", Value::Float(0.5)), ("mode", Value::Text("x"))];
        let dims = ["batch".to_owned(), "3".to_owned()];
        let graph = GraphProto {
            name: "g".into(),
            node: vec![node(MICROSOFT, "Op", "a", &["x", "w"], attributes()), node("", "Op", "b", &["a"], attributes())],
            initializer: vec![inline("i", Element::F32, &[1], vec![0; 4]), external("w", Element::I4, &[2], "data", 64, 1)],
            input: vec![port("x", Element::F32, &dims)],
            output: vec![port("b", Element::F32, &dims)],
            ..Default::default()
        };
        let bytes = model(graph.clone(), Versions { ir: 10, opset: 21 }).unwrap();
        assert_eq!(check("model", &bytes), 1 + 1 + 2 + 2 + 6 + 2 + 3 + 2 * 2);
        let read = ModelProto::parse_from_bytes(&bytes).unwrap();
        assert_eq!(read.graph.0.as_deref(), Some(&graph));
        assert_eq!(read.opset_import.iter().map(|import| import.version).collect::<Vec<_>>(), [21, 1]);
    }
}
