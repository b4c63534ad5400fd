//! The plan: everything that the queues of a device do in one run, as data.
//!
//! A [`Plan`] is a list of [`Call`]s of [`Body`]s. A body is written once for all kernels of the same shape; a call says
//! which tensors it works on and where its buffers lie. A body is a nest of loops over tiles; its statements belong to four
//! queues that run in order, each on its own:
//!
//! | queue | statements |
//! |---|---|
//! | activation loads, weight loads | `load`: fills the next slot of a buffer, once that is released |
//! | compute | `wait` until a box is loaded, `release` the oldest load; `open` the next slot of a result, once it is stored; all arithmetic |
//! | stores | `store`: writes what compute has just finished |
//!
//! Between calls all queues wait for each other, except weight loads whose buffers the call declares free. All coordinates are
//! those of tensors: a view names a box, and the simulator checks that it was loaded.

mod at;
mod file;
mod image;
mod nest;
mod text;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::{
    Element, Memory, Program, TensorId,
    fixed::Rescale,
    program::{Epilogue, Mask, Norm, Range, Role, normed_columns},
    rates::Rates,
};

pub use file::{MAGIC, Proof, VERSION};

/// Everything a device needs to run a program once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The device it was made for.
    pub device: String,
    /// What it computes: `prefill: 128 tokens, empty cache`.
    pub title: String,
    /// Bytes of on-chip memory that it was made for.
    pub sram: u64,
    /// Alignment of every buffer.
    pub align: u64,
    /// Rates and energies of the device, for predictions.
    pub rates: Rates,
    /// All tensors of the program, with their addresses.
    pub tensors: Vec<Placed>,
    /// Code, each used by at least one call.
    pub bodies: Vec<Body>,
    /// In running order.
    pub calls: Vec<Call>,
}

/// A memory of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Space {
    /// On the chip.
    Sram,
    /// Off the chip.
    Dram,
    /// Read-only, for weights that do not fit in DRAM.
    Flash,
}

/// A tensor with its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// As in the program.
    pub name: String,
    /// As in the program.
    pub rows: u64,
    /// As in the program.
    pub columns: u64,
    /// As in the program.
    pub element: Element,
    /// As in the program.
    pub role: Role,
    /// Its memory.
    pub space: Space,
    /// Address of its first byte.
    pub address: u64,
    /// Rows and columns of the tiles that a weight is stored in: columns of tiles first, from the top. `None` by rows.
    pub tile: Option<[u64; 2]>,
}

/// How the bytes of a buffer are allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Slots {
    /// This many equal slots, used in turn.
    Ring(u64),
    /// Boxes one after another, each at the next aligned byte; all are released together.
    Packed,
}

/// A buffer of a body on the chip.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Buffer {
    /// For people.
    pub name: String,
    /// All of it, a multiple of the plan's alignment for each slot.
    pub bytes: u64,
    /// How its bytes are allocated.
    pub slots: Slots,
    /// How its numbers are stored.
    pub element: Element,
}

/// The code of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Body {
    /// For people.
    pub name: String,
    /// Number of operands of a call.
    pub operands: u32,
    /// Its buffers on the chip.
    pub buffers: Vec<Buffer>,
    /// Its statements.
    #[serde(with = "nest")]
    pub code: Vec<Statement>,
}

/// A body applied to tensors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The kernel's name.
    pub name: String,
    /// Index of the body.
    pub body: u32,
    /// The tensors.
    pub operands: Vec<Operand>,
    /// Address of the first byte of every buffer.
    pub offsets: Vec<u64>,
    /// Constants of this layer, which the code names by index.
    pub constants: Vec<Constant>,
    /// Whether weight loads wait for the previous calls; not needed where their buffers were free.
    pub fence_weights: bool,
}

/// A constant that the code names by index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Constant {
    /// See [`crate::program::Norm`].
    Norm {
        /// Added to the sum of squares.
        epsilon: u64,
        /// Fractional bits of the gains.
        gain_shift: u32,
        /// Whether the mean of a row is taken off, and a bias added.
        centered: bool,
    },
    /// Of [`Epilogue::Rotary`].
    Ranges(Vec<Range>),
    /// Of [`Epilogue::Gated`] and of [`Epilogue::Activated`].
    Gate {
        /// Of codes of the gate.
        table: Vec<i16>,
        /// To the output.
        rescale: Rescale,
    },
    /// To logits in base 2, or from weighted means to the output.
    Rescale(Rescale),
}

impl Constant {
    /// Of a norm.
    pub fn of(norm: &Norm) -> Constant {
        Constant::Norm { epsilon: norm.epsilon, gain_shift: norm.gain_shift, centered: norm.centered }
    }
}

/// A tensor, starting at a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operand {
    /// Index into the plan's tensors.
    pub tensor: u32,
    /// Its row 0.
    pub row: u64,
    /// Rows for each token before the run, where row 0 is that of the run's first token: [`Plan::at`] moves it. 0 where it stays.
    pub position: u64,
    /// Rows of the tensor that are one row of the operand, side by side: those of a batch of sequences, or 1.
    pub beside: u64,
}

