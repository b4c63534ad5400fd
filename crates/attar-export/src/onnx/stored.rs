//! A weight in the data file: the tensors that hold it, and their places.

use attar_graph::Expr;
use attar_tensor::Encoding;

use super::{form::Form, proto::Element};
use crate::{Packed, TensorEntry};

/// Offsets of tensors of a page or more, and of smaller ones.
const ALIGNMENT: [u64; 2] = [4096, 64];

/// A weight and the tensors that hold it.
pub(super) struct Stored {
    /// Canonical name.
    pub(super) name: String,
    /// Names of other weights that are the same numbers.
    pub(super) also: Vec<String>,
    pub(super) dims: Vec<usize>,
    pub(super) encoding: Encoding,
    pub(super) expr: Expr,
    pub(super) form: Form,
    /// Codes (or values), scales or tables, zeros and super scales, as far as there are any, in this order.
    pub(super) parts: Vec<Part>,
    /// Other tensors over the bytes of a part, by its index.
    pub(super) views: Vec<(usize, Part)>,
    /// The tensor of several weights that it lies in, and its first row there. The file then has that tensor and not its parts.
    pub(super) packed: Option<Packed>,
}

/// What a tensor of the file is to its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    /// Codes, or the values themselves.
    Codes,
    /// Scales, or learned tables.
    Scales,
    /// Zeros.
    Zeros,
    /// Super scales.
    Supers,
}

/// A tensor of the file.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) element: Element,
    pub(super) dims: Vec<usize>,
    pub(super) offset: u64,
}

impl Part {
    pub(super) fn new(name: String, element: Element, dims: &[usize]) -> Part {
        Part { name, role: Role::Codes, element, dims: dims.to_vec(), offset: 0 }
    }

    pub(super) fn of(self, role: Role) -> Part {
        Part { role, ..self }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.element.bytes(&self.dims)
    }
}

/// The next place for a part of `bytes` behind what takes `end`.
pub(super) fn aligned(end: u64, bytes: u64) -> u64 {
    let alignment = if bytes < ALIGNMENT[0] { ALIGNMENT[1] } else { ALIGNMENT[0] };
    end.next_multiple_of(alignment)
}

impl Stored {
    /// Gives its parts their places behind `end`.
    pub(super) fn place(&mut self, end: &mut u64) {
        for part in &mut self.parts {
            part.offset = aligned(*end, part.bytes());
            *end = part.offset + part.bytes();
        }
        for (part, view) in &mut self.views {
            view.offset = self.parts[*part].offset;
        }
    }

    /// Rows and columns; a vector is one row, as in [`attar_tensor::TensorInfo::matrix`].
    pub(super) fn matrix(&self) -> [usize; 2] {
        attar_tensor::TensorInfo { dims: self.dims.clone(), encoding: self.encoding }.matrix()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// The part of that role, if there is one.
    pub(super) fn part(&self, role: Role) -> Option<&Part> {
        self.parts.iter().find(|part| part.role == role)
    }

    /// For manifests.
    pub(super) fn entry(&self) -> TensorEntry {
        TensorEntry {
            name: self.name.clone(),
            also: self.also.clone(),
            dims: self.dims.clone(),
            encoding: self.encoding.to_string(),
            storage: self.form.in_words(),
            packed: self.packed.clone(),
            true_bits: self.encoding.true_bits(self.matrix()),
            stored_bytes: self.bytes(),
            snr_db: None,
        }
    }
}
