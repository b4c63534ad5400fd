//! The code of a product: the loop nests of [`Order`](crate::tile::Order), with the loads of kept tiles before them.

use super::LinearTiles;
use crate::{
    Element, Program,
    lower::{
        Builder, Entry, First, Lowered, at_buffer, at_operand, compute, entry::Norming, load, open, region, release, tiles, wait,
    },
    plan::{Compute, Extent, Finish, Region, Span, Statement, View},
    program::{Column, Epilogue, Linear, Norm, Role},
};

const OUTER: u8 = 0;
const DEPTH: u8 = 1;
const INNER: u8 = 2;
/// The loop over the strips of a tile of the output.
const STRIP: u8 = 4;

impl LinearTiles {
    /// The code of a kernel, with `norm` at its entry if these are tiles for that.
    pub fn lower(&self, program: &Program, linear: &Linear, norm: Option<&Norm>, name: &str) -> Lowered {
        let mut builder = Builder::new(name, self.limits.align);
        let nest = Nest::new(self, program, linear, norm, &mut builder);
        let code = nest.kernel();
        builder.done(code, &|operand| nest.first(program, linear, operand))
    }
}

/// Where the loops find one of the two factors of a product.
#[derive(Clone, Copy)]
enum Source {
    /// On the chip already.
    Chip,
    /// In a buffer that was filled before these loops.
    Held(u32),
    /// Loaded into a buffer in the innermost loop.
    Streamed(u32),
}

/// Everything that the loops refer to.
struct Nest<'a> {
    tiles: &'a LinearTiles,
    pairs: u64,
    /// Operands of x and weight.
    reads: [u32; 2],
    sums: u32,
    columns: Columns,
    extra: Option<Extra>,
    out: Out,
    finish: Finish,
    narrow: u8,
    norming: Option<Norming>,
    /// Buffers of kept and of streamed tiles, of x and of the weight.
    factors: [[Option<u32>; 2]; 2],
}

/// The rescalings of output columns.
#[derive(Clone, Copy)]
struct Columns {
    buffer: u32,
    operand: u32,
}

/// The extra operand of an epilogue: residual or rotary table.
#[derive(Clone, Copy)]
struct Extra {
    operand: u32,
    /// `None` on the chip.
    buffer: Option<u32>,
    /// All columns of the operand, or those of the tile.
    whole_rows: Option<u64>,
    /// The operand's first row.
    first: First,
}

/// Where results go: to operands side by side, each with its first column.
struct Out {
    operands: Vec<(u32, u64)>,
    /// `None` if the only one is on the chip.
    buffer: Option<u32>,
}