/// A range of rows or columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Span {
    /// Always the same.
    Fixed {
        /// The first.
        start: u64,
        /// How many.
        length: u64,
    },
    /// The tile that a loop is at, every step of it `unit` wide.
    Tile {
        /// Which loop.
        variable: u8,
        /// Added to the start.
        base: u64,
        /// Multiplies start and length.
        unit: u64,
    },
}

impl Span {
    /// The tile of a loop.
    pub fn tile(variable: u8) -> Span {
        Span::Tile { variable, base: 0, unit: 1 }
    }

    /// From the start.
    pub fn all(length: u64) -> Span {
        Span::Fixed { start: 0, length }
    }
}

/// A box of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    /// Rows.
    pub rows: Span,
    /// Columns.
    pub columns: Span,
}

/// A box in on-chip memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct View {
    /// Where.
    pub place: Place,
    /// In the coordinates of the tensor that lies there.
    pub region: Region,
}

/// Where a box is on the chip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Place {
    /// In a buffer.
    Buffer(u32),
    /// An operand that is kept on the chip.
    Operand(u32),
}

/// The range of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Extent {
    /// From 0 to a count.
    Count(u64),
    /// The keys that the rows of an outer loop's tile see.
    Keys {
        /// Which loop.
        rows: u8,
        /// Keys before the first row's own.
        past: u64,
        /// Which keys a row sees.
        mask: Mask,
    },
    /// The rows of an outer loop's tile themselves; the tile of this loop divides that loop's.
    Rows {
        /// Which loop.
        rows: u8,
    },
    /// The keys that any of the run's rows sees.
    AllKeys {
        /// Rows of the run.
        rows: u64,
        /// Keys before the first row's own.
        past: u64,
        /// Which keys a row sees.
        mask: Mask,
    },
}

/// A statement of a body.
#[expect(clippy::large_enum_variant, reason = "a plan has a few hundred statements")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Statement {
    /// `for variable in extent by tile`. The last tile may be smaller.
    Loop {
        /// Unique along the nest.
        variable: u8,
        /// The range.
        extent: Extent,
        /// Steps per tile.
        tile: u64,
        /// The first tile and one past the last, of those that the extent has.
        tiles: [u64; 2],
        /// Done for each tile.
        #[serde(skip)]
        body: Vec<Statement>,
    },
    /// Loads a box into the next slot of a ring, or after what a packed buffer holds.
    Load {
        /// The buffer.
        buffer: u32,
        /// The source.
        operand: u32,
        /// The box.
        region: Region,
    },
    /// Waits until a box is loaded.
    Wait {
        /// The buffer.
        buffer: u32,
        /// The box.
        region: Region,
    },
    /// Releases the oldest slot of a ring, or all of a packed buffer.
    Release {
        /// The buffer.
        buffer: u32,
    },
    /// Opens the next slot of a buffer for a box of a result. Nothing is written yet.
    Open {
        /// The buffer.
        buffer: u32,
        /// The box that it will hold.
        region: Region,
    },
    /// Stores the slot that was opened last, or that was loaded and updated in place, which this releases. Operands are side by
    /// side.
    Store {
        /// The buffer.
        buffer: u32,
        /// The destinations: operands with the first column of each.
        operands: Vec<(u32, u64)>,
        /// The box, in the columns of all of them.
        region: Region,
    },
    /// Arithmetic.
    Compute(Compute),
}

/// Arithmetic on boxes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Compute {
    /// `sums[m, n] += x[m, k] w[n, k]^T`, from zero in the first step of `first`.
    Multiply {
        /// int8 or int16.
        x: View,
        /// Codes.
        w: View,
        /// int32, or int64 of int16.
        sums: View,
        /// The loop over `k`; without one there is one step.
        first: Option<u8>,
    },
    /// `out = epilogue(sums)`.
    Finish {
        /// int32 or int64.
        sums: View,
        /// Of the columns.
        columns: View,
        /// The extra operand of the epilogue, if it has one: residual or rotary table.
        extra: Option<View>,
        /// The result.
        out: View,
        /// See [`crate::program::Linear::narrow`].
        narrow: u8,
        /// The epilogue.
        finish: Finish,
    },
    /// Rows of a norm.
    Norm {
        /// int16.
        x: View,
        /// int32, with what else [`crate::program::Norm::gains`] holds.
        gains: View,
        /// int16, added to the result.
        residual: Option<View>,
        /// int8 or int16.
        out: View,
        /// [`Constant::Norm`].
        constant: u32,
    },
    /// `sums` and `softmax` of query rows take the keys and values of a tile.
    Attend {
        /// `[tokens, group * head]`.
        query: View,
        /// `[keys, head]`.
        key: View,
        /// `[keys, head]`.
        value: View,
        /// int32, like `query`.
        sums: View,
        /// Exponent and sum of every token and head of the group: `[tokens, 2 * group]` int32.
        softmax: View,
        /// Its constants.
        attend: Attend,
    },
    /// `out = sums / softmax`.
    Attended {
        /// As before.
        sums: View,
        /// As before.
        softmax: View,
        /// int8.
        out: View,
        /// Columns of a head.
        head: u64,
        /// [`Constant::Rescale`], to the output.
        constant: u32,
    },
}

