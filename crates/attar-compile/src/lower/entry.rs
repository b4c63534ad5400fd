//! A norm at the entry of a product: rows are loaded in int16 and normed on the chip, where the product reads them.
//!
//! With rows outermost, each block of rows is normed once, a few rows at a time, into an int8 panel that the product holds
//! anyway; this takes room for two such pieces. With columns outermost, each tile of rows is loaded and normed again for each
//! tile of columns: recomputation replaces the store of a separate norm and the loads of the product.

use super::{Builder, at_buffer, at_operand, compute, load, open, region, release, wait};
use crate::{
    Element, Program,
    plan::{Compute, Constant, Extent, Region, Span, Statement, View},
    program::Norm,
    tile::Limits,
};

/// The loop over the pieces of a block of rows.
const PIECE: u8 = 3;

/// How a product norms what it reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Rows outermost: once.
    Once {
        /// Rows at a time.
        rows: u64,
    },
    /// Columns outermost: once for each tile of columns.
    Again {
        /// So many at most.
        times: u64,
    },
}

impl Entry {
    /// The ways worth trying for rows of `width` numbers: once, and again. Where rows are on the chip, the search for tiles
    /// does not see that more tiles of columns cost anything, so that few of them are tried, too.
    pub(crate) fn all(limits: &Limits, width: u64, on_chip: bool) -> Vec<Entry> {
        let few: &[u64] = if on_chip { &[2, 4, 8, 16] } else { &[] };
        let again = few.iter().chain([&u64::MAX]).map(|times| Entry::Again { times: *times });
        std::iter::once(Entry::Once { rows: Entry::piece(limits, width, on_chip) }).chain(again).collect()
    }

    /// Rows of `width` numbers that are normed at a time where each is normed once: a 64th part of the room.
    pub(super) fn piece(limits: &Limits, width: u64, on_chip: bool) -> u64 {
        let most = limits.sram / 64 / Element::INT16.bytes(width);
        let rows = if on_chip { 1 } else { most.clamp(1, 16) };
        1 << rows.ilog2()
    }

    /// Bytes on the chip in addition to the panel and the constants: two pieces of rows, or one tile of `rows` normed rows.
    pub(super) fn bytes(self, [rows_held, width]: [u64; 2], normed: Element, on_chip: bool, align: u64) -> u64 {
        let slot = |bytes: u64| bytes.next_multiple_of(align);
        match self {
            Entry::Once { .. } if on_chip => 0,
            Entry::Once { rows } => 2 * slot(Element::INT16.bytes(rows * width)),
            Entry::Again { .. } => slot(normed.bytes(rows_held * width)),
        }
    }
}

/// What the code of a norm works on.
#[derive(Clone, Copy)]
pub(super) struct Norming {
    /// Operand of the int16 rows.
    pub(super) x: u32,
    /// Pieces of them come here, so many rows at a time; nowhere if they are on the chip.
    pieces: Option<(u32, u64)>,
    gains: Gains,
    /// Where normed rows lie.
    normed: u32,
    constant: u32,
    width: u64,
}

/// The constants of the channels.
#[derive(Clone, Copy)]
struct Gains {
    operand: u32,
    buffer: u32,
    region: Region,
}

impl Norming {
    /// Room for `held` normed rows, and for `pieces` rows on their way.
    pub(super) fn new(builder: &mut Builder, program: &Program, norm: &Norm, held: u64, pieces: Option<u64>) -> Norming {
        let [x, gains] = [norm.x, norm.gains].map(|id| builder.operand(id));
        let (width, out) = (program.get(norm.x).columns, program.get(norm.out).element);
        let gains_buffer = builder.ring("gains", Element::INT32, 1, program.get(norm.gains).bytes());
        let pieces = pieces.map(|rows| (builder.ring("x", Element::INT16, 2, Element::INT16.bytes(rows * width)), rows));
        let normed = builder.ring("normed", out, 1, out.bytes(held * width));
        let constant = builder.constant(Constant::of(norm));
        let gains = Gains { operand: gains, buffer: gains_buffer, region: region(Span::all(norm.constants()), Span::all(width)) };
        Norming { x, pieces, gains, normed, constant, width }
    }

    /// Before all loops.
    pub(super) fn start(&self) -> [Statement; 2] {
        let Gains { operand, buffer, region } = self.gains;
        [load(buffer, operand, region), wait(buffer, region)]
    }

    /// Behind them.
    pub(super) fn end(&self) -> Statement {
        release(self.gains.buffer)
    }

    fn all(&self) -> Span {
        Span::all(self.width)
    }

    /// Normed rows as a product sees them.
    pub(super) fn view(&self, rows: Span, columns: Span) -> View {
        at_buffer(self.normed, region(rows, columns))
    }

    /// Rows of int16 on the chip, or where `buffer` has them.
    pub(super) fn wide(&self, buffer: Option<u32>, rows: Span) -> View {
        let place = region(rows, self.all());
        buffer.map_or(at_operand(self.x, place), |buffer| at_buffer(buffer, place))
    }

    /// The rows that `x` shows become normed ones.
    fn norm(&self, x: View, rows: Span) -> Statement {
        let gains = at_buffer(self.gains.buffer, self.gains.region);
        compute(Compute::Norm { x, gains, residual: None, out: self.view(rows, self.all()), constant: self.constant })
    }

    /// All rows that `x` shows.
    pub(super) fn tile(&self, x: View) -> [Statement; 2] {
        [open(self.normed, x.region), self.norm(x, x.region.rows)]
    }

    /// The rows of a loop's tile: as they lie on the chip, or piece by piece.
    pub(super) fn panel(&self, rows: u8) -> Vec<Statement> {
        let Some((buffer, tile)) = self.pieces else { return self.tile(self.wide(None, Span::tile(rows))).to_vec() };
        let piece = self.wide(Some(buffer), Span::tile(PIECE));
        let body = vec![
            load(buffer, self.x, piece.region),
            wait(buffer, piece.region),
            self.norm(piece, Span::tile(PIECE)),
            release(buffer),
        ];
        let pieces = Statement::Loop { variable: PIECE, extent: Extent::Rows { rows }, tile, tiles: [0, u64::MAX], body };
        vec![open(self.normed, region(Span::tile(rows), self.all())), pieces]
    }
}
