//! The loop nests of [`Order`] step by step, and closed forms of the bytes that they move and hold.

use super::axis::{Axis, grid, leading};
use super::{Buffering, Buffers, Limits, Order, Product, Tiling, Traffic};
use crate::Element;

/// The place of an operand's tile in SRAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// A place of its own: the kept tile of this number, in order of use (see [`Order`]).
    Kept(u64),
    /// The streaming slot of this number.
    Streamed(u64),
}

/// An operand's tile at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TileUse {
    /// Where it is.
    pub slot: Slot,
    /// Whether it is loaded before this step computes. Otherwise it is in SRAM already.
    pub load: bool,
}

/// One tile's multiplication: accumulators of `C[i,j] += A[i,l] W[l,j]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Step {
    /// Tile of m.
    pub i: u64,
    /// Tile of k.
    pub l: u64,
    /// Tile of n.
    pub j: u64,
    /// `A[i,l]`.
    pub a: TileUse,
    /// `W[l,j]`.
    pub w: TileUse,
    /// The accumulator tile: 0 in Mnk and Nmk, j in Mkn, i in Nkm.
    pub accumulator: u64,
    /// The accumulators start from zero in this step (l = 0).
    pub first: bool,
    /// The accumulators are complete after this step (the last l), and `C[i,j]` is stored.
    pub last: bool,
}

impl Tiling {
    /// The tiling with these loops, tiles and counts of kept tiles, and all it moves and holds. Neither [`Limits::sram`] nor
    /// [`Product::unit`] is checked.
    ///
    /// Every tile is between 1 and its dimension; `kept` is within the limits of [`Order`].
    pub fn new(product: &Product, limits: &Limits, order: Order, tile: [u64; 3], kept: [u64; 2]) -> Tiling {
        let nest = Nest::new(product, order, tile, kept);
        let (outer_loads, inner_loads) = (nest.outer_loads(), nest.inner_loads());
        let (outer_slots, inner_slots) = (nest.outer_slots(limits.buffering), nest.inner_slots(limits.buffering));
        let (outer_bytes, inner_bytes) = (nest.outer_bytes(), nest.inner_bytes());
        let (rows, columns) = (Axis { whole: product.m, tile: tile[0] }, Axis { whole: product.n, tile: tile[2] });
        let stores = if product.c.bits == 0 { 0 } else { rows.tiles() * columns.tiles() };
        let mut tiling = Tiling {
            order,
            tile,
            kept,
            slots: swap(order, [outer_slots, inner_slots]),
            strip: tile[0],
            dram: Traffic { a: 0, w: 0, c: grid(product.c, rows, columns, 1) },
            transfers: [0, 0, stores],
            sram: 0,
        };
        [tiling.dram.a, tiling.dram.w] = swap(order, [outer_bytes, inner_bytes]);
        [tiling.transfers[0], tiling.transfers[1]] = swap(order, [outer_loads, inner_loads]);
        tiling.sram = tiling.buffers(product, limits).total();
        tiling
    }

    /// The same with tiles of C that are stored in strips of so many rows, a divisor of a tile's.
    #[must_use]
    pub fn in_strips(mut self, product: &Product, limits: &Limits, rows: u64) -> Tiling {
        let (strips, columns) = (Axis { whole: product.m, tile: rows }, Axis { whole: product.n, tile: self.tile[2] });
        self.strip = rows;
        self.transfers[2] = if product.c.bits == 0 { 0 } else { strips.tiles() * columns.tiles() };
        self.sram = self.buffers(product, limits).total();
        self
    }

    /// Whether tiles of C are stored in several strips.
    pub fn has_strips(&self) -> bool {
        self.strip < self.tile[0]
    }

    /// Slots of the buffer that outputs are stored from.
    pub(crate) fn strip_slots(&self) -> u64 {
        strip_slots(self.tile, self.strip)
    }

    /// SRAM that it holds.
    pub fn buffers(&self, product: &Product, limits: &Limits) -> Buffers {
        let nest = Nest::new(product, self.order, self.tile, self.kept);
        let [a_kept, w_kept] = swap(self.order, [nest.outer_held(limits.align), nest.inner_held(limits.align)]);
        let [tm, tk, tn] = self.tile;
        Buffers {
            a_kept,
            a_streamed: self.slots[0] * product.a.bytes(tm * tk).next_multiple_of(limits.align),
            w_kept,
            w_streamed: self.slots[1] * product.w.bytes(tk * tn).next_multiple_of(limits.align),
            accumulators: nest.sums(product.partial, limits.align),
            stage: stage(product, limits, self.tile, self.strip),
        }
    }