impl<'a> Nest<'a> {
    fn new(tiles: &'a LinearTiles, program: &Program, linear: &Linear, norm: Option<&Norm>, builder: &mut Builder) -> Nest<'a> {
        let norming = tiles.entry.zip(norm).map(|(entry, norm)| {
            let pieces = match entry {
                Entry::Once { rows } => Some(rows).filter(|_| !tiles.on_chip[0]),
                Entry::Again { .. } => None,
            };
            Norming::new(builder, program, norm, tiles.tiling.tile[0], pieces)
        });
        let x = norming.map_or_else(|| builder.operand(linear.x), |norming| norming.x);
        let reads = [x, builder.operand(linear.weight)];
        let finish = builder.finish(&linear.epilogue);
        let columns = Columns::new(tiles, program, linear, builder);
        let extra = Extra::new(tiles, program, linear, builder);
        let out = Out::new(tiles, program, linear, extra, finish.pairs(), builder);
        let accumulators = tiles.tiling.buffers(&tiles.product, &tiles.limits).accumulators;
        let sums = builder.ring("sums", program.sums(linear), 1, accumulators);
        let x_element = program.get(norm.map_or(linear.x, |norm| norm.x)).element;
        let factors = factors(tiles, x_element, builder);
        Nest { tiles, pairs: finish.pairs(), reads, sums, columns, extra, out, finish, narrow: linear.narrow, norming, factors }
    }

    /// The row of an operand's tensor that is its row 0.
    fn first(&self, program: &Program, linear: &Linear, operand: usize) -> First {
        let is = |other: u32| other as usize == operand;
        if let Some(extra) = self.extra.filter(|extra| is(extra.operand)) {
            return extra.first;
        }
        let part = self.out.operands.iter().position(|(out, _)| is(*out)).map(|part| linear.out[part]);
        part.map_or(First::default(), |part| First {
            row: part.row,
            position: if program.get(part.tensor).role == Role::State { program.batch } else { 0 },
            ..First::default()
        })
    }

    /// The whole kernel: what is loaded once, around the loops.
    fn kernel(&self) -> Vec<Statement> {
        let Columns { buffer, operand } = self.columns;
        let mut code: Vec<Statement> = self.norming.iter().flat_map(Norming::start).collect();
        if self.tiles.columns_whole {
            let all = region(Span::all(1), Span::all(self.tiles.product.n));
            code.extend([load(buffer, operand, all), wait(buffer, all)]);
        }
        code.extend(self.loops());
        code.extend(self.tiles.columns_whole.then(|| release(buffer)));
        code.extend(self.norming.map(|norming| norming.end()));
        code
    }
}

impl Columns {
    fn new(tiles: &LinearTiles, program: &Program, linear: &Linear, builder: &mut Builder) -> Columns {
        let operand = builder.operand(linear.columns);
        let [[slots, bytes], _] = tiles.extra(program, linear);
        let buffer = match tiles.columns_whole {
            true => builder.packed("columns", Column::ELEMENT, bytes.next_multiple_of(tiles.limits.align)),
            false => builder.ring("columns", Column::ELEMENT, slots, bytes),
        };
        Columns { buffer, operand }
    }
}

impl Extra {
    fn new(tiles: &LinearTiles, program: &Program, linear: &Linear, builder: &mut Builder) -> Option<Extra> {
        let [tm, _, tn] = tiles.tiling.tile;
        let [_, [slots, bytes]] = tiles.extra(program, linear);
        match &linear.epilogue {
            Epilogue::Add { residual } => {
                let (operand, element) = (builder.operand(*residual), program.get(*residual).element);
                let [slots, bytes] = if tiles.in_place { [1, element.bytes(tn) * tm] } else { [slots, bytes] };
                let buffer = (!tiles.on_chip[2]).then(|| builder.ring("residual", element, slots, bytes));
                Some(Extra { operand, buffer, whole_rows: None, first: First::default() })
            }
            Epilogue::Rotary { table: Some(table), position, .. } => {
                let (operand, tensor) = (builder.operand(*table), program.get(*table));
                let buffer = Some(builder.ring("table", tensor.element, slots, bytes));
                let first = First { row: *position, position: program.batch, ..First::default() };
                Some(Extra { operand, buffer, whole_rows: Some(tensor.columns), first })
            }
            Epilogue::Rescale | Epilogue::Activated { .. } | Epilogue::Rotary { table: None, .. } | Epilogue::Gated { .. } => {
                None
            }
        }
    }
}

impl Out {
    fn new(
        tiles: &LinearTiles,
        program: &Program,
        linear: &Linear,
        extra: Option<Extra>,
        pairs: u64,
        builder: &mut Builder,
    ) -> Out {
        let mut first = 0;
        let mut operands = Vec::new();
        for part in &linear.out {
            operands.push((builder.operand(part.tensor), first));
            first += program.get(part.tensor).columns;
        }
        let ([_, _, tn], strip, slots) = (tiles.tiling.tile, tiles.tiling.strip, tiles.tiling.strip_slots());
        let element = program.get(linear.out[0].tensor).element;
        let residual = extra.and_then(|extra| extra.buffer).filter(|_| tiles.in_place);
        let buffer = (!tiles.on_chip[1])
            .then(|| residual.unwrap_or_else(|| builder.ring("out", element, slots, element.bytes(tn / pairs) * strip)));
        Out { operands, buffer }
    }
}

/// Buffers of kept and of streamed tiles, of x and of the weight. A panel of normed rows is not loaded, nor are rows that are
/// on the chip.
fn factors(tiles: &LinearTiles, x_element: Element, builder: &mut Builder) -> [[Option<u32>; 2]; 2] {
    let [tm, tk, tn] = tiles.tiling.tile;
    let (held, slots, w) = (tiles.tiling.buffers(&tiles.product, &tiles.limits), tiles.tiling.slots, tiles.product.w);
    let loaded = !tiles.on_chip[0] && !matches!(tiles.entry, Some(Entry::Once { .. }));
    let mut ring =
        |name: &str, element: Element, slots: u64, bytes: u64| (slots > 0).then(|| builder.ring(name, element, slots, bytes));
    let x_streamed = if loaded { ring("x", x_element, slots[0], x_element.bytes(tk) * tm) } else { None };
    let w_streamed = ring("weights", w, slots[1], w.bytes(tk * tn));
    let mut packed = |name: &str, element: Element, bytes: u64| (bytes > 0).then(|| builder.packed(name, element, bytes));
    let x_kept = if loaded { packed("kept x", x_element, held.a_kept) } else { None };
    let w_kept = packed("kept weights", w, held.w_kept);
    [[x_kept, x_streamed], [w_kept, w_streamed]]
}

/// A factor as the loops see it.
#[derive(Clone, Copy)]
struct Factor {
    /// The buffer of the tiles that are kept, and how many there are.
    kept: Option<u32>,
    count: u64,
    streamed: Option<u32>,
    /// Where the tiles are that are not kept.
    rest: Source,
}

impl Factor {
    /// Where the tiles are that come first.
    fn first(&self) -> Source {
        self.kept.map_or(self.rest, Source::Held)
    }

