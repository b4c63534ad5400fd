//! Codes, scales and zeros as the operators that read them define.

use std::ops::Range;

use attar_tensor::Dtype;
use onnx_protobuf::NodeProto;

use super::{
    chunks,
    file::{Opened, Place, int},
    unexpected,
};
use crate::Result;

/// Bytes of codes, one each, that are in memory at a time.
const TILE: usize = 16 << 20;

/// What a tensor holds.
pub(super) enum Meaning<'f> {
    /// The weight itself.
    Values(&'f Place),
    /// Codes of it.
    Codes(Codes<'f>),
}

/// A weight `[rows, columns]` in codes.
pub(super) struct Codes<'f> {
    pub(super) rows: usize,
    pub(super) columns: usize,
    codes: Grid<'f>,
    scale: Scale<'f>,
    values: Values<'f>,
    /// Columns that share a scale.
    group: usize,
}

/// Scales, and what they are multiplied with.
struct Scale<'f> {
    grid: Option<Grid<'f>>,
    over: Option<Grid<'f>>,
}

/// What codes mean at scale 1.
enum Values<'f> {
    /// Their distance from a zero.
    Even(Zero<'f>),
    /// The same for all.
    Table(Vec<f32>),
    /// So many values for each group.
    Tables(Grid<'f>, usize),
}

/// A matrix in the data file: an entry for each row of the weight and each column or group.
struct Grid<'f> {
    place: &'f Place,
    /// Bits an entry, and whether they are in two's complement.
    bits: u64,
    signed: bool,
    /// Entries from one row of the weight to the next, and from one column to the next; 0 where all share one.
    stride: [usize; 2],
}

enum Zero<'f> {
    Code(u8),
    Codes(Grid<'f>),
}

/// What the nodes that read tensor `name` say it holds.
pub(super) fn meaning<'f>(opened: &'f Opened, name: &str, [rows, columns]: [usize; 2]) -> Result<Meaning<'f>> {
    let place = opened.place(name)?;
    for node in opened.readers(name) {
        let reads_as = |input: usize| node.input.get(input).is_some_and(|i| i == name);
        let codes = match node.op_type.as_str() {
            "DequantizeLinear" if reads_as(0) => linear_codes(opened, node, place, [rows, columns])?,
            "MatMulNBits" if reads_as(1) => block_codes(opened, node, place, [2, 3], [rows, columns])?,
            "GatherBlockQuantized" if reads_as(0) => block_codes(opened, node, place, [2, 3], [rows, columns])?,
            "Cast" if reads_as(0) && int(node, "to") == Some(6) => looked_up(opened, node, place, [rows, columns])?,
            "Gather" if reads_as(0) && int(node, "axis").is_none() => match dequantizer(opened, node) {
                Some(dequantize) => gathered_codes(opened, dequantize, place, [rows, columns])?,
                None => continue,
            },
            _ => continue,
        };
        return Ok(Meaning::Codes(codes));
    }
    Ok(Meaning::Values(place))
}

/// DequantizeLinear of codes `[columns, rows]`: one scale, one per row (axis 1), or one per group and row (axis 0).
fn linear_codes<'f>(opened: &'f Opened, node: &NodeProto, place: &'f Place, [rows, columns]: [usize; 2]) -> Result<Codes<'f>> {
    expect(opened, &node.name, &place.dims, &[columns, rows])?;
    let (scale, over) = scales(opened, &node.input[1], rows)?;
    let (group, shared) = match (scale.dims.as_slice(), int(node, "axis"), int(node, "block_size")) {
        ([], _, None | Some(0)) => (columns, [0, 0]),
        ([n], Some(1), None | Some(0)) if *n == rows => (columns, [1, 0]),
        ([groups, n], Some(0), Some(size)) if *n == rows && size > 0 && columns.div_ceil(size as usize) == *groups => {
            (size as usize, [1, rows])
        }
        other => {
            return Err(unexpected(&opened.path, format!("the scale of `{}`", node.name), format!("{other:?}"), "a known form"));
        }
    };
    let zero = match node.input.get(2) {
        None => Zero::Code(0),
        Some(name) => {
            let place = opened.place(name)?;
            expect(opened, name, &place.dims, &scale.dims)?;
            Zero::Codes(Grid::new(place, shared))
        }
    };
    let codes = Grid::new(place, [1, rows]);
    let values = match place.code {
        17 => Values::Table((0..=255).map(|code| float(code, 4, 3)).collect()),
        19 => Values::Table((0..=255).map(|code| float(code, 5, 2)).collect()),
        _ => Values::Even(zero),
    };
    let scale = Scale { grid: Some(Grid::new(scale, shared)), over };
    Ok(Codes { rows, columns, codes, scale, values, group }.normal())
}

