//! Whether bytes are safe to parse: only the messages and fields that attar writes, so nothing nests.
//!
//! The parser's release recurses without bound into groups and unknown fields of hostile files (RUSTSEC-2024-0437).
//! ONNX has no groups, and what nests in it (attributes that are graphs, functions) attar never writes.

/// A kind of message: the fields that may be in it.
struct Kind(&'static [(u64, Field)]);

enum Field {
    Leaf,
    Message(&'static Kind),
}

use Field::{Leaf, Message};

// Field numbers of onnx.proto.
static MODEL: Kind = Kind(&[(1, Leaf), (2, Leaf), (3, Leaf), (7, Message(&GRAPH)), (8, Message(&OPSET))]);
static OPSET: Kind = Kind(&[(1, Leaf), (2, Leaf)]);
static GRAPH: Kind =
    Kind(&[(1, Message(&NODE)), (2, Leaf), (5, Message(&TENSOR)), (11, Message(&VALUE_INFO)), (12, Message(&VALUE_INFO))]);
static NODE: Kind = Kind(&[(1, Leaf), (2, Leaf), (3, Leaf), (4, Leaf), (5, Message(&ATTRIBUTE)), (7, Leaf)]);
static ATTRIBUTE: Kind = Kind(&[(1, Leaf), (2, Leaf), (3, Leaf), (4, Leaf), (5, Message(&TENSOR)), (8, Leaf), (20, Leaf)]);
static TENSOR: Kind = Kind(&[(1, Leaf), (2, Leaf), (8, Leaf), (9, Leaf), (13, Message(&ENTRY)), (14, Leaf)]);
static ENTRY: Kind = Kind(&[(1, Leaf), (2, Leaf)]);
static VALUE_INFO: Kind = Kind(&[(1, Leaf), (2, Message(&TYPE))]);
static TYPE: Kind = Kind(&[(1, Message(&TENSOR_TYPE))]);
static TENSOR_TYPE: Kind = Kind(&[(1, Leaf), (2, Message(&SHAPE))]);
static SHAPE: Kind = Kind(&[(1, Message(&DIMENSION))]);
static DIMENSION: Kind = Kind(&[(1, Leaf), (2, Leaf)]);

/// What is wrong with the bytes of a model, if anything.
pub(super) fn defect(bytes: &[u8]) -> Option<String> {
    scan(bytes, &MODEL).err()
}

/// Recurses as deep as the tables above, and they have no cycle.
fn scan(mut bytes: &[u8], kind: &Kind) -> Result<(), String> {
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let (number, wire) = (tag >> 3, tag & 7);
        let field = kind.0.iter().find(|(known, _)| *known == number).map(|(_, field)| field);
        let field = field.ok_or_else(|| format!("field {number} is none that attar writes"))?;
        match (wire, field) {
            (0, Leaf) => drop(varint(&mut bytes)?),
            (1, Leaf) => drop(take(&mut bytes, 8)?),
            (5, Leaf) => drop(take(&mut bytes, 4)?),
            (2, Leaf) => drop(delimited(&mut bytes)?),
            (2, Message(kind)) => scan(delimited(&mut bytes)?, kind)?,
            _ => return Err(format!("field {number} has wire type {wire}")),
        }
    }
    Ok(())
}

fn delimited<'b>(bytes: &mut &'b [u8]) -> Result<&'b [u8], String> {
    let length = varint(bytes)?;
    take(bytes, usize::try_from(length).unwrap_or(usize::MAX))
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> Result<&'b [u8], String> {
    let (taken, rest) = bytes.split_at_checked(length).ok_or("it ends in the middle of a field")?;
    *bytes = rest;
    Ok(taken)
}

fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        value |= u64::from(byte & 127) << shift;
        if byte < 128 {
            return Ok(value);
        }
    }
    Err("a number is longer than 64 bits".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_groups_and_unknown_fields_are_refused_without_parsing_them() {
        let groups = vec![0x2b; 1 << 20]; // start of group 5, a million times
        assert!(defect(&groups).is_some());
        assert!(defect(&[0xa2, 0x01, 0x00]).is_some()); // training_info
        assert!(defect(&[0x3a, 0x02, 0x0a, 0x05]).is_some()); // a node longer than its graph
        assert!(defect(&[0x08, 0x0a]).is_none()); // ir_version 10
    }
}
