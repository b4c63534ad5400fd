//! The loops of a product: the nests of [`tile::Order`], with the loads of kept tiles in front, and what a finished tile
//! needs beside its sums.

use super::{Builder, Entry, Lowered, at_buffer, at_operand, compute, entry::Norming, load, open, region, release, tiles, wait};
use crate::{
    Element, Program,
    plan::{Compute, Finish, Region, Span, Statement, View},
    program::{Column, Epilogue, Linear, Norm},
    tile::{self, Limits, Nests, Objective, Order, Product, Tiling},
};

const OUTER: u8 = 0;
const DEPTH: u8 = 1;
const INNER: u8 = 2;

/// How a product is tiled.
#[derive(Clone, Debug, PartialEq)]
pub struct LinearTiles {
    /// Its loops.
    pub tiling: Tiling,
    /// As it was searched for.
    pub product: Product,
    /// How `x` is normed before it is read, if it is.
    pub entry: Option<Entry>,
    /// Whether `x` (what is normed), the output, and the residual are kept on the chip.
    pub on_chip: [bool; 3],
    /// Whether the rescalings of all columns are loaded at once.
    pub columns_whole: bool,
    /// Whether the residual is loaded to where the result is made, and stored from there: less room, but the next residual
    /// waits for the store.
    pub in_place: bool,
    limits: Limits,
}

impl LinearTiles {
    /// The best by `objective` of those that fit `limits`, with all that surrounds the product, if a norm does.
    ///
    /// # Errors
    /// Where not even the smallest tile fits.
    pub fn search(
        program: &Program,
        linear: &Linear,
        entry: Option<Entry>,
        on_chip: [bool; 3],
        limits: &Limits,
        array: [u64; 2],
        objective: &Objective,
    ) -> crate::Result<LinearTiles> {
        let fitting = |in_place| {
            let product = product(program, linear, entry, on_chip, array);
            LinearTiles::fitting(program, linear, (entry, product), on_chip, limits, objective, in_place)
        };
        let apart = fitting(false);
        if !matches!(linear.epilogue, Epilogue::Add { .. }) || on_chip[1] || on_chip[2] {
            return apart;
        }
        let in_place = fitting(true);
        let value = |tiles: &LinearTiles| match objective {
            Objective::Dram { .. } => tiles.traffic(program, linear) as f64,
            Objective::Latency(rates) => tiles.tiling.cost(&tiles.product, limits, rates).cycles,
            Objective::Energy(rates) => tiles.tiling.cost(&tiles.product, limits, rates).energy,
        };
        match (apart, in_place) {
            (Ok(apart), Ok(in_place)) => Ok(if value(&in_place) < value(&apart) { in_place } else { apart }),
            (apart, in_place) => apart.or(in_place),
        }
    }

    /// The best with or without the residual in place.
    fn fitting(
        program: &Program,
        linear: &Linear,
        (entry, product): (Option<Entry>, Product),
        on_chip: [bool; 3],
        limits: &Limits,
        objective: &Objective,
        in_place: bool,
    ) -> crate::Result<LinearTiles> {
        let nests = match entry {
            None => Nests::All,
            Some(Entry::Once { .. }) => Nests::RowPanel,
            Some(Entry::Again { .. }) => Nests::RowsWithin,
        };
        let columns_whole = 16 * Column::ELEMENT.bytes(product.n) <= limits.sram;
        let mut reserve = 0;
        loop {
            let left = Limits { sram: limits.sram.saturating_sub(reserve), ..*limits };
            let tiling = tile::search_nests(&product, &left, objective, nests)?;
            let found = LinearTiles { tiling, product, entry, on_chip, columns_whole, in_place, limits: *limits };
            let beside = found.beside(program, linear).iter().map(|bytes| bytes.next_multiple_of(limits.align)).sum::<u64>();
            let beside = beside + found.entry_bytes();
            if tiling.sram + beside <= limits.sram {
                return Ok(found);
            }
            reserve = (limits.sram + reserve + 1 - tiling.sram.min(limits.sram)).min(beside).max(reserve + limits.align);
        }
    }

