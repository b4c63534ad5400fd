//! The arithmetic of tiles: small loops of their own, over bytes on the chip.

use super::{Area, COMPUTE, Found, Simulator, Terms};
use crate::{
    data,
    fixed::{self, GATE_ENTRIES, NormRow, RUN, Rescale, SoftmaxRow, saturate},
    plan::{Attend, Body, Call, Compute, Constant, Finish, Place, View},
    program::{Column, Range, wrong_ranges},
    rates::Work,
    simulate::Violation,
};

type Checked<T = ()> = Result<T, Violation>;

impl Simulator<'_, '_> {
    pub(super) fn compute(&mut self, call: &Call, body: &Body, compute: &Compute) -> Checked {
        self.clocks[COMPUTE][COMPUTE] += 1;
        let cycles = match compute {
            Compute::Multiply { x, w, sums, first } => self.multiply(call, body, [x, w, sums], *first)?,
            Compute::Finish { sums, columns, extra, out, narrow, finish } => {
                self.finish(call, body, [sums, columns, out], extra.as_ref(), (*narrow, finish))?
            }
            Compute::Norm { x, gains, residual, out, constant } => {
                self.norm(call, body, [x, gains, out], residual.as_ref(), *constant)?
            }
            Compute::Attend { query, key, value, sums, softmax, attend } => {
                self.attend(call, body, [query, key, value, sums, softmax], attend)?
            }
            Compute::Attended { sums, softmax, out, head, constant } => {
                self.attended(call, body, [sums, softmax, out], *head, *constant)?
            }
        };
        let start = self.times[COMPUTE];
        self.times[COMPUTE] += cycles;
        self.trace.compute += cycles;
        self.paths[COMPUTE] = self.then(&self.paths[COMPUTE], |path| path.queues[COMPUTE] += cycles);
        self.event(COMPUTE, start, start + cycles);
        Ok(())
    }

    fn reads(&mut self, found: &Found) -> Checked {
        plain(found)?;
        let clock = self.clocks[COMPUTE];
        for run in found.runs() {
            self.trace.sram_bytes += run.length;
            self.chip.read(&found.name, COMPUTE, &clock, run)?;
        }
        Ok(())
    }

    fn writes(&mut self, found: &Found) -> Checked {
        plain(found)?;
        let clock = self.clocks[COMPUTE];
        for run in found.runs() {
            self.trace.sram_bytes += run.length;
            self.chip.write(&found.name, COMPUTE, &clock, run)?;
        }
        Ok(())
    }

    fn all(&self, found: &Found) -> Vec<i32> {
        self.numbers(found, &found.region)
    }

