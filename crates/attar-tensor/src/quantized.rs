//! A tensor, or some rows of one, as codes, scales and zeros.

use crate::{Dtype, Fit, Granularity, Scheme, pack};

/// Codes, scales and zeros of a `[rows, columns]` tensor or of a run of its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    /// The scheme of the parts.
    pub scheme: Scheme,
    /// Rows and columns held here.
    pub dims: [usize; 2],
    /// [`pack::Packing::row_bytes`] bytes per row.
    pub codes: Vec<u8>,
    /// `[rows, groups]`, or a single one for [`Granularity::Tensor`]: in effect, super scales included. Each is exact in the
    /// scheme's scale format. Where tables are learned, their entries instead: [`Scheme::entries`] for every group.
    pub scales: Vec<f32>,
    /// [`crate::ScaleFormat::super_count`] of them.
    pub supers: Vec<f32>,
    /// As many as scales, one code each; empty when symmetric.
    pub zeros: Vec<u8>,
}

impl QuantizedTensor {
    /// No rows yet.
    pub fn empty(scheme: Scheme, columns: usize) -> QuantizedTensor {
        QuantizedTensor {
            scheme,
            dims: [0, columns],
            codes: Vec::new(),
            scales: Vec::new(),
            supers: Vec::new(),
            zeros: Vec::new(),
        }
    }

    /// Adds the rows of `more` below these. Both have the same scheme and columns.
    pub fn append(&mut self, more: QuantizedTensor) {
        debug_assert!(self.scheme == more.scheme && self.dims[1] == more.dims[1]);
        if self.scheme.granularity == Granularity::Tensor && self.dims[0] > 0 {
            debug_assert_eq!((&self.scales, &self.zeros), (&more.scales, &more.zeros));
        } else {
            self.scales.extend(more.scales);
            self.zeros.extend(more.zeros);
        }
        if self.scheme.scale.super_count(2) == 2 || self.dims[0] == 0 {
            self.supers.extend(more.supers);
        }
        self.dims[0] += more.dims[0];
        self.codes.extend(more.codes);
    }

    /// Scale, zero and table of `group` of `row`.
    pub fn fit(&self, row: usize, group: usize) -> Fit<'_> {
        let at = match self.scheme.granularity {
            Granularity::Tensor => 0,
            _ => row * self.scheme.groups(self.dims[1]) + group,
        };
        let zero = self.zeros.get(at).copied().unwrap_or(self.scheme.grid.middle());
        match self.scheme.entries() {
            1 => Fit { scale: self.scales[at], zero, table: &[] },
            entries => Fit { scale: 1.0, zero, table: &self.scales[at * entries..][..entries] },
        }
    }

    /// The super scale of a row; 1 where there are none.
    pub fn super_of(&self, row: usize) -> f32 {
        match self.supers.as_slice() {
            [] => 1.0,
            [one] => *one,
            all => all[row],
        }
    }

    /// The codes of one row, one byte each.
    pub fn codes_of(&self, row: usize, codes: &mut [u8]) {
        let packing = self.scheme.grid.packing();
        let bytes = packing.row_bytes(self.dims[1]);
        packing.unpack(&self.codes[row * bytes..][..bytes], codes);
    }

    /// Decodes all rows: `out` is `[rows, columns]`.
    pub fn decode(&self, out: &mut [f32]) {
        let [rows, columns] = self.dims;
        debug_assert_eq!(out.len(), rows * columns);
        let mut codes = vec![0; columns];
        let size = self.scheme.group(columns).max(1);
        for (row, out) in out.chunks_mut(columns.max(1)).enumerate() {
            self.codes_of(row, &mut codes);
            for (group, (codes, out)) in codes.chunks(size).zip(out.chunks_mut(size)).enumerate() {
                self.scheme.grid.decode(codes, self.fit(row, group), out);
            }
        }
    }
}

/// Collects scales, zeros and super scales as they are stored, which is after all codes.
#[derive(Default)]
pub struct SharedParts {
    scales: Vec<u8>,
    zeros: Vec<u8>,
    supers: Vec<u8>,
}

impl SharedParts {
    /// Adds those of the next rows. What the whole tensor shares is part of each and kept once.
    pub fn add(&mut self, rows: &QuantizedTensor) {
        let format = rows.scheme.scale;
        if rows.scheme.granularity == Granularity::Tensor {
            (self.scales, self.zeros) = (Vec::new(), Vec::new());
        }
        if format.super_count(2) == 1 {
            self.supers.clear();
        }
        let groups = rows.scheme.groups(rows.dims[1]).max(1);
        for (row, scales) in rows.scales.chunks(groups * rows.scheme.entries()).enumerate() {
            format.encode(scales, rows.super_of(row), &mut self.scales);
        }
        for zeros in rows.zeros.chunks(groups) {
            pack::pack_row(zeros, rows.scheme.grid.bits(), &mut self.zeros);
        }
        format.supers().map_or(Dtype::F32, |(dtype, _)| dtype).encode(&rows.supers, &mut self.supers);
    }

    /// In the order of [`crate::safetensors::PartLayout::entries`].
    pub fn bytes(&self) -> impl Iterator<Item = &[u8]> {
        [self.scales.as_slice(), &self.zeros, &self.supers].into_iter()
    }
}