    /// DRAM bytes, with rescalings and what lies beside the output.
    pub fn traffic(&self, program: &Program, linear: &Linear) -> u64 {
        let ([m, _, n], [rows, _, columns]) =
            ([self.product.m, self.product.k, self.product.n], self.tiling.counts(&self.product));
        let columns_first = matches!(self.tiling.order, Order::Nmk | Order::Nkm);
        let times = if self.columns_whole || columns_first { 1 } else { rows };
        let rescalings = times * Column::ELEMENT.bytes(n);
        let beside = match &linear.epilogue {
            Epilogue::Add { residual } if !self.on_chip[2] => program.get(*residual).element.bytes(n) * m,
            Epilogue::Rotary { table, .. } => {
                let row = program.get(*table).bytes() / program.get(*table).rows;
                row * m * if columns_first { columns } else { 1 }
            }
            _ => 0,
        };
        let gains = self.entry.map_or(0, |_| Element::INT32.bytes(self.product.k));
        let x = match self.entry {
            Some(Entry::Once { .. }) => self.panel_loads(),
            _ => self.tiling.dram.a,
        };
        x + self.tiling.dram.w + self.tiling.dram.c + gains + rescalings + beside
    }

    /// DRAM bytes of the rows that fill the panel of [`Entry::Once`]: not those of the panel, but wider ones.
    fn panel_loads(&self) -> u64 {
        if self.on_chip[0] { 0 } else { Element::INT16.bytes(self.product.m * self.product.k) }
    }

    /// How many times each row is normed.
    pub fn norms(&self) -> u64 {
        match self.entry {
            None => 0,
            Some(Entry::Once { .. }) => 1,
            Some(Entry::Again { .. }) => self.tiling.counts(&self.product)[2],
        }
    }

    /// Predicted cycles, where norming each row once takes `norm` cycles of work.
    pub(crate) fn cycles(&self, rates: &tile::Rates, norm: f64) -> f64 {
        match self.entry {
            None => self.tiling.cost(&self.product, &self.limits, rates).cycles,
            Some(Entry::Again { .. }) => {
                let work = norm * self.norms() as f64;
                self.tiling.cost_beside(&self.product, &self.limits, rates, work).cycles
            }
            Some(Entry::Once { .. }) => {
                // Rows come and are normed before the rest begins.
                let product = Product { a: NOTHING, ..self.product };
                let Tiling { order, tile, kept, .. } = self.tiling;
                let alone = Tiling::new(&product, &self.limits, order, tile, kept).cost(&product, &self.limits, rates);
                alone.cycles + norm.max(self.panel_loads() as f64 / rates.read)
            }
        }
    }

    /// The product of what is loaded: of rows that are on the chip, nothing is.
    pub(crate) fn loaded(&self) -> Product {
        if self.on_chip[0] { Product { a: NOTHING, ..self.product } } else { self.product }
    }

    /// Bytes on the chip of the norm, without a panel.
    fn entry_bytes(&self) -> u64 {
        let [tm, k, align] = [self.tiling.tile[0], self.product.k, self.limits.align];
        self.entry.map_or(0, |entry| entry.bytes(tm, k, self.on_chip[0], align))
    }

    /// Bytes on the chip for rescalings and for what lies beside the output.
    fn beside(&self, program: &Program, linear: &Linear) -> [u64; 2] {
        let [tm, _, tn] = self.tiling.tile;
        let columns = Column::ELEMENT.bytes(if self.columns_whole { self.product.n } else { tn });
        let beside = match &linear.epilogue {
            Epilogue::Add { residual } if !self.on_chip[2] && !self.in_place => program.get(*residual).element.bytes(tn) * tm,
            Epilogue::Rotary { table, .. } => program.get(*table).bytes() / program.get(*table).rows * tm,
            _ => 0,
        };
        [columns, beside]
    }
}

/// What is on the chip already, or stays there.
const NOTHING: Element = Element { bits: 0, per: 1 };