    /// Sums of 32 or 64 bits.
    fn wide(&self, found: &Found) -> Vec<i64> {
        if found.bits != 64 {
            return self.all(found).into_iter().map(i64::from).collect();
        }
        let row = |row: u64| {
            let at = (found.start + row * found.stride) as usize;
            let bytes = &self.chip.bytes[at..at + 8 * found.region.width() as usize];
            bytes.chunks_exact(8).map(|b| i64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
        };
        (0..found.region.height()).flat_map(row).collect()
    }

    fn put_wide(&mut self, found: &Found, numbers: &[i64]) {
        let bytes = (found.bits / 8) as usize;
        for (row, numbers) in numbers.chunks(found.region.width() as usize).enumerate() {
            let at = (found.start + row as u64 * found.stride) as usize;
            for (place, number) in self.chip.bytes[at..].chunks_exact_mut(bytes).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes()[..bytes]);
            }
        }
    }

    fn put(&mut self, found: &Found, numbers: &[i32]) {
        let bytes = (found.bits / 8) as usize;
        for (row, numbers) in numbers.chunks(found.region.width() as usize).enumerate() {
            let at = (found.start + row as u64 * found.stride) as usize;
            for (place, number) in self.chip.bytes[at..].chunks_exact_mut(bytes).zip(numbers) {
                place.copy_from_slice(&number.to_le_bytes()[..bytes]);
            }
        }
    }

    /// What is known of the sums that lie in a view.
    fn terms(&mut self, call: &Call, body: &Body, view: &View) -> Checked<&mut Vec<Terms>> {
        let region = self.region(&view.region);
        match view.place {
            Place::Operand(operand) => {
                let (of, _) = self.tensor(call, operand)?;
                Ok(&mut self.kept[of.tensor as usize])
            }
            Place::Buffer(buffer) => {
                self.slot(body, buffer, &region)?;
                let held = &mut self.buffers[buffer as usize].held;
                let slot = held.iter_mut().rev().find(|slot| slot.region.contains(&region)).expect("it was found above");
                Ok(&mut slot.sums)
            }
        }
    }

    /// Terms `range` of `wanted` are added to the sums at `place`; all before them are gone if these come `first`.
    fn add_terms(
        &mut self,
        call: &Call,
        body: &Body,
        sums: &View,
        place: Area,
        [range, wanted]: [[u64; 2]; 2],
        first: bool,
    ) -> Checked {
        let all = self.terms(call, body, sums)?;
        if first {
            all.retain(|terms| terms.place != place);
            all.push(Terms { place, found: vec![range], wanted });
            return Ok(());
        }
        let Some(terms) = all.iter_mut().find(|terms| terms.place == place) else {
            return Err(Violation::Terms { found: vec![range], wanted, why: "they are added to nothing" });
        };
        if terms.found.iter().any(|[from, to]| *from < range[1] && range[0] < *to) {
            return Err(Violation::Terms { found: vec![range], wanted, why: "they are added twice" });
        }
        terms.wanted = [terms.wanted[0].min(wanted[0]), terms.wanted[1].max(wanted[1])];
        terms.found.push(range);
        terms.found.sort();
        terms.found.dedup_by(|next, before| {
            let touch = before[1] == next[0];
            if touch {
                before[1] = next[1];
            }
            touch
        });
        Ok(())
    }

    /// The sums at `place` are complete, and used up. They may be a part of a larger box.
    fn take_terms(&mut self, call: &Call, body: &Body, sums: &View, place: Area) -> Checked {
        let all = self.terms(call, body, sums)?;
        let Some(at) = all.iter().position(|terms| terms.place.contains(&place)) else {
            return Err(Violation::Terms { found: Vec::new(), wanted: place.columns, why: "no sums of this box are there" });
        };
        let terms = all.swap_remove(at);
        if terms.found != [terms.wanted] {
            return Err(Violation::Terms { found: terms.found, wanted: terms.wanted, why: "some are missing" });
        }
        all.extend(terms.place.without(&place).map(|place| Terms { place, ..terms.clone() }));
        Ok(())
    }

    /// `first` is true in the first step of a loop, and where there is no loop.
    fn is_first(&self, first: Option<u8>) -> bool {
        first.is_none_or(|variable| self.tiles[variable as usize].index == 0)
    }

    fn multiply(&mut self, call: &Call, body: &Body, [x, w, sums]: [&View; 3], first: Option<u8>) -> Checked<u64> {
        let (x, sums_at, first) = (self.find(call, body, x)?, self.find(call, body, sums)?, self.is_first(first));
        let Place::Buffer(buffer) = w.place else {
            return Err(Violation::Index { what: "buffer of weights", index: 0, count: 0 });
        };
        let w_region = self.region(&w.region);
        let slot = self.slot(body, buffer, &w_region)?;
        if slot.region != w_region {
            let place = body.buffers[buffer as usize].name.clone();
            return Err(Violation::NotThere { place, rows: w_region.rows, columns: w_region.columns });
        }
        let bytes = slot.bytes;
        agree("the depth", x.region.columns, w_region.columns)?;
        agree("rows", x.region.rows, sums_at.region.rows)?;
        agree("columns", w_region.rows, sums_at.region.columns)?;
        let depth = self.depth(call, body, buffer);
        self.add_terms(call, body, sums, sums_at.region, [w_region.columns, [0, depth]], first)?;
        self.reads(&x)?;
        let clock = self.clocks[COMPUTE];
        self.trace.sram_bytes += bytes.length;
        self.chip.read(&body.buffers[buffer as usize].name, COMPUTE, &clock, bytes)?;
        if !first {
            self.reads(&sums_at)?;
        }
        self.writes(&sums_at)?;
        let (m, n, k) = (x.region.height(), w_region.height(), w_region.width());
        self.trace.macs += m * n * k;
        if x.bits > 8 {
            self.trace.wide_macs += m * n * k;
        }
        if self.memory.is_some() {
            let element = body.buffers[buffer as usize].element;
            let packed = &self.chip.bytes[bytes.start as usize..][..bytes.length as usize];
            let products = multiplied(&self.all(&x), packed, element, [m as usize, n as usize, k as usize]);
            let before = if first { vec![0; products.len()] } else { self.wide(&sums_at) };
            let after: Vec<i64> = before.iter().zip(products).map(|(b, p)| b.wrapping_add(p)).collect();
            self.put_wide(&sums_at, &after);
        }
        Ok(self.rates.multiply(m, n, k, x.bits))
    }

    /// Terms of a sum: the columns of the weight that a buffer is loaded from.
    fn depth(&self, call: &Call, body: &Body, buffer: u32) -> u64 {
        fn operand(code: &[crate::plan::Statement], wanted: u32) -> Option<u32> {
            code.iter().find_map(|statement| match statement {
                crate::plan::Statement::Loop { body, .. } => operand(body, wanted),
                crate::plan::Statement::Load { buffer, operand, .. } if *buffer == wanted => Some(*operand),
                _ => None,
            })
        }
        operand(&body.code, buffer).and_then(|o| self.tensor(call, o).ok()).map_or(0, |(_, tensor)| tensor.columns)
    }

    fn finish(
        &mut self,
        call: &Call,
        body: &Body,
        [sums, columns, out]: [&View; 3],
        extra: Option<&View>,
        (narrow, finish): (u8, &Finish),
    ) -> Checked<u64> {
        let (sums_at, out) = (self.find(call, body, sums)?, self.find(call, body, out)?);
        let columns = self.find(call, body, columns)?;
        let pairs = finish.pairs();
        agree("rows", sums_at.region.rows, out.region.rows)?;
        agree("columns", sums_at.region.columns, out.region.columns.map(|column| column * pairs))?;
        agree("rescaled columns", columns.region.columns, sums_at.region.columns)?;
        self.take_terms(call, body, sums, sums_at.region)?;
        let extra = extra.map(|view| self.find(call, body, view)).transpose()?;
        check_finish(call, finish, &out, extra.as_ref())?;
        if let Some(extra) = &extra {
            agree("rows of the extra operand", extra.region.rows, out.region.rows)?;
            self.reads(extra)?;
        }
        self.reads(&sums_at)?;
        let clock = self.clocks[COMPUTE];
        let constants = column_bytes(&columns);
        self.chip.read(&columns.name, COMPUTE, &clock, constants)?;
        self.writes(&out)?;
        if self.memory.is_some() {
            let bytes = &self.chip.bytes[constants.start as usize..][..constants.length as usize];
            let columns: Vec<Column> = bytes.chunks_exact(Column::ELEMENT.bytes(1) as usize).map(data::column).collect();
            let extra = extra.as_ref().map(|extra| (self.all(extra), extra.region));
            let sums: Vec<i32> = self.wide(&sums_at).into_iter().map(|sum| fixed::narrowed(sum, narrow.min(62))).collect();
            let numbers = finished(call, &sums, &columns, extra, finish, &out)?;
            self.put(&out, &numbers);
        }
        Ok(self.finishing(finish, &sums_at.region))
    }

    /// Cycles of finishing sums.
    fn finishing(&self, finish: &Finish, sums: &Area) -> u64 {
        let all = sums.height() * sums.width();
        match finish {
            Finish::Rescale | Finish::Activated { .. } => self.rates.work(Work::Rescale, all),
            Finish::Add => self.rates.work(Work::Add, all),
            Finish::Gated { .. } => self.rates.work(Work::Gate, all),
            Finish::Rotary { normed, rotated, .. } => {
                let up_to = |end: u64| {
                    let [from, to] = sums.columns.map(|column| column.min(end));
                    sums.height() * (to - from)
                };
                self.rates.rotary(all, up_to(*rotated)) + self.rates.work(Work::Norm, up_to(*normed))
            }
        }
    }

    fn norm(
        &mut self,
        call: &Call,
        body: &Body,
        [x, gains, out]: [&View; 3],
        residual: Option<&View>,
        constant: u32,
    ) -> Checked<u64> {
        let Constant::Norm { epsilon, gain_shift, centered } = constant_of(call, constant)? else {
            return Err(no_constant(call, constant));
        };
        let (x, gains, out) = (self.find(call, body, x)?, self.find(call, body, gains)?, self.find(call, body, out)?);
        agree("rows", x.region.rows, out.region.rows)?;
        agree("columns", x.region.columns, out.region.columns)?;
        agree("gains", gains.region.columns, x.region.columns)?;
        let residual = residual.map(|view| self.find(call, body, view)).transpose()?;
        let constants = 1 + u64::from(*centered) + u64::from(residual.is_some());
        agree("rows of gains", gains.region.rows, [0, constants])?;
        for found in [&x, &gains].into_iter().chain(&residual) {
            self.reads(found)?;
        }
        if let Some(residual) = &residual {
            agree("rows of the residual", residual.region.rows, out.region.rows)?;
            agree("columns of the residual", residual.region.columns, out.region.columns)?;
        }
        self.writes(&out)?;
        if self.memory.is_some() {
            let (rows, constants, width) = (self.all(&x), self.all(&gains), x.region.width() as usize);
            let by = NormRow::of([*epsilon, (*gain_shift).min(64).into()], &constants, width, *centered);
            let mut numbers: Vec<i64> = rows.chunks(width).flat_map(|row| by.apply(row)).collect();
            if let Some(residual) = &residual {
                let shifts = &constants[constants.len() - width..];
                let carried = self.all(residual).into_iter().zip(shifts.iter().cycle());
                let carried = carried.map(|(x, shift)| fixed::shift_down(x, (*shift).clamp(0, 31) as u32));
                numbers.iter_mut().zip(carried).for_each(|(x, carried)| *x += i64::from(carried));
            }
            let numbers: Vec<i32> = numbers.into_iter().map(|x| saturate(x, out.bits)).collect();
            self.put(&out, &numbers);
        }
        Ok(self.rates.norm(x.region.height() * x.region.width(), *centered, residual.is_some()))
    }

    fn attend(&mut self, call: &Call, body: &Body, views: [&View; 5], attend: &Attend) -> Checked<u64> {
        let [query, key, value, sums, softmax] = views;
        let (first, logits) = (self.is_first_keys(query, attend), rescale_of(call, attend.constant)?);
        let [q, k, v] = [query, key, value].map(|view| self.find(call, body, view));
        let (q, k, v) = (q?, k?, v?);
        let (sums_at, softmax_at) = (self.find(call, body, sums)?, self.find(call, body, softmax)?);
        agree("keys", k.region.rows, v.region.rows)?;
        agree("rows", q.region.rows, sums_at.region.rows)?;
        agree("columns", q.region.columns, sums_at.region.columns)?;
        agree("rows of the softmax", softmax_at.region.rows, q.region.rows)?;
        let head = attend.head.max(1);
        let group = q.region.width() / head;
        let heads = group > 0 && q.region.width() == group * head;
        if !heads || k.region.width() != head || v.region.width() != head || softmax_at.region.width() != 2 * group {
            return Err(Violation::Mismatch { what: "heads", found: k.region.columns, wanted: v.region.columns });
        }
        let [from, to] = keys(attend, q.region.rows);
        let wanted = [from / RUN * RUN, to];
        let range = [k.region.rows[0].max(wanted[0]), k.region.rows[1]];
        self.add_terms(call, body, sums, sums_at.region, [range, wanted], first)?;
        if k.region.rows[0] % RUN != 0 {
            return Err(Violation::Mismatch { what: "runs of keys", found: k.region.rows, wanted: [0, RUN] });
        }
        for found in [&q, &k, &v] {
            self.reads(found)?;
        }
        if !first {
            self.reads(&sums_at)?;
            self.reads(&softmax_at)?;
        }
        self.writes(&sums_at)?;
        self.writes(&softmax_at)?;
        let visible: u64 = (q.region.rows[0]..q.region.rows[1])
            .map(|row| {
                let [from, to] = keys(attend, [row, row + 1]);
                to.min(k.region.rows[1]).saturating_sub(from.max(k.region.rows[0]))
            })
            .sum();
        self.trace.macs += 2 * visible * group * head;
        if self.memory.is_some() {
            self.attend_numbers([&q, &k, &v], [&sums_at, &softmax_at], attend, logits, first);
        }
        let (rows, keys) = (q.region.height() * group, k.region.height());
        Ok(self.rates.attend(rows, keys, head))
    }

    /// Whether no key was seen by these rows yet: the loop over keys is at the first tile that they see.
    fn is_first_keys(&self, query: &View, attend: &Attend) -> bool {
        attend.first.is_none_or(|variable| {
            let (rows, tile) = (self.span(&query.region.rows), self.tiles[variable as usize]);
            let from = keys(attend, rows)[0];
            tile.start <= from
        })
    }

    fn attend_numbers(
        &mut self,
        [q, k, v]: [&Found; 3],
        [sums_at, softmax_at]: [&Found; 2],
        attend: &Attend,
        to_logits: Rescale,
        first: bool,
    ) {
        let head = attend.head as usize;
        let group = q.region.width() as usize / head;
        let [queries, keys_, values] = [q, k, v].map(|found| self.all(found));
        let (mut sums, mut state) = match first {
            true => (vec![0; queries.len()], vec![SoftmaxRow::EMPTY; queries.len() / head]),
            false => {
                let pairs = self.all(softmax_at);
                let rows = pairs.chunks(2).map(|pair| SoftmaxRow { exponent: pair[0], sum: pair[1] });
                (self.all(sums_at), rows.collect())
            }
        };
        for (at, row) in state.iter_mut().enumerate() {
            let token = q.region.rows[0] + (at / group) as u64;
            let [from, to] = keys(attend, [token, token + 1]);
            let query = &queries[at * head..][..head];
            let mut mine = sums[at * head..][..head].to_vec();
            for (run, key_run) in keys_.chunks(RUN as usize * head).enumerate() {
                let base = k.region.rows[0] + run as u64 * RUN;
                let logits: Vec<Option<i32>> = key_run
                    .chunks(head)
                    .zip(base..)
                    .map(|(key, position)| {
                        let product = || query.iter().zip(key).map(|(q, k)| q * k).sum();
                        (from..to).contains(&position).then(|| fixed::logit(product(), to_logits))
                    })
                    .collect();
                let mut weights = vec![0; logits.len()];
                mine = row.take((&self.exponential, attend.weight_bits.min(15)), &logits, &mut weights, mine.into_iter());
                for (weight, value) in weights.iter().zip(values[run * RUN as usize * head..].chunks(head)) {
                    mine.iter_mut().zip(value).for_each(|(sum, v)| *sum += weight * v);
                }
            }
            sums[at * head..][..head].copy_from_slice(&mine);
        }
        self.put(sums_at, &sums);
        let pairs: Vec<i32> = state.iter().flat_map(|row| [row.exponent, row.sum]).collect();
        self.put(softmax_at, &pairs);
    }

    fn attended(&mut self, call: &Call, body: &Body, views: [&View; 3], head: u64, constant: u32) -> Checked<u64> {
        let rescale = rescale_of(call, constant)?;
        let [sums, softmax, out] = views;
        let (sums_at, softmax_at, out) =
            (self.find(call, body, sums)?, self.find(call, body, softmax)?, self.find(call, body, out)?);
        agree("rows", sums_at.region.rows, out.region.rows)?;
        agree("columns", sums_at.region.columns, out.region.columns)?;
        agree("rows of the softmax", softmax_at.region.rows, out.region.rows)?;
        if softmax_at.region.width() * head != 2 * out.region.width() {
            return Err(Violation::Mismatch { what: "heads", found: softmax_at.region.columns, wanted: out.region.columns });
        }
        self.take_terms(call, body, sums, sums_at.region)?;
        self.reads(&sums_at)?;
        self.reads(&softmax_at)?;
        self.writes(&out)?;
        if self.memory.is_some() {
            let (sums, pairs) = (self.all(&sums_at), self.all(&softmax_at));
            let rows = pairs.chunks(2).map(|pair| SoftmaxRow { exponent: pair[0], sum: pair[1] });
            let numbers: Vec<i32> = sums
                .chunks(head as usize)
                .zip(rows)
                .flat_map(|(sums, row)| sums.iter().map(move |sum| saturate(row.finish(*sum, rescale), out.bits)))
                .collect();
            self.put(&out, &numbers);
        }
        Ok(self.rates.work(Work::Rescale, out.region.height() * out.region.width()))
    }
}

