//! The data file: weights in the forms that [`super::storage`] chose, streamed from a source.
//!
//! Codes stored as `[in, out]` are transposed in tiles of rows that fit in memory, each tile in bands of columns that fit in
//! the cache. Every part has its place before the first byte is written, so tiles go where they belong.

use std::{fs::File, ops::Range, os::unix::fs::FileExt, path::Path};

use attar_tensor::{
    Dtype, Granularity, QuantizedTensor, Scheme, Source,
    pack::{self, Packing},
};

use super::{
    form::{EVEN, Form, block, stored_bits, table_bits},
    storage::{Weights, blob_group},
    stored::{Part, Role, Stored},
};
use crate::{
    Error, Progress, Result,
    kit::{self, chunks},
    layout::{
        columns::{BLOCK, transpose},
        nibbles,
        scales::{encode, shared_by_rows},
    },
};

/// Bytes of packed codes per tile.
const TILE: usize = 16 << 20;

/// Bytes that are made at a time.
const CHUNK: usize = 1 << 20;

/// A data file that is being written.
pub(super) struct DataFile<'a> {
    file: File,
    path: &'a Path,
    source: &'a dyn Source,
    progress: Progress<'a>,
    done: u64,
    total: u64,
    tile: usize,
    on_device: bool,
}

impl<'a> DataFile<'a> {
    /// Writes all of `weights`: the file is whole or not there.
    pub(super) fn write(path: &'a Path, weights: &Weights, source: &'a dyn Source, progress: Progress<'a>) -> Result<()> {
        Self::write_in_tiles(path, weights, source, progress, TILE)
    }