/// A linear kernel as a product to be tiled: behind a norm, rows are whole or a panel of int8.
fn product(program: &Program, linear: &Linear, entry: Option<Entry>, [x, out, _]: [bool; 3], array: [u64; 2]) -> Product {
    let ([m, k, n], weight) = (program.product(linear), program.get(linear.weight).element);
    let pairs = linear.epilogue.pairs() as u32;
    let depth = array[0].max(u64::from(weight.per)).next_multiple_of(u64::from(weight.per));
    let c = program.get(linear.out[0].tensor).element;
    let columns = match &linear.epilogue {
        Epilogue::Rotary { head, .. } => *head,
        _ => array[1].max(u64::from(pairs)),
    };
    Product {
        m,
        k,
        n,
        a: match entry {
            Some(Entry::Once { .. }) => Element::INT8,
            _ if x => NOTHING,
            Some(Entry::Again { .. }) => Element::INT16,
            None => program.get(linear.x).element,
        },
        w: weight,
        c: if out { NOTHING } else { Element { bits: c.bits, per: pairs } },
        partial: Element::INT32,
        unit: match entry {
            Some(Entry::Once { rows }) => [rows, depth, columns],
            Some(Entry::Again { times }) => [1, k, n.div_ceil(times).next_multiple_of(columns)],
            None => [1, depth, columns],
        },
    }
}

/// One of the two things that a product reads, as its loops see it.
#[derive(Clone, Copy)]
enum Source {
    /// On the chip already.
    Chip,
    /// In a buffer that was filled before these loops.
    Held(u32),
    /// Loaded into a buffer in the innermost loop.
    Streamed(u32),
}

struct Nest<'a> {
    tiles: &'a LinearTiles,
    pairs: u64,
    /// Operands of x and weight.
    reads: [u32; 2],
    sums: u32,
    columns: (u32, u32),
    beside: Option<Beside>,
    out: Out<'a>,
    finish: Finish,
    norming: Option<Norming>,
}

/// Residual or rotary table.
#[derive(Clone, Copy)]
struct Beside {
    operand: u32,
    /// `None` on the chip.
    buffer: Option<u32>,
    /// All columns of the operand, or those of the tile.
    whole_rows: Option<u64>,
}

enum Out<'a> {
    Chip(u32),
    Stored { buffer: u32, operands: &'a [(u32, u64)] },
}