/// Codes `[rows, groups, group]` or `[rows * groups, group]` that say where in a table a value is: Gather and
/// GatherElements of ONNX. One table is the same for all and has scales, or each group has its own and has none.
fn looked_up<'f>(opened: &'f Opened, cast: &NodeProto, place: &'f Place, [rows, columns]: [usize; 2]) -> Result<Codes<'f>> {
    let index = &cast.output[0];
    let missing = |what, wanted| unexpected(&opened.path, format!("the {what} of `{index}`"), "missing", wanted);
    let gather = opened.readers(index).find(|n| n.op_type.starts_with("Gather") && n.input[1] == *index);
    let gather = gather.ok_or_else(|| missing("reader", "a Gather"))?;
    let group = place.dims.last().copied().unwrap_or(0).max(1);
    let groups = columns.div_ceil(group);
    expect(opened, &cast.name, &[place.dims.iter().product::<usize>()], &[rows * groups * group])?;
    let codes = Grid { stride: [groups * group, 1], ..Grid::new(place, [0, 0]) };
    if let Some(table) = opened.tensor(&gather.input[0]).filter(|t| !t.raw_data.is_empty()) {
        let table = table.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))).collect();
        let product = opened.readers(&gather.output[0]).find(|n| n.op_type == "Mul");
        let product = product.ok_or_else(|| missing("scale", "a Mul"))?;
        let (scale, over) = scales(opened, &product.input[1], rows)?;
        let shared = if scale.dims.is_empty() { [0, 0] } else { [groups, 1] };
        let wanted: &[usize] = if scale.dims.is_empty() { &[] } else { &[rows, groups, 1] };
        expect(opened, &product.name, &scale.dims, wanted)?;
        let scale = Scale { grid: Some(Grid::new(scale, shared)), over };
        return Ok(Codes { rows, columns, codes, scale, values: Values::Table(table), group });
    }
    let tables = opened.place(origin(opened, &gather.input[0]))?;
    let (stride, entries) = match (tables.dims.as_slice(), gather.op_type.as_str()) {
        ([entries], "Gather") => (0, *entries),
        ([all, entries], "GatherElements") if *all == rows * groups && int(gather, "axis") == Some(1) => {
            (groups * entries, *entries)
        }
        (dims, _) => {
            return Err(unexpected(&opened.path, format!("the tables of `{index}`"), format!("{dims:?}"), "one a group"));
        }
    };
    let values = Values::Tables(Grid::new(tables, [stride, 1]), entries);
    Ok(Codes { rows, columns, codes, scale: Scale { grid: None, over: None }, values, group })
}

/// Scales, and their super scales if a DequantizeLinear of their own multiplies them.
fn scales<'f>(opened: &'f Opened, name: &str, rows: usize) -> Result<(&'f Place, Option<Grid<'f>>)> {
    let name = origin(opened, name);
    let Some(maker) = opened.maker(name).filter(|m| m.op_type == "DequantizeLinear") else {
        return Ok((opened.place(name)?, None));
    };
    let (scale, over) = (opened.place(&maker.input[0])?, opened.place(origin(opened, &maker.input[1]))?);
    let along_rows = int(maker, "axis").and_then(|axis| scale.dims.get(usize::try_from(axis).ok()?)) == Some(&rows);
    match over.dims.as_slice() {
        [] => Ok((scale, Some(Grid::new(over, [0, 0])))),
        [n] if *n == rows && along_rows => Ok((scale, Some(Grid::new(over, [1, 0])))),
        dims => Err(unexpected(&opened.path, format!("the super scales of `{name}`"), format!("{dims:?}"), "one, or one a row")),
    }
}