    fn write_in_tiles(
        path: &'a Path,
        weights: &Weights,
        source: &'a dyn Source,
        progress: Progress<'a>,
        tile: usize,
    ) -> Result<()> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let temporary = tempfile::Builder::new()
            .prefix(".partial-")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(folder)
            .map_err(Error::io("create", path))?;
        let file = temporary.as_file().try_clone().map_err(Error::io("create", path))?;
        file.set_len(weights.bytes).map_err(Error::io("write", path))?;
        let total = weights.stored.iter().map(Stored::bytes).sum();
        let on_device = weights.on_device;
        let mut data = DataFile { file, path, source, progress, done: 0, total, tile, on_device };
        for stored in &weights.stored {
            data.weight(stored)?;
        }
        data.file.sync_all().map_err(Error::io("write", path))?;
        temporary.persist(path).map_err(|e| Error::io("write", path)(e.error))?;
        Ok(())
    }

    fn weight(&mut self, stored: &Stored) -> Result<()> {
        match stored.form {
            Form::Plain(dtype) => self.plain(stored, dtype),
            Form::Columns(scheme, _) | Form::Blocks(scheme) => self.columns(stored, scheme),
            Form::Rows(scheme) => self.by_rows(stored, scheme, stored_bits(&scheme), 0),
            Form::Blobs(scheme, _) => self.by_rows(stored, scheme, stored_bits(&scheme), blob_group(&scheme)),
            Form::Table(scheme) => {
                let columns = stored.matrix()[1];
                self.by_rows(stored, scheme, table_bits(&scheme, columns), scheme.group(columns))
            }
        }
    }

    fn put(&mut self, part: &Part, at: usize, bytes: &[u8]) -> Result<()> {
        self.file.write_all_at(bytes, part.offset + at as u64).map_err(Error::io("write", self.path))?;
        self.done += bytes.len() as u64;
        (self.progress)(self.done.min(self.total), self.total);
        Ok(())
    }

    fn plain(&mut self, stored: &Stored, dtype: Dtype) -> Result<()> {
        let [rows, columns] = stored.matrix();
        let (mut values, mut bytes, mut at) = (Vec::new(), Vec::new(), 0);
        for chunk in chunks(rows, CHUNK / (4 * columns).max(1)) {
            values.resize(chunk.len() * columns, 0.0);
            stored.expr.read(self.source, chunk, &mut values)?;
            if self.on_device {
                kit::without_negative_zeros(&mut values);
            }
            bytes.clear();
            dtype.encode(&values, &mut bytes);
            self.put(&stored.parts[0], at, &bytes)?;
            at += bytes.len();
        }
        Ok(())
    }

    /// Codes, scales and zeros by rows. Groups of codes are padded to `group`, and zeros then packed like codes.
    fn by_rows(&mut self, stored: &Stored, scheme: Scheme, bits: u32, group: usize) -> Result<()> {
        let [rows, columns] = stored.matrix();
        let padded = columns.max(scheme.groups(columns) * group);
        let mut codes = vec![0; padded];
        let mut at = [0; 3];
        for chunk in chunks(rows, CHUNK / padded) {
            let tensor = stored.expr.read_quantized(self.source, chunk.clone())?;
            let mut bytes = Vec::with_capacity(CHUNK);
            for row in 0..tensor.dims[0] {
                tensor.codes_of(row, &mut codes[..columns]);
                shift(&mut codes[..columns], stored.form);
                pack::pack_row(&codes, bits, &mut bytes);
            }
            let first_of_one = at[0] == 0 || scheme.granularity != Granularity::Tensor;
            let shared = if first_of_one {
                shared_by_rows(&tensor, stored.form.scale_format(&scheme), if group > 0 { stored_bits(&scheme) } else { 8 })
            } else {
                [Vec::new(), Vec::new()]
            };
            let parts = [Role::Codes, Role::Scales, Role::Zeros].map(|role| stored.part(role));
            for ((part, at), bytes) in parts.into_iter().zip(&mut at).zip([&bytes, &shared[0], &shared[1]]) {
                part.map_or(Ok(()), |part| self.put(part, *at, bytes))?;
                *at += bytes.len();
            }
            self.supers(stored, &tensor, chunk.start)?;
        }
        Ok(())
    }

    /// The super scales of rows from `first` on; the one of a whole tensor comes with its first rows.
    fn supers(&mut self, stored: &Stored, tensor: &QuantizedTensor, first: usize) -> Result<()> {
        let Some(part) = stored.part(Role::Supers) else { return Ok(()) };
        let Some((dtype, granularity)) = tensor.scheme.scale.supers() else {
            let even: Vec<f32> = magnitudes(&tensor.scales).iter().map(|scale| scale / f32::from(EVEN)).collect();
            let mut bytes = Vec::new();
            Dtype::F32.encode(&even, &mut bytes);
            return self.put(part, first * part.element.bits() as usize / 8, &bytes);
        };
        if granularity == Granularity::Tensor && first > 0 {
            return Ok(());
        }
        let mut bytes = Vec::new();
        match stored.form {
            Form::Blocks(_) => Dtype::F32.encode(&magnitudes(&tensor.supers), &mut bytes),
            _ => dtype.encode(&tensor.supers, &mut bytes),
        }
        self.put(part, first * part.element.bits() as usize / 8, &bytes)
    }

    fn columns(&mut self, stored: &Stored, scheme: Scheme) -> Result<()> {
        let [rows, columns] = stored.matrix();
        let row_bytes = scheme.grid.packing().row_bytes(columns);
        let tile = (self.tile / row_bytes).max(BLOCK[0]) / BLOCK[0] * BLOCK[0];
        for tile in chunks(rows, tile) {
            let tensor = stored.expr.read_quantized(self.source, tile.clone())?;
            self.transposed_codes(stored, &tensor, &tile)?;
            if tile.start == 0 || scheme.granularity != Granularity::Tensor {
                self.transposed_shared(stored, &tensor, &tile)?;
            }
            self.supers(stored, &tensor, tile.start)?;
        }
        Ok(())
    }

    fn transposed_codes(&mut self, stored: &Stored, tensor: &QuantizedTensor, tile: &Range<usize>) -> Result<()> {
        let [rows, columns] = stored.matrix();
        let band = (CHUNK / tile.len() / Packing::PERIOD * Packing::PERIOD).clamp(Packing::PERIOD, BLOCK[1]);
        let mut codes = vec![0; band * tile.len()];
        for band in chunks(columns, band) {
            let codes = &mut codes[..band.len() * tile.len()];
            transpose(tensor, band.clone(), codes);
            shift(codes, stored.form);
            self.put_columns(&stored.parts[0], rows, band.start, tile, codes)?;
        }
        Ok(())
    }

    /// Scales and zeros of a tile, `[groups, rows]`.
    fn transposed_shared(&mut self, stored: &Stored, tensor: &QuantizedTensor, tile: &Range<usize>) -> Result<()> {
        if let (Form::Blocks(scheme), Granularity::Row) = (stored.form, tensor.scheme.granularity) {
            let (blocks, even) = (tensor.dims[1] / block(&scheme, tensor.dims[1]), vec![EVEN; tile.len()]);
            return (0..blocks).try_for_each(|at| self.put(&stored.parts[1], at * stored.dims[0] + tile.start, &even));
        }
        let groups = tensor.scheme.groups(tensor.dims[1]);
        let (rows, tile) = match tensor.scheme.granularity {
            Granularity::Tensor => (1, 0..1),
            _ => (stored.dims[0], tile.clone()),
        };
        let part = &stored.parts[1];
        for group in 0..groups {
            let mut bytes = Vec::new();
            for (row, scale) in tensor.scales.iter().skip(group).step_by(groups).enumerate() {
                let (format, over) = (tensor.scheme.scale, tensor.super_of(row));
                match stored.form {
                    Form::Blocks(_) => bytes.push(format.value(format.code(*scale, over)).abs() as u8),
                    _ if self.on_device && *scale == 0.0 => encode(format, &[1.0], over, &mut bytes),
                    _ => encode(format, &[*scale], over, &mut bytes),
                }
            }
            self.put(part, (group * rows + tile.start) * part.element.bits() as usize / 8, &bytes)?;
        }
        let Some(part) = stored.part(Role::Zeros) else { return Ok(()) };
        let zeros: Vec<u8> = match tensor.scheme.is_symmetric() {
            true => vec![stored.form.shift().wrapping_add(tensor.scheme.grid.middle()); groups * tile.len()],
            false => (0..groups).flat_map(|group| tensor.zeros.iter().skip(group).step_by(groups).copied()).collect(),
        };
        self.put_columns(part, rows, 0, &tile, &zeros)
    }

    /// Writes `codes` `[some, tile]`, which start at row `first` of a part with `rows` columns.
    fn put_columns(&mut self, part: &Part, rows: usize, first: usize, tile: &Range<usize>, codes: &[u8]) -> Result<()> {
        if tile.len() == rows {
            return self.put_codes(part, first * rows, codes);
        }
        for (i, codes) in codes.chunks(tile.len()).enumerate() {
            self.put_codes(part, (first + i) * rows + tile.start, codes)?;
        }
        Ok(())
    }

    /// Writes codes from element `at` on. Two that share a byte may come at different times.
    fn put_codes(&mut self, part: &Part, at: usize, codes: &[u8]) -> Result<()> {
        if part.element.bits() == 8 {
            return self.put(part, at, codes);
        }
        let head = at % 2;
        let (first, codes) = codes.split_at(head.min(codes.len()));
        if let [high] = first {
            self.join(part, at / 2, high << 4, 0xf0)?;
        }
        let (pairs, last) = codes.as_chunks::<2>();
        let bytes: Vec<u8> = pairs.iter().copied().map(nibbles).collect();
        let at = at.div_ceil(2);
        self.put(part, at, &bytes)?;
        match last {
            [low] => self.join(part, at + bytes.len(), *low, 0x0f),
            _ => Ok(()),
        }
    }

    /// Replaces half of a byte: the bits of `mask`.
    fn join(&mut self, part: &Part, at: usize, half: u8, mask: u8) -> Result<()> {
        let mut byte = [0];
        self.file.read_exact_at(&mut byte, part.offset + at as u64).map_err(Error::io("read", self.path))?;
        self.put(part, at, &[byte[0] & !mask | half])
    }
}