/// The keys that rows see between them.
fn keys(attend: &Attend, [first, end]: [u64; 2]) -> [u64; 2] {
    let (from, to) = attend.mask.keys(attend.past, first, end - first);
    [from, to]
}

/// Arithmetic knows numbers of 8, 16 and 32 bits, and sums of 64.
fn plain(found: &Found) -> Checked {
    match found.bits {
        8 | 16 | 32 | 64 => Ok(()),
        bits => Err(Violation::Index { what: "number of bits", index: bits.into(), count: 64 }),
    }
}

fn constant_of(call: &Call, index: u32) -> Checked<&Constant> {
    call.constants.get(index as usize).ok_or_else(|| no_constant(call, index))
}

fn rescale_of(call: &Call, index: u32) -> Checked<Rescale> {
    match constant_of(call, index)? {
        Constant::Rescale(rescale) => Ok(*rescale),
        _ => Err(no_constant(call, index)),
    }
}

/// There is none of that index, or it is of another kind.
fn no_constant(call: &Call, index: u32) -> Violation {
    Violation::Index { what: "constant", index: index.into(), count: call.constants.len() as u64 }
}

fn agree(what: &'static str, found: [u64; 2], wanted: [u64; 2]) -> Checked {
    if found == wanted { Ok(()) } else { Err(Violation::Mismatch { what, found, wanted }) }
}