/// A float with a sign and so many bits of exponent and fraction, by the text of the OCP 8-bit formats: the largest codes
/// mean no number.
fn float(code: u8, exponent_bits: u32, fraction_bits: u32) -> f32 {
    let (bias, steps) = ((1 << (exponent_bits - 1)) - 1, 2f64.powi(fraction_bits as i32));
    let (exponent, fraction) = (i32::from(code & 127) >> fraction_bits, f64::from(code & ((1 << fraction_bits) - 1)));
    let magnitude = match (exponent_bits, exponent) {
        (4, _) if code & 127 == 127 => f64::NAN,
        (5, 31) => f64::NAN,
        (_, 0) => fraction / steps * 2f64.powi(1 - bias),
        (_, exponent) => (1.0 + fraction / steps) * 2f64.powi(exponent - bias),
    };
    (if code > 127 { -magnitude } else { magnitude }) as f32
}

/// MatMulNBits and GatherBlockQuantized: rows of groups of equal size, zeros packed by rows, the middle without any.
fn block_codes<'f>(
    opened: &'f Opened,
    node: &NodeProto,
    place: &'f Place,
    [scale, zero]: [usize; 2],
    [rows, columns]: [usize; 2],
) -> Result<Codes<'f>> {
    let attribute = |name: &str| int(node, name).and_then(|i| usize::try_from(i).ok()).unwrap_or(0);
    let (bits, group) = (attribute("bits"), attribute("block_size"));
    let groups = columns.div_ceil(group.max(1));
    if !matches!(bits, 4 | 8) || place.dims.iter().product::<usize>() != rows * groups * group * bits / 8 {
        return Err(unexpected(
            &opened.path,
            format!("the codes of `{}`", node.name),
            format!("{:?}", place.dims),
            "rows of groups",
        ));
    }
    if node.op_type == "MatMulNBits" {
        expect(opened, &node.name, &[attribute("N"), attribute("K")], &[rows, columns])?;
    }
    let (scale, over) = scales(opened, &node.input[scale], rows)?;
    expect(opened, &node.name, &scale.dims, &[rows, groups])?;
    let packed = |place, stride: usize| Grid { place, bits: bits as u64, signed: false, stride: [stride, 1] };
    let zero = match node.input.get(zero) {
        None => Zero::Code(1 << (bits - 1)),
        Some(name) => {
            let place = opened.place(name)?;
            let row_bytes = (groups * bits).div_ceil(8);
            expect(opened, name, &place.dims, &[rows, row_bytes])?;
            Zero::Codes(packed(place, row_bytes * 8 / bits))
        }
    };
    let codes = packed(place, groups * group);
    let scale = Scale { grid: Some(Grid::new(scale, [groups, 1])), over };
    Ok(Codes { rows, columns, codes, scale, values: Values::Even(zero), group })
}

/// DequantizeLinear of gathered rows of `[rows, columns]`, one or two codes per byte.
fn gathered_codes<'f>(opened: &'f Opened, node: &NodeProto, place: &'f Place, [rows, columns]: [usize; 2]) -> Result<Codes<'f>> {
    let bits: usize = if place.dims == [rows, columns] { 8 } else { 4 };
    let row_bytes = (columns * bits).div_ceil(8);
    expect(opened, &node.name, &place.dims, &[rows, row_bytes])?;
    let (scale, over) = scales(opened, &node.input[1], rows)?;
    let (group, shared) = match (scale.dims.as_slice(), int(node, "axis"), int(node, "block_size")) {
        ([], _, None) => (columns, [0, 0]),
        ([n, groups], Some(2), Some(size)) if *n == rows && size > 0 && columns.div_ceil(size as usize) == *groups => {
            (size as usize, [*groups, 1])
        }
        other => {
            return Err(unexpected(&opened.path, format!("the scale of `{}`", node.name), format!("{other:?}"), "a known form"));
        }
    };
    let zero = match node.input.get(2) {
        None => Zero::Code(0),
        Some(name) => gathered_zero(opened, name, scale, shared)?,
    };
    let codes = Grid { bits: bits as u64, stride: [row_bytes * 8 / bits, 1], ..Grid::new(place, [0, 0]) };
    let scale = Scale { grid: Some(Grid::new(scale, shared)), over };
    Ok(Codes { rows, columns, codes, scale, values: Values::Even(zero), group }.normal())
}