impl LinearTiles {
    /// The code of a kernel, behind `norm` if these are tiles for that.
    pub fn lower(&self, program: &Program, linear: &Linear, norm: Option<&Norm>, name: &str) -> Lowered {
        let mut builder = Builder::new(name, self.limits.align);
        let norming = self.entry.zip(norm).map(|(entry, norm)| {
            let pieces = match entry {
                Entry::Once { rows } => Some(rows).filter(|_| !self.on_chip[0]),
                Entry::Again { .. } => None,
            };
            Norming::new(&mut builder, program, norm, self.tiling.tile[0], pieces)
        });
        let x = norming.map_or_else(|| builder.operand(linear.x), |norming| norming.x);
        let reads = [x, builder.operand(linear.weight)];
        let columns_operand = builder.operand(linear.columns);
        let finish = builder.finish(&linear.epilogue);
        let (pairs, [tm, tk, tn]) = (finish.pairs(), self.tiling.tile);
        let held = self.tiling.buffers(&self.product, &self.limits);

        let [columns_bytes, beside_bytes] = self.beside(program, linear);
        let columns = match self.columns_whole {
            true => builder.packed("columns", Column::ELEMENT, columns_bytes.next_multiple_of(self.limits.align)),
            false => builder.ring("columns", Column::ELEMENT, 1, columns_bytes),
        };
        let beside = match &linear.epilogue {
            Epilogue::Add { residual } => {
                let (operand, element) = (builder.operand(*residual), program.get(*residual).element);
                let bytes = if self.in_place { element.bytes(tn) * tm } else { beside_bytes };
                let buffer = (!self.on_chip[2]).then(|| builder.ring("residual", element, 1, bytes));
                Some(Beside { operand, buffer, whole_rows: None })
            }
            Epilogue::Rotary { table, .. } => {
                let (operand, tensor) = (builder.operand(*table), program.get(*table));
                let buffer = Some(builder.ring("table", tensor.element, 1, beside_bytes));
                Some(Beside { operand, buffer, whole_rows: Some(tensor.columns) })
            }
            _ => None,
        };
        let outs: Vec<u32> = linear.out.iter().map(|part| builder.operand(part.tensor)).collect();
        let firsts = linear.out.iter().scan(0, |first, part| {
            let mine = *first;
            *first += program.get(part.tensor).columns;
            Some(mine)
        });
        let parts: Vec<(u32, u64)> = outs.iter().copied().zip(firsts).collect();
        let element = program.get(linear.out[0].tensor).element;
        let out = match self.on_chip[1] {
            true => Out::Chip(outs[0]),
            false => {
                let residual = beside.and_then(|beside| beside.buffer).filter(|_| self.in_place);
                let buffer = residual.unwrap_or_else(|| builder.ring("out", element, 1, element.bytes(tn / pairs) * tm));
                Out::Stored { buffer, operands: &parts }
            }
        };
        let sums = builder.ring("sums", Element::INT32, 1, held.accumulators);

        let x_element = norm.map_or(program.get(linear.x).element, |norm| program.get(norm.x).element);
        let loaded = !self.on_chip[0] && !matches!(self.entry, Some(Entry::Once { .. }));
        let (w_element, slots) = (self.product.w, self.tiling.slots);
        let mut buffer =
            |name: &str, element: Element, slots: u64, bytes: u64| (slots > 0).then(|| builder.ring(name, element, slots, bytes));
        let x_streamed = if loaded { buffer("x", x_element, slots[0], x_element.bytes(tk) * tm) } else { None };
        let w_streamed = buffer("weights", w_element, slots[1], w_element.bytes(tk * tn));
        let mut packed = |name: &str, element: Element, bytes: u64| (bytes > 0).then(|| builder.packed(name, element, bytes));
        let x_kept = if loaded { packed("kept x", x_element, held.a_kept) } else { None };
        let w_kept = packed("kept weights", w_element, held.w_kept);

        let nest = Nest { tiles: self, pairs, reads, sums, columns: (columns, columns_operand), beside, out, finish, norming };
        let mut code: Vec<Statement> = norming.iter().flat_map(Norming::start).collect();
        if self.columns_whole {
            let all = region(Span::all(1), Span::all(self.product.n));
            code.extend([load(columns, columns_operand, all), wait(columns, all)]);
        }
        code.extend(nest.code([[x_kept, x_streamed], [w_kept, w_streamed]]));
        code.extend(self.columns_whole.then(|| release(columns)));
        code.extend(norming.map(|norming| norming.end()));
        let position = match &linear.epilogue {
            Epilogue::Rotary { position, .. } => *position,
            _ => 0,
        };
        let rows = |at: usize| match beside {
            Some(beside) if at as u32 == beside.operand => position,
            _ => outs.iter().position(|out| *out == at as u32).map_or(0, |part| linear.out[part].row),
        };
        builder.done(code, &rows)
    }
}

