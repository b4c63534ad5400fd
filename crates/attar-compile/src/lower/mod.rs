//! From a kernel and its tiles to the code of a body.

mod attention;
mod entry;
mod gated_mlp;
mod linear;
mod norm;

pub use attention::AttentionTiles;
pub use entry::Entry;
pub use gated_mlp::GatedMlpTiles;
pub use linear::LinearTiles;
pub use norm::NormTiles;

use crate::{
    Element, TensorId,
    plan::{Body, Buffer, Compute, Constant, Extent, Finish, Operand, Place, Region, Slots, Span, Statement, View},
    program::Epilogue,
};

/// How a kernel is tiled, and which of its tensors stay on the chip.
#[expect(clippy::large_enum_variant, reason = "there is one for each kernel")]
#[derive(Clone, Debug, PartialEq)]
pub enum Tiles {
    /// Of a norm.
    Norm(NormTiles),
    /// Of a product.
    Linear(LinearTiles),
    /// Of attention.
    Attention(AttentionTiles),
    /// Of a gated MLP.
    GatedMlp(GatedMlpTiles),
}

impl Tiles {
    /// How many times each row is normed.
    pub fn norms(&self) -> u64 {
        match self {
            Tiles::Norm(_) => 1,
            Tiles::Linear(tiles) => tiles.norms(),
            Tiles::Attention(_) => 0,
            Tiles::GatedMlp(tiles) => u64::from(tiles.piece.is_some()),
        }
    }
}

/// A body under construction, with the tensors of its operands.
struct Builder {
    name: String,
    align: u64,
    operands: Vec<TensorId>,
    buffers: Vec<Buffer>,
    constants: Vec<Constant>,
}

/// Where an operand begins in its tensor: see [`Operand`].
#[derive(Clone, Copy)]
struct First {
    row: u64,
    position: u64,
    beside: u64,
}

impl Default for First {
    fn default() -> First {
        First { row: 0, position: 0, beside: 1 }
    }
}

/// The code of a kernel: a body, and the tensors and constants that it is applied to.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// The code.
    pub body: Body,
    /// Which tensor each operand is, from which row on.
    pub operands: Vec<Operand>,
    /// What its code names by index.
    pub constants: Vec<Constant>,
}

impl Lowered {
    /// The buffers that are filled by the queue of weight loads: from tensors that `constant` names.
    pub fn weight_buffers(&self, constant: &dyn Fn(TensorId) -> bool) -> Vec<u32> {
        fn walk(code: &[Statement], found: &mut dyn FnMut(u32, u32)) {
            for statement in code {
                match statement {
                    Statement::Loop { body, .. } => walk(body, found),
                    Statement::Load { buffer, operand, .. } => found(*buffer, *operand),
                    _ => {}
                }
            }
        }
        let mut buffers = Vec::new();
        walk(&self.body.code, &mut |buffer, operand| {
            if constant(TensorId(self.operands[operand as usize].tensor)) && !buffers.contains(&buffer) {
                buffers.push(buffer);
            }
        });
        buffers
    }
}

impl Builder {
    fn new(name: &str, align: u64) -> Builder {
        Builder { name: name.into(), align, operands: Vec::new(), buffers: Vec::new(), constants: Vec::new() }
    }

    fn operand(&mut self, tensor: TensorId) -> u32 {
        self.operands.push(tensor);
        self.operands.len() as u32 - 1
    }

    /// A ring buffer of `slots` slots of `bytes` each.
    fn ring(&mut self, name: &str, element: Element, slots: u64, bytes: u64) -> u32 {
        let bytes = bytes.next_multiple_of(self.align) * slots;
        self.buffer(Buffer { name: name.into(), bytes, slots: Slots::Ring(slots), element })
    }

    /// A packed buffer: boxes one after another; `bytes` includes their alignment.
    fn packed(&mut self, name: &str, element: Element, bytes: u64) -> u32 {
        self.buffer(Buffer { name: name.into(), bytes, slots: Slots::Packed, element })
    }

    fn buffer(&mut self, buffer: Buffer) -> u32 {
        self.buffers.push(buffer);
        self.buffers.len() as u32 - 1
    }

    fn done(self, code: Vec<Statement>, first: &dyn Fn(usize) -> First) -> Lowered {
        let operand = |(at, id): (usize, &TensorId)| {
            let First { row, position, beside } = first(at);
            Operand { tensor: id.0, row, position, beside }
        };
        let operands: Vec<Operand> = self.operands.iter().enumerate().map(operand).collect();
        let body = Body { name: self.name, operands: operands.len() as u32, buffers: self.buffers, code };
        Lowered { body, operands, constants: self.constants }
    }

    fn constant(&mut self, constant: Constant) -> u32 {
        self.constants.push(constant);
        self.constants.len() as u32 - 1
    }

    fn finish(&mut self, epilogue: &Epilogue) -> Finish {
        let (finish, constant) = Finish::new(epilogue, self.constants.len() as u32);
        self.constants.extend(constant);
        finish
    }
}

fn region(rows: Span, columns: Span) -> Region {
    Region { rows, columns }
}

fn at_buffer(buffer: u32, region: Region) -> View {
    View { place: Place::Buffer(buffer), region }
}

fn at_operand(operand: u32, region: Region) -> View {
    View { place: Place::Operand(operand), region }
}

fn load(buffer: u32, operand: u32, region: Region) -> Statement {
    Statement::Load { buffer, operand, region }
}

fn wait(buffer: u32, region: Region) -> Statement {
    Statement::Wait { buffer, region }
}

fn release(buffer: u32) -> Statement {
    Statement::Release { buffer }
}

fn open(buffer: u32, region: Region) -> Statement {
    Statement::Open { buffer, region }
}

fn compute(compute: Compute) -> Statement {
    Statement::Compute(compute)
}

/// A loop over tiles `from..to` of a count.
fn tiles(variable: u8, count: u64, tile: u64, [from, to]: [u64; 2], body: Vec<Statement>) -> Statement {
    Statement::Loop { variable, extent: Extent::Count(count), tile, tiles: [from, to], body }
}