fn gathered_zero<'f>(opened: &'f Opened, name: &str, scale: &Place, shared: [usize; 2]) -> Result<Zero<'f>> {
    let name = origin(opened, name);
    let constant = match opened.maker(name) {
        Some(maker) => maker.attribute.first().and_then(|a| a.t.as_ref()),
        None => opened.tensor(name).filter(|tensor| !tensor.raw_data.is_empty()),
    };
    match constant.map(|tensor| tensor.raw_data.as_slice()) {
        Some([code]) => Ok(Zero::Code(*code)),
        _ => {
            let place = opened.place(name)?;
            expect(opened, name, &place.dims, &scale.dims)?;
            Ok(Zero::Codes(Grid::new(place, shared)))
        }
    }
}

/// The tensor that a value is made of by casts and gathers alone.
fn origin<'n>(opened: &'n Opened, mut name: &'n str) -> &'n str {
    while let Some(maker) = opened.maker(name).filter(|m| matches!(m.op_type.as_str(), "Cast" | "Gather")) {
        name = &maker.input[0];
    }
    name
}

/// The DequantizeLinear that takes what `gather` gives, directly or after bytes are taken apart.
fn dequantizer<'f>(opened: &'f Opened, gather: &'f NodeProto) -> Option<&'f NodeProto> {
    let mut open: Vec<&NodeProto> = vec![gather];
    while let Some(node) = open.pop() {
        for reader in opened.readers(&node.output[0]) {
            match reader.op_type.as_str() {
                "DequantizeLinear" if reader.input[0] == node.output[0] => return Some(reader),
                "BitwiseAnd" | "BitShift" | "Unsqueeze" | "Concat" | "Reshape" | "Slice" => open.push(reader),
                _ => (),
            }
        }
    }
    None
}

fn expect(opened: &Opened, name: &str, found: &[usize], wanted: &[usize]) -> Result<()> {
    match found == wanted {
        true => Ok(()),
        false => Err(unexpected(&opened.path, format!("the shape at `{name}`"), format!("{found:?}"), format!("{wanted:?}"))),
    }
}