    /// The releases of everything that was filled before the loops.
    fn releases(&self) -> impl Iterator<Item = Statement> {
        let held = if let Source::Held(buffer) = self.rest { Some(buffer) } else { None };
        self.kept.into_iter().chain(held).map(release)
    }
}

/// A walk over lines of `line` tiles each, the first `kept` of which are kept: ranges of lines, with the number of kept tiles
/// in each line of a range.
fn lines(kept: u64, line: u64, count: u64) -> [([u64; 2], u64); 3] {
    let [full, part] = [kept / line, kept % line];
    let next = full + u64::from(part > 0);
    [([0, full], line), ([full, next], part), ([next, count], 0)]
}

impl Nest<'_> {
    fn columns_first(&self) -> bool {
        self.tiles.tiling.order.columns_first()
    }

    fn depth_last(&self) -> bool {
        self.tiles.tiling.order.depth_last()
    }

    /// The loop variables of rows and of columns.
    fn rows_columns(&self) -> [u8; 2] {
        if self.columns_first() { [INNER, OUTER] } else { [OUTER, INNER] }
    }

    /// Size and tile of the outer loop, of depth and of the inner loop; columns count outputs.
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

    /// The box of factor 0 (x) or 1 (weight) at the current tiles.
    fn factor_region(&self, side: usize) -> Region {
        let [rows, columns] = self.rows_columns();
        match side {
            // Rows that are normed are loaded whole.
            0 if self.norming.is_some() && self.columns_first() => region(Span::tile(rows), Span::all(self.tiles.product.k)),
            0 => region(Span::tile(rows), Span::tile(DEPTH)),
            _ => region(self.wide(columns), Span::tile(DEPTH)),
        }
    }

    /// The factor that the outermost loop indexes, and the other.
    fn sides(&self) -> [usize; 2] {
        if self.columns_first() { [1, 0] } else { [0, 1] }
    }