impl Nest<'_> {
    fn columns_first(&self) -> bool {
        matches!(self.tiles.tiling.order, Order::Nmk | Order::Nkm)
    }

    fn depth_last(&self) -> bool {
        matches!(self.tiles.tiling.order, Order::Mnk | Order::Nmk)
    }

    /// Which variables stand for rows and for columns.
    fn rows_columns(&self) -> [u8; 2] {
        if self.columns_first() { [INNER, OUTER] } else { [OUTER, INNER] }
    }

    /// Whole and tile of outer, depth and inner; columns count outputs.
    fn axes(&self) -> [(u64, u64); 3] {
        let (product, [tm, tk, tn]) = (&self.tiles.product, self.tiles.tiling.tile);
        let (rows, columns) = ((product.m, tm), (product.n / self.pairs, tn / self.pairs));
        if self.columns_first() { [columns, (product.k, tk), rows] } else { [rows, (product.k, tk), columns] }
    }

    fn counts(&self) -> [u64; 3] {
        self.axes().map(|(whole, tile)| whole.div_ceil(tile))
    }

    fn looped(&self, variable: u8, range: [u64; 2], body: Vec<Statement>) -> Vec<Statement> {
        let (whole, tile) = self.axes()[variable as usize];
        if range[0] < range[1] { vec![tiles(variable, whole, tile, range, body)] } else { Vec::new() }
    }

    fn wide(&self, variable: u8) -> Span {
        Span::Tile { variable, base: 0, unit: self.pairs }
    }

    /// The box of operand 0 (x) or 1 (weight) at the current tiles.
    fn operand_region(&self, operand: usize) -> Region {
        let [rows, columns] = self.rows_columns();
        match operand {
            // Rows that are normed come whole.
            0 if self.norming.is_some() && self.columns_first() => region(Span::tile(rows), Span::all(self.tiles.product.k)),
            0 => region(Span::tile(rows), Span::tile(DEPTH)),
            _ => region(self.wide(columns), Span::tile(DEPTH)),
        }
    }

    /// Which of x and weight the outermost loop indexes, and the other.
    fn sides(&self) -> [usize; 2] {
        if self.columns_first() { [1, 0] } else { [0, 1] }
    }

    /// All loops. `buffers`: kept and streamed, of x and of the weight.
    fn code(&self, buffers: [[Option<u32>; 2]; 2]) -> Vec<Statement> {
        let ([outers, depths, inners], [outer, inner]) = (self.counts(), self.sides());
        let kept = [self.tiles.tiling.kept[outer], self.tiles.tiling.kept[inner]];
        let left = [depths - kept[0].min(depths), depths * inners - kept[1].min(depths * inners)];
        let [inner_kept, inner_streamed] = buffers[inner];
        // One streamed tile alone stays where it is.
        let inner_rest = match (inner_streamed, left[1]) {
            (None, _) => Source::Chip,
            (Some(buffer), 1) => Source::Held(buffer),
            (Some(buffer), _) => Source::Streamed(buffer),
        };
        let mut code = Vec::new();
        let number = |position: u64| {
            if self.depth_last() { [position / depths, position % depths] } else { [position / inners, position % inners] }
        };
        let order = if self.depth_last() { [INNER, DEPTH] } else { [DEPTH, INNER] };
        let fill = |buffer: u32, from: u64, to: u64| self.prefix(order, number(from), number(to), vec![self.load(inner, buffer)]);
        if let Some(buffer) = inner_kept {
            code.extend(fill(buffer, 0, kept[1]));
        }
        if let (Some(buffer), Source::Held(_)) = (inner_streamed, inner_rest) {
            code.extend(fill(buffer, kept[1], kept[1] + 1));
        }
        let inner_sources = (inner_kept.map_or(inner_rest, Source::Held), inner_rest);
        let body = match self.depth_last() {
            true => self.depth_last_body(buffers[outer], kept, left[0], inner_sources),
            false => self.depth_between_body(buffers[outer][1], kept[1], inner_sources),
        };
        code.extend(self.looped(OUTER, [0, outers], body));
        code.extend(inner_kept.map(release));
        if let Source::Held(buffer) = inner_rest {
            code.push(release(buffer));
        }
        code
    }

    /// The tiles from `from` up to but without `to` of a walk over two loops.
    fn prefix(&self, [slow, fast]: [u8; 2], from: [u64; 2], to: [u64; 2], body: Vec<Statement>) -> Vec<Statement> {
        let all = self.counts()[fast as usize];
        let line = |range: [u64; 2], body: Vec<Statement>| self.looped(fast, range, body);
        let mut code = Vec::new();
        if from[0] == to[0] {
            return self.looped(slow, [from[0], from[0] + 1], line([from[1], to[1]], body));
        }
        let mut first = from[0];
        if from[1] > 0 {
            code.extend(self.looped(slow, [first, first + 1], line([from[1], all], body.clone())));
            first += 1;
        }
        code.extend(self.looped(slow, [first, to[0]], line([0, all], body.clone())));
        if to[1] > 0 {
            code.extend(self.looped(slow, [to[0], to[0] + 1], line([0, to[1]], body)));
        }
        code
    }

    fn load(&self, operand: usize, buffer: u32) -> Statement {
        load(buffer, self.reads[operand], self.operand_region(operand))
    }

    /// Rows, columns, depth (or columns, rows, depth).
    fn depth_last_body(
        &self,
        outer_buffers: [Option<u32>; 2],
        kept: [u64; 2],
        left: u64,
        inner: (Source, Source),
    ) -> Vec<Statement> {
        let ([_, depths, inners], [outer, _]) = (self.counts(), self.sides());
        let [outer_kept, outer_streamed] = outer_buffers;
        let rest = match (outer_streamed, left) {
            (None, _) => Source::Chip,
            (Some(buffer), 1) => Source::Held(buffer),
            (Some(buffer), _) => Source::Streamed(buffer),
        };
        let mut code = Vec::new();
        if let Some(buffer) = outer_kept {
            code.extend(self.looped(DEPTH, [0, kept[0]], vec![self.load(outer, buffer)]));
        }
        if let Source::Held(buffer) = rest {
            code.extend(self.looped(DEPTH, [kept[0], depths], vec![self.load(outer, buffer)]));
        }
        let outer_sources = (outer_kept.map_or(rest, Source::Held), rest);
        code.extend(self.early(OUTER));
        if let (Some(norming), false) = (self.norming, self.columns_first()) {
            code.extend(norming.panel(OUTER));
        }
        let [full, part] = [kept[1] / depths, kept[1] % depths];
        for (lines, kept_inner) in
            [([0, full], depths), ([full, full + u64::from(part > 0)], part), ([full + u64::from(part > 0), inners], 0)]
        {
            let mut line = self.early(INNER);
            line.push(self.open_sums());
            let mut cuts = [0, kept[0].min(depths), kept_inner, depths];
            cuts.sort();
            for piece in cuts.windows(2).filter(|piece| piece[0] < piece[1]) {
                let pick = |(kept, rest): (Source, Source), end: u64| if piece[1] <= end { kept } else { rest };
                let sources = [pick(outer_sources, kept[0]), pick(inner, kept_inner)];
                line.extend(self.looped(DEPTH, [piece[0], piece[1]], self.step(sources)));
            }
            line.extend(self.finished());
            code.extend(self.looped(INNER, lines, line));
        }
        code.extend(self.late(OUTER));
        code.extend(outer_kept.map(release));
        if let Source::Held(buffer) = rest {
            code.push(release(buffer));
        }
        code
    }

    /// Rows, depth, columns (or columns, depth, rows): a tile of the outer operand serves a whole line.
    fn depth_between_body(&self, outer_buffer: Option<u32>, kept: u64, inner: (Source, Source)) -> Vec<Statement> {
        let ([_, depths, inners], [outer, _]) = (self.counts(), self.sides());
        let mut code = self.early(OUTER);
        code.push(self.open_sums());
        let [full, part] = [kept / inners, kept % inners];
        let held = outer_buffer.map_or(Source::Chip, Source::Held);
        for (range, kept_inner) in
            [([0, full], inners), ([full, full + u64::from(part > 0)], part), ([full + u64::from(part > 0), depths], 0)]
        {
            let mut line: Vec<Statement> = outer_buffer.map(|buffer| self.load(outer, buffer)).into_iter().collect();
            line.extend(self.looped(INNER, [0, kept_inner], self.step([held, inner.0])));
            line.extend(self.looped(INNER, [kept_inner, inners], self.step([held, inner.1])));
            line.extend(outer_buffer.map(release));
            code.extend(self.looped(DEPTH, range, line));
        }
        let mut line = self.early(INNER);
        line.extend(self.finished());
        code.extend(self.looped(INNER, [0, inners], line));
        code.extend(self.late(OUTER));
        code
    }

    fn sums_region(&self) -> Region {
        let [rows, columns] = self.rows_columns();
        region(Span::tile(rows), self.wide(columns))
    }

    /// Sums of a tile, or of all tiles of the inner loop.
    fn open_sums(&self) -> Statement {
        let (mut all, product) = (self.sums_region(), &self.tiles.product);
        if !self.depth_last() {
            match self.columns_first() {
                true => all.rows = Span::all(product.m),
                false => all.columns = Span::all(product.n),
            }
        }
        open(self.sums, all)
    }

    /// One multiplication, with what it loads and lets go. `sources` of the outer and the inner operand.
    fn step(&self, sources: [Source; 2]) -> Vec<Statement> {
        let sides = self.sides();
        let mut code = Vec::new();
        for (source, side) in sources.iter().zip(sides) {
            if let Source::Streamed(buffer) = source {
                code.push(self.load(side, *buffer));
            }
        }
        let mut views = [None, None];
        for (source, side) in sources.iter().zip(sides) {
            let region = self.operand_region(side);
            let view = match source {
                Source::Chip => at_operand(self.reads[side], region),
                Source::Held(buffer) | Source::Streamed(buffer) => {
                    code.push(wait(*buffer, region));
                    at_buffer(*buffer, region)
                }
            };
            views[side] = Some(match self.norming {
                Some(norming) if side == 0 => self.normed(norming, view, &mut code),
                _ => view,
            });
        }
        let [Some(x), Some(w)] = views else { unreachable!("each side has a source") };
        code.push(compute(Compute::Multiply { x, w, sums: at_buffer(self.sums, self.sums_region()), first: Some(DEPTH) }));
        code.extend(sources.iter().filter_map(|source| match source {
            Source::Streamed(buffer) => Some(release(*buffer)),
            _ => None,
        }));
        code
    }

    /// Where x lies when it is normed: in a panel since the block of rows began, or from now on.
    fn normed(&self, norming: Norming, wide: View, code: &mut Vec<Statement>) -> View {
        if self.columns_first() {
            code.extend(norming.tile(wide));
        }
        norming.view(wide.region.rows, wide.region.columns)
    }

    /// The loop in which rescalings, and residual or table, come: as far out as their box stands still.
    fn levels(&self) -> [Option<u8>; 2] {
        let columns = if self.columns_first() { OUTER } else { INNER };
        let beside = self.beside.filter(|beside| beside.buffer.is_some());
        let level = |beside: Beside| if beside.whole_rows.is_some() && !self.columns_first() { OUTER } else { INNER };
        [(!self.tiles.columns_whole).then_some(columns), beside.map(level)]
    }

    fn columns_region(&self) -> Region {
        region(Span::all(1), self.wide(self.rows_columns()[1]))
    }

    fn beside_region(&self, beside: Beside) -> Region {
        let [rows, columns] = self.rows_columns();
        region(Span::tile(rows), beside.whole_rows.map_or(Span::tile(columns), Span::all))
    }

    /// What is loaded at the start of a step of this loop.
    fn early(&self, level: u8) -> Vec<Statement> {
        let [columns, beside] = self.levels();
        let mut code = Vec::new();
        if columns == Some(level) {
            code.push(load(self.columns.0, self.columns.1, self.columns_region()));
        }
        if let (Some(Beside { operand, buffer: Some(buffer), .. }), true) = (self.beside, beside == Some(level)) {
            code.push(load(buffer, operand, self.beside_region(self.beside.expect("it is there"))));
        }
        code
    }

    /// What is let go at the end of a step of this loop.
    fn late(&self, level: u8) -> Vec<Statement> {
        let [columns, beside] = self.levels();
        let mut code = Vec::new();
        if columns == Some(level) {
            code.push(release(self.columns.0));
        }
        let held = beside == Some(level) && !self.tiles.in_place;
        if let (Some(Beside { buffer: Some(buffer), .. }), true) = (self.beside, held) {
            code.push(release(buffer));
        }
        code
    }

    /// From sums to the output.
    fn finished(&self) -> Vec<Statement> {
        let [rows, columns] = self.rows_columns();
        let result = region(Span::tile(rows), Span::tile(columns));
        let mut code = Vec::new();
        if !self.tiles.columns_whole {
            code.push(wait(self.columns.0, self.columns_region()));
        }
        let beside: Option<View> = self.beside.map(|beside| {
            let region = self.beside_region(beside);
            beside.buffer.map_or(at_operand(beside.operand, region), |buffer| at_buffer(buffer, region))
        });
        if let Some(Beside { buffer: Some(buffer), .. }) = self.beside {
            code.push(wait(buffer, beside.expect("it is there").region));
        }
        let out = match &self.out {
            Out::Chip(operand) => at_operand(*operand, result),
            Out::Stored { buffer, .. } => {
                if !self.tiles.in_place {
                    code.push(open(*buffer, result));
                }
                at_buffer(*buffer, result)
            }
        };
        let sums = at_buffer(self.sums, self.sums_region());
        let columns = at_buffer(self.columns.0, self.columns_region());
        code.push(compute(Compute::Finish { sums, columns, beside, out, finish: self.finish }));
        if let Out::Stored { buffer, operands } = &self.out {
            code.push(Statement::Store { buffer: *buffer, operands: operands.to_vec(), region: result });
        }
        code.extend(self.late(INNER));
        code
    }
}