impl<'f> Grid<'f> {
    fn new(place: &'f Place, stride: [usize; 2]) -> Grid<'f> {
        let (bits, signed) = match place.code {
            22 => (4, true),
            21 => (4, false),
            3 => (8, true),
            1 => (32, false),
            10 | 16 => (16, false),
            _ => (8, false),
        };
        Grid { place, bits, signed, stride }
    }

    /// The bytes of entries `range`, and where in them, in entries, the first one is.
    fn bytes(&self, opened: &Opened, range: Range<usize>, out: &mut Vec<u8>) -> Result<usize> {
        let start = range.start as u64 * self.bits / 8;
        let end = (range.end as u64 * self.bits).div_ceil(8);
        opened.read(self.place, start..end, out)?;
        Ok((range.start as u64 - start * 8 / self.bits) as usize)
    }

    /// Calls `each` with runs of adjacent entries: their bytes, how many entries to skip, how many to
    /// take, and where they belong in a `[width, rows]` (transposed) or `[rows, width]` matrix.
    fn runs(
        &self,
        opened: &Opened,
        rows: &Range<usize>,
        width: usize,
        mut each: impl FnMut(&[u8], usize, usize, usize),
    ) -> Result<()> {
        let mut bytes = Vec::new();
        let mut run = |start: usize, count: usize, at: usize| -> Result<()> {
            let skip = self.bytes(opened, start..start + count, &mut bytes)?;
            each(&bytes, skip, count, at);
            Ok(())
        };
        match self.stride {
            [0, _] => run(0, 1, 0),
            [1, stride] if stride == rows.len() || stride == 0 => run(rows.start, width * rows.len(), 0),
            [1, stride] => (0..width).try_for_each(|column| run(column * stride + rows.start, rows.len(), column * rows.len())),
            [stride, _] if stride == width => run(rows.start * stride, rows.len() * width, 0),
            [stride, _] => rows.clone().enumerate().try_for_each(|(i, row)| run(row * stride, width, i * width)),
        }
    }

    fn is_turned(&self) -> bool {
        self.stride[0] == 1 && self.stride[1] != 1
    }

    /// Codes of `rows`, one per byte, in the order of the file.
    fn codes(&self, opened: &Opened, rows: &Range<usize>, width: usize) -> Result<Vec<u8>> {
        let mut codes = vec![0; rows.len() * width];
        self.runs(opened, rows, width, |bytes, skip, count, at| {
            let out = &mut codes[at..at + count];
            match self.bits {
                4 => nibbles(bytes, skip, out),
                _ => out.copy_from_slice(&bytes[skip..skip + count]),
            }
        })?;
        if self.signed {
            let sign = 1u8 << (self.bits - 1);
            codes.iter_mut().for_each(|code| *code ^= sign);
        }
        Ok(codes)
    }

    /// Scales of `rows`, in the order of the file.
    fn scales(&self, opened: &Opened, rows: &Range<usize>, width: usize) -> Result<Vec<f32>> {
        let mut scales = vec![0.0; rows.len() * width];
        let mut failed = Ok(());
        self.runs(opened, rows, width, |bytes, _, count, at| match self.decode(opened, bytes) {
            Ok(values) => scales[at..at + count].copy_from_slice(&values[..count]),
            Err(error) => failed = Err(error),
        })?;
        failed.map(|()| scales)
    }

    /// Numbers of one of the types that scales have.
    fn decode(&self, opened: &Opened, bytes: &[u8]) -> Result<Vec<f32>> {
        let dtype = match self.place.code {
            1 => Dtype::F32,
            3 => Dtype::I8,
            10 => Dtype::F16,
            16 => Dtype::BF16,
            17 => return Ok(bytes.iter().map(|code| float(*code, 4, 3)).collect()),
            code => return Err(unexpected(&opened.path, "the type of scales".into(), code, "f32, f16, bf16, int8 or e4m3")),
        };
        let mut values = vec![0.0; bytes.len() / dtype.bytes()];
        dtype.decode(bytes, &mut values);
        Ok(values)
    }

    /// Entries in the order of the file to `[rows, width]`.
    fn by_rows<T: Copy + Default>(&self, entries: Vec<T>, rows: usize, width: usize) -> Vec<T> {
        if self.stride[0] == 0 {
            return vec![entries[0]; rows * width];
        }
        if !self.is_turned() || width == 1 {
            return entries;
        }
        let mut turned = vec![T::default(); rows * width];
        for (column, entries) in entries.chunks(rows).enumerate() {
            turned[column..].iter_mut().step_by(width).zip(entries).for_each(|(out, entry)| *out = *entry);
        }
        turned
    }
}

/// Nibbles, low ones first, from nibble `skip` on.
fn nibbles(bytes: &[u8], skip: usize, out: &mut [u8]) {
    let (first, rest) = out.split_at_mut((skip % 2).min(out.len()));
    if let [first] = first {
        *first = bytes[0] >> 4;
    }
    let bytes = &bytes[skip.div_ceil(2)..];
    let (pairs, last) = rest.as_chunks_mut::<2>();
    for (pair, byte) in pairs.iter_mut().zip(bytes) {
        *pair = [byte & 15, byte >> 4];
    }
    if let [last] = last {
        *last = bytes[pairs.len()] & 15;
    }
}

/// Some rows of a weight, in memory.
pub(super) struct Tile {
    pub(super) rows: Range<usize>,
    columns: usize,
    group: usize,
    codes: Vec<u8>,
    /// `[columns, rows]` instead of `[rows, columns]`.
    turned: bool,
    /// `[rows, groups]`.
    scales: Vec<f32>,
    meanings: Meanings,
}

/// What the codes of a tile mean at scale 1.
enum Meanings {
    /// Their distance from the zero of their group.
    Zeros(Vec<u8>),
    /// The same for all.
    Table(Vec<f32>),
    /// So many values for each group.
    Tables(Vec<f32>, usize),
}

impl<'f> Codes<'f> {
    /// Two's complement is read with its sign bit flipped, so that zero is in the middle.
    fn normal(mut self) -> Codes<'f> {
        if let (Values::Even(Zero::Code(zero)), true) = (&mut self.values, self.codes.signed) {
            *zero ^= 1 << (self.codes.bits - 1);
        }
        self
    }

    /// How many rows to load at a time.
    pub(super) fn tile_rows(&self) -> usize {
        (TILE / self.columns.max(1)).max(64)
    }