    /// The offset of kept tile `number` (see [`Order`]) in the buffer of kept tiles, of A for `operand` 0 and of W for 1.
    /// Streaming slots and accumulators have equal sizes, each rounded up on its own.
    pub fn kept_offset(&self, product: &Product, limits: &Limits, operand: usize, number: u64) -> u64 {
        let mut kept = self.kept;
        kept[operand] = number;
        let nest = Nest::new(product, self.order, self.tile, kept);
        swap(self.order, [nest.outer_held(limits.align), nest.inner_held(limits.align)])[operand]
    }

    /// The steps in order; lowerings follow this definition.
    pub fn steps(&self, product: &Product) -> Steps {
        let nest = Nest::new(product, self.order, self.tile, self.kept);
        let [outer_slots, inner_slots] = swap(self.order, self.slots);
        Steps { nest, order: self.order, slots: [outer_slots, inner_slots], loads: [0; 2], position: 0 }
    }

    /// Numbers of tiles of m, k and n.
    pub fn counts(&self, product: &Product) -> [u64; 3] {
        [product.m.div_ceil(self.tile[0]), product.k.div_ceil(self.tile[1]), product.n.div_ceil(self.tile[2])]
    }
}

/// SRAM of the buffer that outputs are stored from, for tiles in strips of so many rows.
pub(super) fn stage(product: &Product, limits: &Limits, tile: [u64; 3], strip: u64) -> u64 {
    let slot = product.c.bytes(strip * tile[2]).next_multiple_of(limits.align);
    if limits.staged { strip_slots(tile, strip) * slot } else { 0 }
}

/// A tile is finished in its slot and stored; of several strips, one is finished while another is stored.
fn strip_slots(tile: [u64; 3], strip: u64) -> u64 {
    if strip < tile[0] { 2 } else { 1 }
}

/// (outer, inner) to (a, w) and back.
fn swap<T>(order: Order, [outer, inner]: [T; 2]) -> [T; 2] {
    if order.columns_first() { [inner, outer] } else { [outer, inner] }
}

/// A nest in terms of its outermost loop, which makes A and W symmetric: Mnk and Nmk are `outer, inner, depth`; Mkn and Nkm are
/// `outer, depth, inner`. The outer operand is the one that the outermost loop indexes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nest {
    outer: Axis,
    depth: Axis,
    inner: Axis,
    outer_element: Element,
    inner_element: Element,
    /// Kept tiles of the outer operand's block, and of the inner operand.
    kept: [u64; 2],
    depth_last: bool,
}

impl Nest {
    pub(super) fn new(product: &Product, order: Order, tile: [u64; 3], kept: [u64; 2]) -> Nest {
        let rows = Axis { whole: product.m, tile: tile[0] };
        let depth = Axis { whole: product.k, tile: tile[1] };
        let columns = Axis { whole: product.n, tile: tile[2] };
        let [outer, inner] = swap(order, [rows, columns]);
        let [outer_element, inner_element] = swap(order, [product.a, product.w]);
        Nest { outer, depth, inner, outer_element, inner_element, kept: swap(order, kept), depth_last: order.depth_last() }
    }

    /// Streamed tiles of a block of the outer operand, and of the whole inner operand.
    fn streamed(&self) -> [u64; 2] {
        [self.depth.tiles() - self.kept[0], self.depth.tiles() * self.inner.tiles() - self.kept[1]]
    }

    /// How often a streamed tile of the outer operand is loaded.
    fn outer_repeats(&self) -> u64 {
        if self.depth_last && self.streamed()[0] > 1 { self.inner.tiles() } else { 1 }
    }

    /// How often a streamed tile of the inner operand is loaded.
    fn inner_repeats(&self) -> u64 {
        if self.streamed()[1] > 1 { self.outer.tiles() } else { 1 }
    }

    fn outer_loads(&self) -> u64 {
        self.outer.tiles() * (self.kept[0] + self.streamed()[0] * self.outer_repeats())
    }

    fn inner_loads(&self) -> u64 {
        self.kept[1] + self.streamed()[1] * self.inner_repeats()
    }