/// The bytes of rescalings: nine a column, which is no whole number of bits that [`Found`] counts in.
fn column_bytes(columns: &Found) -> super::Bytes {
    super::Bytes { start: columns.start, length: columns.region.width() * u64::from(Column::ELEMENT.bits) / 8 }
}

/// `x w^T` of a packed tile of weights, with the scales of its groups.
fn multiplied(x: &[i32], packed: &[u8], element: crate::Element, [m, n, k]: [usize; 3]) -> Vec<i64> {
    let bits = data::code_bits(element);
    let codes = data::codes(packed, bits, n * k);
    let (group, scales) = match element.per {
        1 => (k, &[][..]),
        per => (per as usize, &packed[(n * k * bits as usize).div_ceil(8)..]),
    };
    let mut out = vec![0i64; m * n];
    for i in 0..m {
        for j in 0..n {
            let terms = x[i * k..][..k].chunks(group).zip(codes[j * k..][..k].chunks(group));
            for (at, (x, w)) in terms.enumerate() {
                let part = x.iter().zip(w).fold(0i64, |sum, (x, w)| sum.wrapping_add(i64::from(x.wrapping_mul(*w))));
                let scale = scales.get(j * k.div_ceil(group) + at).map_or(1, |scale| i64::from(*scale as i8));
                out[i * n + j] = out[i * n + j].wrapping_add(part.wrapping_mul(scale));
            }
        }
    }
    out
}