    pub(super) fn load(&self, opened: &Opened, rows: Range<usize>) -> Result<Tile> {
        let groups = self.columns.div_ceil(self.group);
        let count = rows.len();
        let meanings = match &self.values {
            Values::Even(Zero::Code(code)) => Meanings::Zeros(vec![*code; count * groups]),
            Values::Even(Zero::Codes(grid)) => Meanings::Zeros(grid.by_rows(grid.codes(opened, &rows, groups)?, count, groups)),
            Values::Table(table) => Meanings::Table(table.clone()),
            Values::Tables(grid, entries) if grid.stride[0] == 0 => {
                let mut bytes = Vec::new();
                opened.read(grid.place, 0..grid.place.bytes, &mut bytes)?;
                Meanings::Tables(grid.decode(opened, &bytes)?.repeat(count * groups), *entries)
            }
            Values::Tables(grid, entries) => Meanings::Tables(grid.scales(opened, &rows, groups * entries)?, *entries),
        };
        Ok(Tile {
            columns: self.columns,
            group: self.group,
            codes: self.row_codes(opened, &rows, groups)?,
            turned: self.codes.is_turned(),
            scales: self.scale.load(opened, &rows, groups)?,
            meanings,
            rows,
        })
    }

    /// Codes of `rows`; what fills the last group of codes that are looked up is left out.
    fn row_codes(&self, opened: &Opened, rows: &Range<usize>, groups: usize) -> Result<Vec<u8>> {
        let held = groups * self.group;
        if self.codes.is_turned()
            || self.codes.stride[0] != held
            || held == self.columns
            || matches!(self.values, Values::Even(_))
        {
            return self.codes.codes(opened, rows, self.columns);
        }
        let codes = self.codes.codes(opened, rows, held)?;
        Ok(codes.chunks(held).flat_map(|row| &row[..self.columns]).copied().collect())
    }
}

impl Scale<'_> {
    /// `[rows, groups]`.
    fn load(&self, opened: &Opened, rows: &Range<usize>, groups: usize) -> Result<Vec<f32>> {
        let Some(grid) = &self.grid else { return Ok(vec![1.0; rows.len() * groups]) };
        let mut scales = grid.by_rows(grid.scales(opened, rows, groups)?, rows.len(), groups);
        if let Some(over) = &self.over {
            let over = over.by_rows(over.scales(opened, rows, 1)?, rows.len(), 1);
            for (scales, over) in scales.chunks_mut(groups).zip(over) {
                scales.iter_mut().for_each(|scale| *scale *= over);
            }
        }
        Ok(scales)
    }
}

impl Tile {
    /// `rows`, counted from the tile's first, as f32: `out` is `[rows, columns]`.
    pub(super) fn decode(&self, rows: Range<usize>, out: &mut [f32]) {
        let mut turned = Vec::new();
        let codes = match self.turned {
            true => {
                self.turn(&rows, &mut turned);
                &turned
            }
            false => &self.codes[rows.start * self.columns..rows.end * self.columns],
        };
        let groups = self.columns.div_ceil(self.group);
        for (i, (codes, out)) in codes.chunks(self.columns).zip(out.chunks_mut(self.columns)).enumerate() {
            let shared = (rows.start + i) * groups;
            for (g, (codes, out)) in codes.chunks(self.group).zip(out.chunks_mut(self.group)).enumerate() {
                let scale = self.scales[shared + g];
                let table = match &self.meanings {
                    Meanings::Zeros(zeros) => {
                        let zero = i32::from(zeros[shared + g]);
                        codes.iter().zip(out).for_each(|(code, out)| *out = (i32::from(*code) - zero) as f32 * scale);
                        continue;
                    }
                    Meanings::Table(table) => table,
                    Meanings::Tables(tables, entries) => &tables[(shared + g) * entries..][..*entries],
                };
                for (code, out) in codes.iter().zip(out) {
                    *out = table.get(usize::from(*code)).copied().unwrap_or(f32::NAN) * scale;
                }
            }
        }
    }

    fn turn(&self, rows: &Range<usize>, out: &mut Vec<u8>) {
        let all = self.rows.len();
        out.resize(rows.len() * self.columns, 0);
        for columns in chunks(self.columns, 64) {
            for (i, out) in out.chunks_mut(self.columns).enumerate() {
                for (out, codes) in out[columns.clone()].iter_mut().zip(self.codes[columns.start * all..].chunks(all)) {
                    *out = codes[rows.start + i];
                }
            }
        }
    }
}