/// The constants of an attention step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attend {
    /// Columns of a head.
    pub head: u64,
    /// Keys before the first row's own.
    pub past: u64,
    /// Which keys a row sees.
    pub mask: Mask,
    /// Fractional bits of the weights of keys.
    pub weight_bits: u8,
    /// [`Constant::Rescale`], to logits in base 2.
    pub constant: u32,
    /// The loop over keys, in whose first step sums begin at zero; without one there is one step.
    pub first: Option<u8>,
}

/// What [`Compute::Finish`] does: [`Epilogue`] without its tensors and numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// [`Epilogue::Rescale`].
    Rescale,
    /// [`Epilogue::Add`].
    Add,
    /// [`Epilogue::Activated`].
    Activated {
        /// [`Constant::Gate`].
        constant: u32,
    },
    /// [`Epilogue::Rotary`].
    Rotary {
        /// Columns of a head.
        head: u64,
        /// Number of columns whose heads are normed.
        normed: u64,
        /// Number of columns that are rotated.
        rotated: u64,
        /// [`Constant::Ranges`].
        constant: u32,
    },
    /// [`Epilogue::Gated`].
    Gated {
        /// [`Constant::Gate`].
        constant: u32,
    },
}

impl Finish {
    /// The finish of an epilogue, with its constant, which gets the number `constant`.
    pub fn new(epilogue: &Epilogue, constant: u32) -> (Finish, Option<Constant>) {
        match epilogue {
            Epilogue::Rescale => (Finish::Rescale, None),
            Epilogue::Add { .. } => (Finish::Add, None),
            Epilogue::Activated { table, rescale } => {
                (Finish::Activated { constant }, Some(Constant::Gate { table: table.clone(), rescale: *rescale }))
            }
            Epilogue::Rotary { head, rotated, ranges, .. } => {
                let normed = normed_columns(ranges);
                (Finish::Rotary { head: *head, normed, rotated: *rotated, constant }, Some(Constant::Ranges(ranges.clone())))
            }
            Epilogue::Gated { table, rescale } => {
                (Finish::Gated { constant }, Some(Constant::Gate { table: table.clone(), rescale: *rescale }))
            }
        }
    }

    /// Accumulator columns for each column of the result.
    pub fn pairs(&self) -> u64 {
        match self {
            Finish::Gated { .. } => 2,
            _ => 1,
        }
    }
}

/// Rows, columns and bits of a row that a tensor of a file may have: products of them do not overflow.
const LARGEST: u64 = 1 << 28;

impl Plan {
    /// The numbers that a run finds: weights and constants as `image` has the bytes of a memory from an address on, zeros elsewhere.
    ///
    /// # Errors
    /// Those of `image`.
    pub fn memory<E>(&self, image: &mut dyn FnMut(Space, u64, u64) -> Result<Vec<u8>, E>) -> Result<Memory, E> {
        let tensors = self.tensors.iter().map(Placed::tensor).collect();
        let mut memory = Memory::new(&Program { tensors, ..Program::default() });
        for (id, tensor) in (0..).map(TensorId).zip(&self.tensors) {
            if matches!(tensor.role, Role::Weight | Role::Constant) {
                memory.set(id, tensor.read(&image(tensor.space, tensor.address, tensor.bytes())?));
            }
        }
        Ok(memory)
    }
}

impl Placed {
    /// Whether its bytes can be counted: no tile is empty, and no size is beyond any model's.
    pub(super) fn is_possible(&self) -> bool {
        let bits = u64::from(self.element.bits);
        let sizes = [self.rows, self.columns].into_iter().chain(self.tile.into_iter().flatten());
        let small = sizes.chain([bits]).all(|size| size <= LARGEST);
        let tiles = self.tile.into_iter().flatten().all(|size| size > 0);
        small && tiles && self.rows.checked_mul(self.columns).and_then(|n| n.checked_mul(bits)).is_some()
    }

    /// With so many of its rows as one. Bytes stay where they are.
    pub(crate) fn side_by_side(&self, rows: u64) -> Cow<'_, Placed> {
        match rows {
            0 | 1 => Cow::Borrowed(self),
            _ => Cow::Owned(Placed { rows: self.rows / rows, columns: self.columns.saturating_mul(rows), ..self.clone() }),
        }
    }

    /// Bytes that it takes in memory.
    pub fn bytes(&self) -> u64 {
        match self.tile {
            None => self.element.bytes(self.columns) * self.rows,
            Some([rows, columns]) => {
                let (full, rest) = (self.rows / rows, self.rows % rows);
                let across = |rows: u64| {
                    let whole = self.columns / columns * self.element.bytes(rows * columns);
                    whole + self.element.bytes(rows * (self.columns % columns))
                };
                full * across(rows) + across(rest)
            }
        }
    }
}