/// The results of sums `[rows, columns]`, in the order of `out`.
fn finished(
    call: &Call,
    sums: &[i32],
    columns: &[Column],
    extra: Option<(Vec<i32>, Area)>,
    finish: &Finish,
    out: &Found,
) -> Checked<Vec<i32>> {
    let wide: Vec<i64> = sums
        .chunks(columns.len())
        .flat_map(|row| row.iter().zip(columns).map(|(x, c)| c.rescale.apply(x.saturating_add(c.bias))))
        .collect();
    let extra = || extra.ok_or(Violation::Index { what: "extra operand", index: 0, count: 0 });
    match finish {
        Finish::Rescale => Ok(wide.iter().map(|x| saturate(*x, out.bits)).collect()),
        Finish::Add => added(&wide, columns, extra()?, out),
        Finish::Activated { constant } => {
            let (table, rescale) = table_of(call, *constant)?;
            let activated = wide.iter().map(|x| rescale.apply(fixed::looked_up(table, saturate(*x, 16))));
            Ok(activated.map(|x| saturate(x, out.bits)).collect())
        }
        Finish::Rotary { head, rotated, constant, .. } => {
            let ranges = ranges_of(call, *constant)?;
            let mut numbers: Vec<i32> = wide.iter().map(|x| saturate(*x, 16)).collect();
            norm_heads(&mut numbers, ranges, *head, out);
            if *rotated > 0 {
                rotate(&mut numbers, &extra()?.0, [*head, *rotated], out);
            }
            Ok(narrowed(&numbers, ranges, out))
        }
        Finish::Gated { constant } => {
            let (table, rescale) = table_of(call, *constant)?;
            let gated = |pair: &[i64]| rescale.apply(fixed::looked_up(table, saturate(pair[0], 16)) * saturate(pair[1], 16));
            Ok(wide.chunks_exact(2).map(|pair| saturate(gated(pair), out.bits)).collect())
        }
    }
}

