//! Tiling of one product `C[m,n] = A[m,k] W[k,n]` for a given SRAM: the tile, the loop order, and what stays resident between
//! uses. Counts are exact: the bytes of [`Tiling::dram`] are those of the transfers of
//! [`Tiling::steps`], tile by tile.
//!
//! It knows nothing of what surrounds the product and places no buffer: it says how many bytes of
//! SRAM are needed. Partial sums never leave the chip: orders that spill
//! them to DRAM are left out, because none is ever best
//! (`cargo test --release -p attar-compile spilling_partial_sums_is_never_best` sweeps 6300 problems).
//!
//! ```
//! use attar_compile::{Element, tile::{Limits, Objective, Product, search}};
//! let product = Product::new(512, 576, 1536, Element::INT8, Element::INT4);
//! let tiling = search(&product, &Limits::of(256 << 10), &Objective::BYTES).unwrap();
//! assert!(tiling.sram <= 256 << 10 && tiling.dram.total() >= product.compulsory().total());
//! ```

mod axis;
mod cost;
mod search;
mod walk;

pub use cost::{Cost, Rates};
pub(crate) use search::{Among, Nests, Stage, pareto_by, search_among};
pub use search::{EQUAL, Objective, candidates, pareto, search};
pub use walk::{Slot, Step, Steps, TileUse};

use crate::Element;

/// `C[m,n] = A[m,k] W[k,n]`: the sizes, how each number is stored, and what a tile must be a multiple of. Sizes and
/// units are at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Rows of A and C: tokens.
    pub m: u64,
    /// What is summed over: input features.
    pub k: u64,
    /// Columns of W and C: output features.
    pub n: u64,
    /// Activations. A tile of A is moved as whole bytes.
    pub a: Element,
    /// Weights, stored in DRAM tile by tile, each tile padded to whole bytes.
    pub w: Element,
    /// Outputs as they are stored. `bits: 0` is an output that stays on chip: it is not stored, and whoever keeps it
    /// counts its bytes.
    pub c: Element,
    /// Sums under way, on chip.
    pub partial: Element,
    /// A tile is a multiple of these in m, k and n, or it is the whole dimension: array alignment, head width,
    /// quantization group.
    pub unit: [u64; 3],
}

impl Product {
    /// A product of `a` and `w` with int8 outputs, int32 sums and tiles of any size.
    pub fn new(m: u64, k: u64, n: u64, a: Element, w: Element) -> Self {
        Product { m, k, n, a, w, c: Element::INT8, partial: Element::INT32, unit: [1; 3] }
    }

    /// The same with tiles that are multiples of `unit` (m, k, n).
    pub fn aligned(self, unit: [u64; 3]) -> Self {
        Product { unit, ..self }
    }

    /// Multiply-accumulates.
    pub fn macs(&self) -> u64 {
        self.m * self.k * self.n
    }

    /// What moves when each operand is read once whole and the output written once.
    pub fn compulsory(&self) -> Traffic {
        Traffic { a: self.a.bytes(self.m * self.k), w: self.w.bytes(self.k * self.n), c: self.c.bytes(self.m * self.n) }
    }
}

/// What a tiling may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Bytes of SRAM for everything this product holds.
    pub sram: u64,
    /// Every tile's slot starts at a multiple of this many bytes and takes a multiple of it. At least 1.
    pub align: u64,
    /// Whether the next tile is loaded while this one is used.
    pub buffering: Buffering,
    /// Outputs are stored from a buffer of their own rather than from the accumulators: a tile of C, so that the next tile may
    /// start while they leave, or two strips of one (see [`Tiling::strip`]).
    pub staged: bool,
    /// The tiles of k and n that W is stored in already, where it is.
    pub stored: Option<[u64; 2]>,
}

impl Limits {
    /// No alignment, single buffers, outputs stored from the accumulators: the rule of published comparisons.
    pub fn of(sram: u64) -> Self {
        Limits { sram, align: 1, buffering: Buffering::Single, staged: false, stored: None }
    }
}

/// How many slots a streamed operand has. What is resident always has one slot a tile: it is loaded once for each use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Buffering {
    /// One: loads and computation alternate.
    Single,
    /// Two where more than one tile passes through: the next tile is loaded during this one's computation.
    DoubleStreamed,
}