/// Super scales without signs, which codes of scales have lost, too. Under one that is 0 all codes are.
fn magnitudes(supers: &[f32]) -> Vec<f32> {
    supers.iter().map(|over| if *over == 0.0 { 1.0 } else { over.abs() }).collect()
}

fn shift(codes: &mut [u8], form: Form) {
    let (by, mask) = match form {
        Form::Columns(s, _) | Form::Blocks(s) | Form::Rows(s) | Form::Blobs(s, _) | Form::Table(s) if stored_bits(&s) == 4 => {
            (form.shift(), 15)
        }
        _ => (form.shift(), 255),
    };
    for code in codes {
        *code = code.wrapping_add(by) & mask;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use attar_graph::Graph;
    use attar_tensor::{Digest, Encoding, TensorInfo};

    use super::super::Onnx;
    use super::*;

    /// One weight, `w`.
    struct One(BTreeMap<String, TensorInfo>, QuantizedTensor);

    impl Source for One {
        fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
            &self.0
        }

        fn read(&self, _: &str, _: Range<usize>, _: &mut [f32]) -> attar_tensor::Result<()> {
            unreachable!("the writer reads codes")
        }

        fn read_quantized(&self, _: &str, rows: Range<usize>) -> attar_tensor::Result<QuantizedTensor> {
            let (all, columns) = (&self.1, self.1.dims[1]);
            let bytes = pack::row_bytes(columns, all.scheme.grid.bits());
            let groups = all.scheme.groups(columns);
            let mut some = QuantizedTensor { dims: [rows.len(), columns], ..QuantizedTensor::empty(all.scheme, columns) };
            some.codes.extend(&all.codes[rows.start * bytes..rows.end * bytes]);
            some.scales.extend(&all.scales[rows.start * groups..rows.end * groups]);
            some.zeros.extend(&all.zeros[rows.start * groups..rows.end * groups]);
            Ok(some)
        }

        fn digest(&self, _: &str) -> attar_tensor::Result<Digest> {
            unreachable!("the writer asks for no digest")
        }
    }

    fn one(scheme: &str, dims: [usize; 2]) -> One {
        let scheme: Scheme = scheme.parse().unwrap();
        let [rows, columns] = dims;
        let code = |i: usize| ((i * 37 + i / 11) % (1 << scheme.grid.bits())) as u8;
        let mut tensor = QuantizedTensor { dims, ..QuantizedTensor::empty(scheme, columns) };
        for row in 0..rows {
            let codes: Vec<u8> = (0..columns).map(|column| code(row * columns + column)).collect();
            pack::pack_row(&codes, scheme.grid.bits(), &mut tensor.codes);
        }
        let shared = scheme.scale_count(dims);
        tensor.scales = (0..shared).map(|i| i as f32).collect();
        tensor.zeros = (0..shared).map(code).collect();
        let info = TensorInfo { dims: dims.to_vec(), encoding: Encoding::Quantized(scheme) };
        One(BTreeMap::from([("w".into(), info)]), tensor)
    }

    #[test]
    fn tiles_of_any_size_give_the_same_bytes() {
        for scheme in ["int4/g16/asymmetric", "int8/g16/asymmetric", "int3/g16/asymmetric/f32"] {
            for rows in [64, 130, 193] {
                let text =
                    format!("graph g(x: [seq, 48] f32) {{ y = linear x, weight(\"w\": [{rows}, 48] {scheme})\n return y }}");
                let weights = Weights::new(&Graph::parse(&text).unwrap(), &Onnx::default(), false).unwrap();
                let source = one(scheme, [rows, 48]);
                let folder = tempfile::tempdir().unwrap();
                let [whole, tiled] = [TILE, 1].map(|tile| {
                    let path = folder.path().join(format!("{tile}"));
                    DataFile::write_in_tiles(&path, &weights, &source, &mut |_, _| (), tile).unwrap();
                    std::fs::read(path).unwrap()
                });
                assert_eq!(whole, tiled, "{scheme}, {rows} rows");
            }
        }
    }
}