/// With a residual, shifted to the steps of the output.
fn added(wide: &[i64], columns: &[Column], (residual, region): (Vec<i32>, Area), out: &Found) -> Checked<Vec<i32>> {
    agree("columns of the extra operand", region.columns, out.region.columns)?;
    let carried = residual.iter().zip(columns.iter().cycle()).map(|(y, c)| fixed::shift_down(*y, c.coarser.into()));
    Ok(wide.iter().zip(carried).map(|(x, y)| saturate(x + i64::from(y), out.bits)).collect())
}

/// A residual is there, and a table of activations. The boxes of a rotary embedding are whole heads, and every head has its angles, its range and its
/// gains.
fn check_finish(call: &Call, finish: &Finish, out: &Found, table: Option<&Found>) -> Checked {
    match finish {
        Finish::Add if table.is_none() => return Err(Violation::Index { what: "extra operand", index: 0, count: 0 }),
        Finish::Activated { constant } | Finish::Gated { constant } => table_of(call, *constant).map(drop)?,
        _ => {}
    }
    let Finish::Rotary { head, normed, rotated, constant } = finish else { return Ok(()) };
    match table {
        Some(table) => agree("columns of the table", table.region.columns, [0, *head])?,
        None if *rotated == 0 => {}
        None => return Err(Violation::Index { what: "extra operand", index: 0, count: 0 }),
    }
    let [from, to] = out.region.columns;
    let whole = |column: u64| column.is_multiple_of(*head);
    if wrong_ranges(ranges_of(call, *constant)?, [to, *head, *normed]).is_some() || ![from, to, *rotated].into_iter().all(whole) {
        return Err(Violation::Mismatch { what: "heads", found: out.region.columns, wanted: [0, *head] });
    }
    Ok(())
}