    pub(super) fn outer_bytes(&self) -> u64 {
        let once = grid(self.outer_element, self.outer, self.depth, 1);
        let depth_kept = Axis { whole: self.depth.whole.min(self.kept[0] * self.depth.tile), tile: self.depth.tile };
        let kept = grid(self.outer_element, self.outer, depth_kept, 1);
        kept + (once - kept) * self.outer_repeats()
    }

    fn inner_bytes(&self) -> u64 {
        let once = grid(self.inner_element, self.inner, self.depth, 1);
        let kept = self.inner_held(1);
        kept + (once - kept) * self.inner_repeats()
    }

    /// SRAM of the outer operand's kept tiles: those of a full block.
    fn outer_held(&self, align: u64) -> u64 {
        let block = Axis { whole: self.outer.width(0), tile: self.outer.width(0) };
        leading(self.outer_element, block, self.depth, self.kept[0], align)
    }

    /// SRAM of the inner operand's kept tiles; with `align` 1 their bytes.
    fn inner_held(&self, align: u64) -> u64 {
        let (slow, fast) = if self.depth_last { (self.inner, self.depth) } else { (self.depth, self.inner) };
        leading(self.inner_element, slow, fast, self.kept[1], align)
    }

    fn outer_slots(&self, buffering: Buffering) -> u64 {
        slots(buffering, self.outer.tiles() * self.streamed()[0] * self.outer_repeats())
    }

    fn inner_slots(&self, buffering: Buffering) -> u64 {
        slots(buffering, self.streamed()[1] * self.inner_repeats())
    }

    /// SRAM of the accumulators.
    pub(super) fn sums(&self, partial: Element, align: u64) -> u64 {
        let block = Axis { whole: self.outer.width(0), tile: self.outer.width(0) };
        let width = if self.depth_last { Axis { whole: self.inner.width(0), tile: self.inner.width(0) } } else { self.inner };
        grid(partial, block, width, align)
    }

    /// The same with `count` tiles of the outer operand's block kept.
    pub(super) fn keeping_outer(self, count: u64) -> Nest {
        Nest { kept: [count, self.kept[1]], ..self }
    }

    /// Whether keeping tiles of the outer operand's block saves loads.
    pub(super) fn outer_saves(&self) -> bool {
        self.depth_last && self.inner.tiles() > 1
    }

    /// Whether a byte of SRAM saves more when it keeps the inner operand.
    pub(super) fn inner_saves_more(&self) -> bool {
        let (outers, inners) = (self.outer.tiles(), self.inner.tiles());
        !self.depth_last || outers * (inners - 1) < outers
    }

    /// SRAM of a full tile of the outer and of the inner operand.
    fn slot_sizes(&self, align: u64) -> [u64; 2] {
        let depth = self.depth.width(0);
        [
            self.outer_element.bytes(self.outer.width(0) * depth).next_multiple_of(align),
            self.inner_element.bytes(self.inner.width(0) * depth).next_multiple_of(align),
        ]
    }

    /// SRAM of the outer operand: its kept tiles and its streaming slots.
    pub(super) fn outer_sram(&self, limits: &Limits) -> u64 {
        self.outer_held(limits.align) + self.outer_slots(limits.buffering) * self.slot_sizes(limits.align)[0]
    }

    /// The least SRAM that the inner operand takes, by keeping none or all of it.
    pub(super) fn inner_least(&self, limits: &Limits) -> u64 {
        let keeping = |count| Nest { kept: [self.kept[0], count], ..*self };
        let streamed = keeping(0).inner_slots(limits.buffering) * self.slot_sizes(limits.align)[1];
        streamed.min(keeping(self.depth.tiles() * self.inner.tiles()).inner_held(limits.align))
    }

    /// The most tiles of the outer operand's block that `room` bytes hold in addition to the streaming slots.
    pub(super) fn most_outer(&self, room: u64, limits: &Limits) -> u64 {
        let total = if self.depth_last { self.depth.tiles() } else { 0 };
        let slots = self.keeping_outer(0).outer_slots(limits.buffering);
        let size = self.slot_sizes(limits.align)[0];
        most(total, room, slots * size, size, |count| self.keeping_outer(count).outer_held(limits.align))
    }