    /// A factor of which the loops walk over `all` tiles before they repeat.
    fn factor(&self, side: usize, all: u64) -> Factor {
        let [kept, streamed] = self.factors[side];
        let count = self.tiles.tiling.kept[side];
        // A single streamed tile stays where it is.
        let rest = match (streamed, all - count.min(all)) {
            (None, _) => Source::Chip,
            (Some(buffer), 1) => Source::Held(buffer),
            (Some(buffer), _) => Source::Streamed(buffer),
        };
        Factor { kept, count, streamed, rest }
    }

    /// All loops.
    fn loops(&self) -> Vec<Statement> {
        let ([outers, depths, inners], [outer, inner]) = (self.counts(), self.sides());
        let (outer, inner) = (self.factor(outer, depths), self.factor(inner, depths * inners));
        let mut code = self.fill_inner(&inner);
        let body = match self.depth_last() {
            true => self.depth_last_body(&outer, &inner),
            false => self.depth_between_body(&outer, &inner),
        };
        code.extend(self.looped(OUTER, [0, outers], body));
        code.extend(inner.releases());
        code
    }

    /// Loads the tiles of the inner factor that stay over all outer tiles.
    fn fill_inner(&self, inner: &Factor) -> Vec<Statement> {
        let mut code = Vec::new();
        if let Some(buffer) = inner.kept {
            code.extend(self.fill_range(buffer, 0, inner.count));
        }
        if let Source::Held(buffer) = inner.rest {
            code.extend(self.fill_range(buffer, inner.count, inner.count + 1));
        }
        code
    }

    /// Loads tiles `from..to` of the inner factor, in the order in which the loops use them.
    fn fill_range(&self, buffer: u32, from: u64, to: u64) -> Vec<Statement> {
        let ([_, depths, inners], [_, inner]) = (self.counts(), self.sides());
        let (order, line) = if self.depth_last() { ([INNER, DEPTH], depths) } else { ([DEPTH, INNER], inners) };
        let at = |position: u64| [position / line, position % line];
        self.walk(order, at(from), at(to), vec![self.load(inner, buffer)])
    }

