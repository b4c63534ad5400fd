//! The numbers in a program's tensors.

use serde::{Deserialize, Serialize};

use crate::{
    Element, Program, TensorId,
    fixed::Rescale,
    program::{Column, Role, Tensor},
};

/// The numbers of a tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Data {
    /// Row by row.
    Numbers(Vec<i32>),
    /// Codes `[out, in]`, and the scales `[out, in / group]` of their groups, if they have any.
    Weight {
        /// In the range of the element's code.
        codes: Vec<i8>,
        /// int8.
        scales: Vec<i8>,
    },
    /// Rescalings of output columns.
    Columns(Vec<Column>),
}

impl Data {
    /// Row by row.
    ///
    /// # Panics
    /// If these are no plain numbers.
    pub fn numbers(&self) -> &[i32] {
        match self {
            Data::Numbers(numbers) => numbers,
            _ => panic!("these are weights or columns"),
        }
    }
}

/// Bits of a code within a weight's element: those of a run less the 8 bits of its scale.
pub(crate) fn code_bits(element: Element) -> u32 {
    if element.per == 1 { element.bits } else { element.bits.saturating_sub(8) / element.per.max(1) }
}

/// The bytes of a box of a tensor, as a tile of it is stored and moved. `rows` and `columns` are half-open.
pub(crate) fn pack(tensor: &Tensor, data: &Data, rows: [u64; 2], columns: [u64; 2]) -> Vec<u8> {
    let (width, per) = (tensor.columns as usize, tensor.element.per as usize);
    let (rows, columns) = (rows[0] as usize..rows[1] as usize, columns[0] as usize..columns[1] as usize);
    match data {
        Data::Numbers(numbers) => {
            let bytes = (tensor.element.bits / 8) as usize;
            let row = |row: usize| &numbers[row * width..][columns.clone()];
            rows.flat_map(|r| row(r).iter().flat_map(move |x| x.to_le_bytes().into_iter().take(bytes))).collect()
        }
        Data::Weight { codes, scales } => {
            let mut bits = Bits::default();
            for row in rows.clone() {
                codes[row * width..][columns.clone()].iter().for_each(|code| bits.push(*code, code_bits(tensor.element)));
            }
            let mut bytes = bits.bytes;
            if per > 1 {
                let groups = columns.start / per..columns.end.div_ceil(per);
                for row in rows {
                    bytes.extend(scales[row * width.div_ceil(per)..][groups.clone()].iter().map(|s| *s as u8));
                }
            }
            bytes
        }
        Data::Columns(all) => all[columns].iter().flat_map(column_bytes).collect(),
    }
}

fn column_bytes(column: &Column) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..4].copy_from_slice(&column.rescale.multiplier.to_le_bytes());
    bytes[4..8].copy_from_slice(&column.bias.to_le_bytes());
    bytes[8] = column.rescale.shift;
    bytes[9] = column.coarser;
    bytes
}

/// One column from its 10 bytes.
pub(crate) fn column(bytes: &[u8]) -> Column {
    let word = |at: usize| i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    // A shift beyond 62 is no shift of ours: the byte was damaged. It is kept in range so that the comparison fails, not the run.
    Column { rescale: Rescale { multiplier: word(0), shift: bytes[8].clamp(1, 62) }, bias: word(4), coarser: bytes[9].min(30) }
}

#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    used: u32,
}

impl Bits {
    fn push(&mut self, code: i8, bits: u32) {
        for bit in 0..bits {
            if self.used.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let last = self.bytes.len() - 1;
            self.bytes[last] |= (((code >> bit) & 1) as u8) << (self.used % 8);
            self.used += 1;
        }
    }
}

/// The codes of a packed tile, sign-extended.
pub(crate) fn codes(bytes: &[u8], bits: u32, count: usize) -> Vec<i32> {
    let read = |at: usize| {
        let mut code = 0i32;
        for bit in 0..bits as usize {
            let place = at * bits as usize + bit;
            code |= i32::from(bytes[place / 8] >> (place % 8) & 1) << bit;
        }
        (code << (32 - bits)) >> (32 - bits)
    };
    match bits {
        8 => bytes[..count].iter().map(|b| i32::from(*b as i8)).collect(),
        _ => (0..count).map(read).collect(),
    }
}

/// Numbers of 8, 16 or 32 bits.
pub(crate) fn numbers(bytes: &[u8], bits: u32) -> Vec<i32> {
    match bits {
        8 => bytes.iter().map(|b| i32::from(*b as i8)).collect(),
        16 => bytes.chunks_exact(2).map(|b| i32::from(i16::from_le_bytes([b[0], b[1]]))).collect(),
        _ => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    }
}

/// The numbers of all tensors of a program; zeros until they are set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Memory(Vec<Data>);

impl Memory {
    /// All zeros.
    pub fn new(program: &Program) -> Memory {
        Memory(program.tensors.iter().map(zeros).collect())
    }

    /// What a tensor holds.
    pub fn get(&self, id: TensorId) -> &Data {
        &self.0[id.0 as usize]
    }

    /// Gives a tensor its numbers.
    pub fn set(&mut self, id: TensorId, data: Data) {
        self.0[id.0 as usize] = data;
    }

    /// What all tensors hold, in order.
    pub(crate) fn all(&self) -> &[Data] {
        &self.0
    }

    /// The first tensor of a program for which this has other numbers, or not as many as it has room for.
    pub(crate) fn misfit<'p>(&self, program: &'p Program) -> Option<&'p str> {
        let fits = |(tensor, data): (&Tensor, Option<&Data>)| {
            let count = tensor.rows.checked_mul(tensor.columns);
            let is = |found: usize, wanted: Option<u64>| wanted == Some(found as u64);
            let groups = |per: u32| if per > 1 { tensor.columns.div_ceil(u64::from(per)) } else { 0 };
            match (tensor.role, data) {
                (Role::Weight, Some(Data::Weight { codes, scales })) => {
                    is(codes.len(), count) && is(scales.len(), tensor.rows.checked_mul(groups(tensor.element.per)))
                }
                (Role::Constant, Some(Data::Columns(columns))) => tensor.element == Column::ELEMENT && is(columns.len(), count),
                (Role::Weight, _) => false,
                (_, Some(Data::Numbers(numbers))) => tensor.element != Column::ELEMENT && is(numbers.len(), count),
                _ => false,
            }
        };
        let data = (0..program.tensors.len()).map(|at| self.0.get(at));
        program.tensors.iter().zip(data).find(|pair| !fits(*pair)).map(|(tensor, _)| tensor.name.as_str())
    }

    pub(crate) fn numbers_mut(&mut self, id: TensorId) -> &mut [i32] {
        match &mut self.0[id.0 as usize] {
            Data::Numbers(numbers) => numbers,
            _ => panic!("only numbers are written"),
        }
    }
}

fn zeros(tensor: &Tensor) -> Data {
    let count = (tensor.rows * tensor.columns) as usize;
    match tensor.role {
        Role::Weight => {
            let groups = if tensor.element.per > 1 { tensor.columns.div_ceil(u64::from(tensor.element.per)) } else { 0 };
            Data::Weight { codes: vec![0; count], scales: vec![0; (tensor.rows * groups) as usize] }
        }
        Role::Constant if tensor.element == Column::ELEMENT => {
            Data::Columns(vec![Column { rescale: Rescale { multiplier: 0, shift: 1 }, bias: 0, coarser: 0 }; count])
        }
        _ => Data::Numbers(vec![0; count]),
    }
}
