//! A tensor, or some rows of one, as codes, scales and zeros.

use crate::{Fit, Granularity, Scheme, pack};

/// Codes, scales and zeros of a `[rows, columns]` tensor or of a run of its rows.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    /// What the parts mean.
    pub scheme: Scheme,
    /// Rows and columns held here.
    pub dims: [usize; 2],
    /// [`pack::row_bytes`] bytes a row.
    pub codes: Vec<u8>,
    /// `[rows, groups]`, or a single one for [`Granularity::Tensor`]; each is exact in the scheme's scale format.
    pub scales: Vec<f32>,
    /// As many as scales, one code each; empty when symmetric.
    pub zeros: Vec<u8>,
}

impl QuantizedTensor {
    /// No rows yet.
    pub fn empty(scheme: Scheme, columns: usize) -> QuantizedTensor {
        QuantizedTensor { scheme, dims: [0, columns], codes: Vec::new(), scales: Vec::new(), zeros: Vec::new() }
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
        self.dims[0] += more.dims[0];
        self.codes.extend(more.codes);
    }

    /// What `group` of `row` shares.
    pub fn fit(&self, row: usize, group: usize) -> Fit {
        let at = match self.scheme.granularity {
            Granularity::Tensor => 0,
            _ => row * self.scheme.groups(self.dims[1]) + group,
        };
        let zero = self.zeros.get(at).copied().unwrap_or(self.scheme.grid.middle());
        Fit { scale: self.scales[at], zero }
    }

    /// The codes of one row, a byte each.
    pub fn codes_of(&self, row: usize, codes: &mut [u8]) {
        let bits = self.scheme.grid.bits();
        let bytes = pack::row_bytes(self.dims[1], bits);
        pack::unpack_row(&self.codes[row * bytes..][..bytes], bits, codes);
    }

    /// What the codes mean: `out` is `[rows, columns]`.
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