    /// The tiles from `from` up to and without `to` of a walk over two loops.
    fn walk(&self, [slow, fast]: [u8; 2], from: [u64; 2], to: [u64; 2], body: Vec<Statement>) -> Vec<Statement> {
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

    fn load(&self, side: usize, buffer: u32) -> Statement {
        load(buffer, self.reads[side], self.factor_region(side))
    }

    /// Rows, columns, depth (or columns, rows, depth).
    fn depth_last_body(&self, outer: &Factor, inner: &Factor) -> Vec<Statement> {
        let [_, depths, inners] = self.counts();
        let mut code = self.fill_outer(outer);
        code.extend(self.early(OUTER));
        if let (Some(norming), false) = (self.norming, self.columns_first()) {
            code.extend(norming.panel(OUTER));
        }
        for (range, kept) in lines(inner.count, depths, inners) {
            code.extend(self.looped(INNER, range, self.tile(outer, inner, kept)));
        }
        code.extend(self.late(OUTER));
        code.extend(outer.releases());
        code
    }

    /// Loads the tiles of the outer factor that stay over a whole step of the outermost loop.
    fn fill_outer(&self, outer: &Factor) -> Vec<Statement> {
        let ([_, depths, _], [side, _]) = (self.counts(), self.sides());
        let mut code = Vec::new();
        if let Some(buffer) = outer.kept {
            code.extend(self.looped(DEPTH, [0, outer.count], vec![self.load(side, buffer)]));
        }
        if let Source::Held(buffer) = outer.rest {
            code.extend(self.looped(DEPTH, [outer.count, depths], vec![self.load(side, buffer)]));
        }
        code
    }

    /// One tile of the output, of whose inner factor the first `kept` tiles of depth are kept.
    fn tile(&self, outer: &Factor, inner: &Factor, kept: u64) -> Vec<Statement> {
        let [_, depths, _] = self.counts();
        let mut code = self.early(INNER);
        code.push(self.open_sums());
        let mut cuts = [0, outer.count.min(depths), kept, depths];
        cuts.sort();
        for piece in cuts.windows(2).filter(|piece| piece[0] < piece[1]) {
            let pick = |factor: &Factor, end: u64| if piece[1] <= end { factor.first() } else { factor.rest };
            let sources = [pick(outer, outer.count), pick(inner, kept)];
            code.extend(self.looped(DEPTH, [piece[0], piece[1]], self.step(sources)));
        }
        code.extend(self.finished());
        code
    }

    /// Rows, depth, columns (or columns, depth, rows): a tile of the outer factor serves a whole line.
    fn depth_between_body(&self, outer: &Factor, inner: &Factor) -> Vec<Statement> {
        let ([_, depths, inners], [side, _]) = (self.counts(), self.sides());
        let mut code = self.early(OUTER);
        code.push(self.open_sums());
        let held = outer.streamed.map_or(Source::Chip, Source::Held);
        for (range, kept) in lines(inner.count, inners, depths) {
            let mut line: Vec<Statement> = outer.streamed.map(|buffer| self.load(side, buffer)).into_iter().collect();
            line.extend(self.looped(INNER, [0, kept], self.step([held, inner.first()])));
            line.extend(self.looped(INNER, [kept, inners], self.step([held, inner.rest])));
            line.extend(outer.streamed.map(release));
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

    /// Opens the sums of a tile, or of all tiles of the inner loop.
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

    /// One multiplication, with what it loads and releases. `sources` are those of the outer and the inner factor.
    fn step(&self, sources: [Source; 2]) -> Vec<Statement> {
        let sides = self.sides();
        let streamed = || {
            sources.iter().zip(sides).filter_map(|(source, side)| match source {
                Source::Streamed(buffer) => Some((*buffer, side)),
                Source::Chip | Source::Held(_) => None,
            })
        };
        let mut code: Vec<Statement> = streamed().map(|(buffer, side)| self.load(side, buffer)).collect();
        let [first, second] = [0, 1].map(|at| self.ready(sources[at], sides[at], &mut code));
        let [x, w] = if self.columns_first() { [second, first] } else { [first, second] };
        code.push(compute(Compute::Multiply { x, w, sums: at_buffer(self.sums, self.sums_region()), first: Some(DEPTH) }));
        code.extend(streamed().map(|(buffer, _)| release(buffer)));
        code
    }

    /// A tile of a factor, once it is loaded, and normed if a norm is at the entry.
    fn ready(&self, source: Source, side: usize, code: &mut Vec<Statement>) -> View {
        let region = self.factor_region(side);
        let view = match source {
            Source::Chip => at_operand(self.reads[side], region),
            Source::Held(buffer) | Source::Streamed(buffer) => {
                code.push(wait(buffer, region));
                at_buffer(buffer, region)
            }
        };
        match self.norming {
            Some(norming) if side == 0 => self.normed(norming, view, code),
            _ => view,
        }
    }

    /// Normed rows: in a panel since the block of rows began, or normed now.
    fn normed(&self, norming: Norming, wide: View, code: &mut Vec<Statement>) -> View {
        if self.columns_first() {
            code.extend(norming.tile(wide));
        }
        norming.view(wide.region.rows, wide.region.columns)
    }

    /// The loop in which rescalings are loaded: as far out as their box does not change; `None` where all are loaded once.
    fn columns_level(&self) -> Option<u8> {
        let level = if self.columns_first() { OUTER } else { INNER };
        (!self.tiles.columns_whole).then_some(level)
    }

    /// The same of the extra operand of the epilogue, with its buffer: a residual comes in strips like the output.
    fn loaded_extra(&self) -> Option<(Extra, u32, u8)> {
        let extra = self.extra?;
        let level = match extra.whole_rows {
            Some(_) if !self.columns_first() => OUTER,
            None if self.tiles.tiling.has_strips() => STRIP,
            _ => INNER,
        };
        Some((extra, extra.buffer?, level))
    }

    /// The rows that are finished at once.
    fn finished_rows(&self) -> Span {
        Span::tile(if self.tiles.tiling.has_strips() { STRIP } else { self.rows_columns()[0] })
    }

    fn columns_region(&self) -> Region {
        region(Span::all(1), self.wide(self.rows_columns()[1]))
    }

    /// Those `rows` of the extra operand that belong to a tile.
    fn extra_region(&self, extra: Extra, rows: Span) -> Region {
        region(rows, extra.whole_rows.map_or(Span::tile(self.rows_columns()[1]), Span::all))
    }

    /// What is loaded at the start of a step of this loop.
    fn early(&self, level: u8) -> Vec<Statement> {
        let mut code = Vec::new();
        if self.columns_level() == Some(level) {
            code.push(load(self.columns.buffer, self.columns.operand, self.columns_region()));
        }
        if let Some((extra, buffer, _)) = self.loaded_extra().filter(|(_, _, at)| *at == level) {
            let rows = if level == STRIP { self.finished_rows() } else { Span::tile(self.rows_columns()[0]) };
            code.push(load(buffer, extra.operand, self.extra_region(extra, rows)));
        }
        code
    }

    /// What is released at the end of a step of this loop. A residual that was added in place leaves with the store.
    fn late(&self, level: u8) -> Vec<Statement> {
        let columns = (self.columns_level() == Some(level)).then_some(self.columns.buffer);
        let extra = self.loaded_extra().filter(|(_, _, at)| *at == level && !self.tiles.in_place);
        columns.into_iter().chain(extra.map(|(_, buffer, _)| buffer)).map(release).collect()
    }

    /// From sums to the output.
    fn finished(&self) -> Vec<Statement> {
        let mut code = Vec::new();
        if !self.tiles.columns_whole {
            code.push(wait(self.columns.buffer, self.columns_region()));
        }
        code.extend(self.stripped(self.strip()));
        code.extend(self.late(INNER));
        code
    }

    /// What is done for each strip of a tile of the output, or once for all of it.
    fn stripped(&self, body: Vec<Statement>) -> Vec<Statement> {
        let tiling = &self.tiles.tiling;
        if !tiling.has_strips() {
            return body;
        }
        let extent = Extent::Rows { rows: self.rows_columns()[0] };
        vec![Statement::Loop { variable: STRIP, extent, tile: tiling.strip, tiles: [0, u64::MAX], body }]
    }

    /// From sums to the output for the rows that are finished at once.
    fn strip(&self) -> Vec<Statement> {
        let mut code = self.early(STRIP);
        let columns = at_buffer(self.columns.buffer, self.columns_region());
        let extra = self.extra.map(|extra| self.ready_extra(extra, &mut code));
        let out = self.open_out(&mut code);
        let sums = at_buffer(self.sums, region(self.finished_rows(), self.sums_region().columns));
        code.push(compute(Compute::Finish { sums, columns, extra, out, narrow: self.narrow, finish: self.finish }));
        if let Some(buffer) = self.out.buffer {
            code.push(Statement::Store { buffer, operands: self.out.operands.clone(), region: out.region });
        }
        code.extend(self.late(STRIP));
        code
    }

    /// The extra operand of the epilogue, once it is loaded.
    fn ready_extra(&self, extra: Extra, code: &mut Vec<Statement>) -> View {
        let region = self.extra_region(extra, self.finished_rows());
        let Some(buffer) = extra.buffer else { return at_operand(extra.operand, region) };
        code.push(wait(buffer, region));
        at_buffer(buffer, region)
    }

    /// Where a tile of the output is written: a new slot, unless the residual was loaded there.
    fn open_out(&self, code: &mut Vec<Statement>) -> View {
        let place = region(self.finished_rows(), Span::tile(self.rows_columns()[1]));
        let Some(buffer) = self.out.buffer else { return at_operand(self.out.operands[0].0, place) };
        if !self.tiles.in_place {
            code.push(open(buffer, place));
        }
        at_buffer(buffer, place)
    }
}