/// The order of the three loops, outermost first. `i`, `l`, `j` number the tiles of m, k and n; `nm`, `nk`, `nn` are how
/// many there are. An operand's tiles are either *kept* (each has its own slot) or *streamed* (they pass through the
/// operand's one or two slots in the order of use). [`Tiling::kept`] says how many are kept, counted in order of use:
///
/// ```text
/// Mnk: for i                             Mkn: for i
///        for j                                  for l
///          accumulators = 0  (tm x tn)            load A[i,l]                       never kept
///          for l                                  for j
///            load A[i,l]     a                      load W[l,j]   w
///            load W[l,j]     w                      accumulators[j] += A W          (tm x n, zeroed at l = 0)
///            accumulators += A W                    store C[i,j] if l is the last
///          store C[i,j]
/// ```
///
/// In Mnk the `kept[0]` first tiles of A's row block (`l < kept[0] <= nk`) are loaded when j = 0; all of them make the whole
/// of k resident (the A panel). The `kept[1]` first tiles of W in order of use (`j*nk + l < kept[1] <= nk*nn` in Mnk,
/// `l*nn + j` in Mkn) are loaded when i = 0; all of them make W resident. A streamed tile is loaded at each use, unless
/// the operand's last loaded tile is this very one (`nk - kept[0] = 1` for A in Mnk: loaded at j = 0 only; one tile left of
/// W: loaded at i = 0 only; A in Mkn: loaded at j = 0 only).
///
/// Nmk and Nkm are the same with A and W, m and n, i and j exchanged:
///
/// ```text
/// Nmk: for j, i, l: W's column block keeps l < kept[1] (all: the W panel), loaded at i = 0;
///                   A keeps i*nk + l < kept[0], loaded at j = 0
/// Nkm: for j, l, i: W[l,j] is loaded at i = 0, never kept; A keeps l*nm + i < kept[0], loaded at j = 0;
///                   accumulators are m x tn
/// ```
///
/// `store C[i,j]` stores the whole tile, or one strip of its rows after the other: see [`Tiling::strip`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Order {
    /// Rows, columns, depth: output stationary. With all of A's row block kept, the A panel.
    Mnk,
    /// Columns, rows, depth: output stationary. With all of W's column block kept, the W panel.
    Nmk,
    /// Rows, depth, columns: the sums of a block of rows stay on chip.
    Mkn,
    /// Columns, depth, rows: the sums of a block of columns stay on chip.
    Nkm,
}

impl Order {
    /// Every order, in the order in which equals are preferred.
    pub const ALL: [Order; 4] = [Order::Mnk, Order::Nmk, Order::Mkn, Order::Nkm];

    /// Whether columns are the outermost loop.
    pub(crate) fn columns_first(self) -> bool {
        matches!(self, Order::Nmk | Order::Nkm)
    }

    /// Whether depth is the innermost loop, so that one tile of sums is enough.
    pub(crate) fn depth_last(self) -> bool {
        matches!(self, Order::Mnk | Order::Nmk)
    }
}

/// Bytes moved between DRAM and SRAM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Traffic {
    /// Loads of A.
    pub a: u64,
    /// Loads of W.
    pub w: u64,
    /// Stores of C.
    pub c: u64,
}

impl Traffic {
    /// All of it.
    pub fn total(self) -> u64 {
        self.a + self.w + self.c
    }
}

/// SRAM bytes by what they hold. Each slot is rounded up to [`Limits::align`] by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Buffers {
    /// A's kept tiles, in their order: tile x of the order's count takes the slot x. An edge tile's slot has the edge's
    /// size in k (and in m where the whole of A is meant); a row block's slots have the size of a full block.
    pub a_kept: u64,
    /// A's streaming slots, each a full tile.
    pub a_streamed: u64,
    /// W's kept tiles.
    pub w_kept: u64,
    /// W's streaming slots, each a full tile.
    pub w_streamed: u64,
    /// Sums: one tile, or a row (column) of tiles, the last of which has the edge's size.
    pub accumulators: u64,
    /// Where [`Limits::staged`] asks for it and C is stored: one tile of C, or two strips of one.
    pub stage: u64,
}

impl Buffers {
    /// All of it: [`Tiling::sram`].
    pub fn total(&self) -> u64 {
        self.a_kept + self.a_streamed + self.w_kept + self.w_streamed + self.accumulators + self.stage
    }
}

/// A tiling of a product, with its cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tiling {
    /// The loops.
    pub order: Order,
    /// tm, tk, tn. Tiles at the end of a dimension are smaller.
    pub tile: [u64; 3],
    /// How many tiles of A and of W have a slot of their own: see [`Order`].
    pub kept: [u64; 2],
    /// Through how many slots the other tiles of A and of W pass: 0 where there are none, else 1 or 2.
    pub slots: [u64; 2],
    /// Rows of a tile of C that are finished and stored at once: tm, or a divisor of it. Strips of fewer rows pass through two
    /// slots, so that the sums of a tile are finished strip by strip, and a strip waits for the store of the one before the last.
    pub strip: u64,
    /// Bytes moved, exact.
    pub dram: Traffic,
    /// Transfers: loads of tiles of A and of W, stores of tiles or strips of C.
    pub transfers: [u64; 3],
    /// What is held: [`Buffers::total`].
    pub sram: u64,
}