    /// Candidate counts of kept tiles of the inner operand in `room` bytes: 0, and the most that fit.
    pub(super) fn inner_counts(&self, room: u64, limits: &Limits) -> impl Iterator<Item = u64> + use<> {
        let size = self.slot_sizes(limits.align)[1];
        let keeping = |count| Nest { kept: [self.kept[0], count], ..*self };
        let slots = keeping(0).inner_slots(limits.buffering);
        let total = self.depth.tiles() * self.inner.tiles();
        let most = most(total, room, slots * size, size, |count| keeping(count).inner_held(limits.align));
        let useful = self.outer.tiles() > 1 || most == total;
        [(most > 0 && useful).then_some(most), Some(0)].into_iter().flatten()
    }

    /// A lower bound on the bytes that the inner operand moves, with `room` bytes for kept pieces of any size.
    pub(super) fn least_inner(&self, room: u64) -> f64 {
        let once = grid(self.inner_element, self.inner, self.depth, 1);
        let saved = once.min(room) * (self.outer.tiles() - 1);
        (once * self.outer.tiles() - saved) as f64
    }

    /// The number of steps.
    fn len(&self) -> u64 {
        self.outer.tiles() * self.inner.tiles() * self.depth.tiles()
    }

    /// The tiles (outer, depth, inner) of step `position`.
    fn at(&self, position: u64) -> (u64, u64, u64) {
        let (depths, inners) = (self.depth.tiles(), self.inner.tiles());
        let (outer, rest) = (position / (depths * inners), position % (depths * inners));
        if self.depth_last { (outer, rest % depths, rest / depths) } else { (outer, rest / inners, rest % inners) }
    }

    /// The number of an operand's tile in its order of use, whether this is its first use in a block (outer operand) or
    /// at all (inner operand).
    fn uses(&self, (outer, depth, inner): (u64, u64, u64)) -> [(u64, bool); 2] {
        let number = if self.depth_last { inner * self.depth.tiles() + depth } else { depth * self.inner.tiles() + inner };
        [(depth, inner == 0), (number, outer == 0)]
    }
}

/// The largest number of tiles that fit in `room` bytes: all of `total`, or fewer next to `slots` bytes of streaming slots. A
/// tile takes at most `size` bytes; the first `count` take `held(count)`.
fn most(total: u64, room: u64, slots: u64, size: u64, held: impl Fn(u64) -> u64) -> u64 {
    if held(total) <= room {
        return total;
    }
    let Some(room) = room.checked_sub(slots) else { return 0 };
    let (mut low, mut step) = ((room / size.max(1)).min(total - 1), 1);
    // Edge tiles are smaller: a few more may fit.
    while low + step < total && held(low + step) <= room {
        low += step;
        step *= 2;
    }
    while step > 0 {
        if low + step < total && held(low + step) <= room {
            low += step;
        }
        step /= 2;
    }
    low
}

fn slots(buffering: Buffering, loads: u64) -> u64 {
    match (loads, buffering) {
        (0, _) => 0,
        (1, _) | (_, Buffering::Single) => 1,
        (_, Buffering::DoubleStreamed) => 2,
    }
}

/// The steps of a tiling, in order.
#[derive(Clone, Debug)]
pub struct Steps {
    nest: Nest,
    order: Order,
    /// Of the outer and the inner operand.
    slots: [u64; 2],
    /// Streamed loads so far.
    loads: [u64; 2],
    position: u64,
}

impl Steps {
    /// The place of operand `which` (0 outer, 1 inner), used as number `number`, for the first time or not.
    fn place(&mut self, which: usize, (number, fresh): (u64, bool), repeats: bool) -> TileUse {
        if number < self.nest.kept[which] {
            return TileUse { slot: Slot::Kept(number), load: fresh };
        }
        let load = fresh || repeats;
        self.loads[which] += u64::from(load);
        TileUse { slot: Slot::Streamed((self.loads[which] - 1) % self.slots[which]), load }
    }
}

impl Iterator for Steps {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.position == self.nest.len() {
            return None;
        }
        let at @ (outer, depth, inner) = self.nest.at(self.position);
        self.position += 1;
        let [outer_use, inner_use] = self.nest.uses(at);
        let repeats = [self.nest.outer_repeats() > 1, self.nest.inner_repeats() > 1];
        let places = [self.place(0, outer_use, repeats[0]), self.place(1, inner_use, repeats[1])];
        let [a, w] = swap(self.order, places);
        let [i, j] = swap(self.order, [outer, inner]);
        Some(Step {
            i,
            l: depth,
            j,
            a,
            w,
            accumulator: if self.nest.depth_last { 0 } else { inner },
            first: depth == 0,
            last: depth + 1 == self.nest.depth.tiles(),
        })
    }
}