fn ranges_of(call: &Call, index: u32) -> Checked<&[Range]> {
    match constant_of(call, index)? {
        Constant::Ranges(ranges) => Ok(ranges),
        _ => Err(no_constant(call, index)),
    }
}

/// The range of a column, which has one: see [`check_finish`].
fn range_of(ranges: &[Range], column: u64) -> &Range {
    ranges.iter().find(|range| column < range.end).expect("`check_finish` found a range for each column")
}

/// The heads of the output that have gains, normed in place; int16.
fn norm_heads(numbers: &mut [i32], ranges: &[Range], head: u64, out: &Found) {
    let [from, to] = out.region.columns;
    for row in numbers.chunks_mut(out.region.width() as usize) {
        for (start, numbers) in (from..to).step_by(head as usize).zip(row.chunks_mut(head as usize)) {
            if let Some(norm) = &range_of(ranges, start).norm {
                let normed: Vec<i32> = norm.apply(numbers).collect();
                numbers.copy_from_slice(&normed);
            }
        }
    }
}

/// The first `rotated` columns of the output rotated by position, in heads of `head` columns.
fn rotate(numbers: &mut [i32], table: &[i32], [head, rotated]: [u64; 2], out: &Found) {
    let (width, base) = (out.region.width(), out.region.columns[0]);
    let half = head as usize / 2;
    for (row, angles) in numbers.chunks_mut(width as usize).zip(table.chunks(2 * half)) {
        for (at, pair) in row.chunks_mut(2 * half).enumerate() {
            if base + (at * 2 * half) as u64 >= rotated {
                continue;
            }
            let (first, second) = pair.split_at_mut(half);
            for i in 0..half {
                (first[i], second[i]) = fixed::rotate(first[i], second[i], angles[i], angles[half + i]);
            }
        }
    }
}

/// From int16 to int8, each range of columns by its own rescaling.
fn narrowed(numbers: &[i32], ranges: &[Range], out: &Found) -> Vec<i32> {
    let [from, to] = out.region.columns;
    let rescales: Vec<Rescale> = (from..to).map(|column| range_of(ranges, column).rescale).collect();
    let rows = numbers.chunks(rescales.len().max(1));
    rows.flat_map(|row| row.iter().zip(&rescales).map(|(x, r)| saturate(r.apply(*x), 8))).collect()
}

/// The table of an activation, with what its results are rescaled by.
fn table_of(call: &Call, index: u32) -> Checked<(&[i16], Rescale)> {
    match constant_of(call, index)? {
        Constant::Gate { table, rescale } if table.len() == GATE_ENTRIES => Ok((table, *rescale)),
        Constant::Gate { table, .. } => {
            Err(Violation::Index { what: "gate code", index: table.len() as u64, count: GATE_ENTRIES as u64 })
        }
        _ => Err(no_constant(call, index)),
    }
}
