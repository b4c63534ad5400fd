//! The reference meaning of a program: every kernel as plain loops over whole matrices, without tiles. It shares only the
//! arithmetic of [`crate::fixed`] with the simulator.

use crate::{
    Program,
    data::{Data, Memory},
    fixed::{self, Exponential, NormRow, RUN, SoftmaxRow, saturate},
    program::{Attention, Destination, Epilogue, Kernel, Linear, Norm},
};

/// Runs a program: reads and writes `memory`.
pub fn run(program: &Program, memory: &mut Memory) {
    program.kernels.iter().for_each(|(_, kernel)| run_kernel(program, kernel, memory));
}

fn run_kernel(program: &Program, kernel: &Kernel, memory: &mut Memory) {
    match kernel {
        Kernel::Norm(n) => norm(program, n, memory),
        Kernel::Linear(l) => linear(program, l, memory),
        Kernel::Attention(a) => attention(program, a, memory),
        Kernel::GatedMlp(mlp) => {
            linear(program, &mlp.gated, memory);
            linear(program, &mlp.down, memory);
        }
        Kernel::Normed(normed) => {
            norm(program, &normed.norm, memory);
            run_kernel(program, &normed.then, memory);
        }
    }
}

pub(crate) fn norm(program: &Program, norm: &Norm, memory: &mut Memory) {
    let width = program.get(norm.x).columns as usize;
    let constants = memory.get(norm.gains).numbers();
    let by = NormRow::of([norm.epsilon, norm.gain_shift.into()], constants, width, norm.centered);
    let rows = memory.get(norm.x).numbers().chunks(width).skip(norm.row as usize).take(program.get(norm.out).rows as usize);
    let bits = program.get(norm.out).element.bits;
    let normed = rows.flat_map(|row| by.apply(row));
    let out = match norm.residual.map(|id| memory.get(id).numbers()) {
        None => normed.map(|x| saturate(x, bits)).collect(),
        Some(residual) => {
            let shifts = &constants[constants.len() - width..];
            let carried = residual.iter().zip(shifts.iter().cycle()).map(|(x, shift)| fixed::shift_down(*x, *shift as u32));
            normed.zip(carried).map(|(x, carried)| saturate(x + i64::from(carried), bits)).collect()
        }
    };
    memory.set(norm.out, Data::Numbers(out));
}

/// `x weight^T` with the scales of groups, `[m, n]`.
fn accumulate(program: &Program, linear: &Linear, memory: &Memory) -> Vec<i64> {
    let [m, k, n] = program.product(linear).map(|d| d as usize);
    let Data::Weight { codes, scales } = memory.get(linear.weight) else { panic!("a weight holds codes") };
    let group = match scales.is_empty() {
        true => k,
        false => program.get(linear.weight).element.per as usize,
    };
    let x = memory.get(linear.x).numbers();
    let mut out = vec![0i64; m * n];
    for j in 0..n {
        let row: Vec<i32> = codes[j * k..][..k].iter().map(|c| i32::from(*c)).collect();
        for i in 0..m {
            let parts = x[i * k..][..k].chunks(group).zip(row.chunks(group)).enumerate();
            out[i * n + j] = parts.fold(0, |sum, (g, (x, w))| {
                let part: i64 = x.iter().zip(w).map(|(x, w)| i64::from(x * w)).sum();
                let scale = scales.get(j * k.div_ceil(group) + g).map_or(1, |s| i64::from(*s));
                sum + part * scale
            });
        }
    }
    out
}

fn linear(program: &Program, linear: &Linear, memory: &mut Memory) {
    finish(program, linear, &accumulate(program, linear, memory), memory);
}

/// From sums `[m, n]` to the outputs of a product.
pub(crate) fn finish(program: &Program, linear: &Linear, sums: &[i64], memory: &mut Memory) {
    let [m, _, n] = program.product(linear).map(|d| d as usize);
    let accumulators: Vec<i32> = sums.iter().map(|sum| fixed::narrowed(*sum, linear.narrow)).collect();
    let Data::Columns(columns) = memory.get(linear.columns) else { panic!("columns hold rescalings") };
    let rescaled = |i: usize, j: usize| columns[j].rescale.apply(accumulators[i * n + j].saturating_add(columns[j].bias));
    let bits = program.get(linear.out[0].tensor).element.bits;
    let out: Vec<i32> = match &linear.epilogue {
        Epilogue::Rescale => pairs(m, n).map(|(i, j)| saturate(rescaled(i, j), bits)).collect(),
        Epilogue::Add { residual } => {
            let residual = memory.get(*residual).numbers();
            let carried = |i: usize, j: usize| fixed::shift_down(residual[i * n + j], columns[j].coarser.into());
            pairs(m, n).map(|(i, j)| saturate(rescaled(i, j) + i64::from(carried(i, j)), bits)).collect()
        }
        Epilogue::Rotary { table, position, head, rotated, ranges } => {
            let (half, table) = (*head as usize / 2, table.map_or(&[][..], |table| memory.get(table).numbers()));
            let range_of = |j: usize| ranges.iter().find(|range| j < range.end as usize).expect("ranges cover all columns");
            let all: Vec<i32> = pairs(m, n).map(|(i, j)| saturate(rescaled(i, j), 16)).collect();
            // A row is whole heads, so that heads lie behind each other.
            let heads = all.chunks(2 * half).enumerate();
            let all: Vec<i32> = heads
                .flat_map(|(at, numbers)| match &range_of(at * 2 * half % n).norm {
                    Some(norm) => norm.apply(numbers).collect(),
                    None => numbers.to_vec(),
                })
                .collect();
            let wide = |i: usize, j: usize| all[i * n + j];
            pairs(m, n)
                .map(|(i, j)| {
                    let within = j % (2 * half);
                    let turn = |first: usize, at: usize| {
                        let row = &table[(*position as usize + i) * 2 * half..][..2 * half];
                        fixed::rotate(wide(i, first), wide(i, first + half), row[at], row[half + at])
                    };
                    let value = match (j < *rotated as usize, within < half) {
                        (false, _) => wide(i, j),
                        (true, true) => turn(j, within).0,
                        (true, false) => turn(j - half, within - half).1,
                    };
                    saturate(range_of(j).rescale.apply(value), 8)
                })
                .collect()
        }
        Epilogue::Activated { table, rescale } => pairs(m, n)
            .map(|(i, j)| {
                let activated = fixed::looked_up(table, saturate(rescaled(i, j), 16));
                saturate(rescale.apply(activated), bits)
            })
            .collect(),
        Epilogue::Gated { table, rescale } => pairs(m, n / 2)
            .map(|(i, j)| {
                let gate = fixed::looked_up(table, saturate(rescaled(i, 2 * j), 16));
                let up = saturate(rescaled(i, 2 * j + 1), 16);
                saturate(rescale.apply(gate * up), bits)
            })
            .collect(),
    };
    spread(program, &linear.out, &out, m, memory);
}

fn pairs(m: usize, n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..m).flat_map(move |i| (0..n).map(move |j| (i, j)))
}

/// Writes `[m, ..]` to the tensors that stand side by side.
fn spread(program: &Program, parts: &[Destination], out: &[i32], m: usize, memory: &mut Memory) {
    let width = out.len() / m;
    let mut first = 0;
    for part in parts {
        let columns = program.get(part.tensor).columns as usize;
        let target = memory.numbers_mut(part.tensor);
        for i in 0..m {
            target[(part.row as usize + i) * columns..][..columns].copy_from_slice(&out[i * width + first..][..columns]);
        }
        first += columns;
    }
}

fn attention(program: &Program, attention: &Attention, memory: &mut Memory) {
    let rows = 0..program.get(attention.query).rows;
    let out = rows.flat_map(|row| attended(program, attention, memory, row)).collect();
    memory.set(attention.out, Data::Numbers(out));
}

/// What one row of queries attends to, in all heads: the keys of its own sequence.
pub(crate) fn attended(program: &Program, attention: &Attention, memory: &Memory, row: u64) -> Vec<i32> {
    let [batch, of, at] = [program.batch, row % program.batch, row / program.batch].map(|n| n as usize);
    let (exponential, head) = (Exponential::default(), attention.head as usize);
    let (query, state) = (memory.get(attention.query).numbers(), memory.get(attention.state).numbers());
    let (width, state_width) = (attention.heads as usize * head, 2 * attention.key_heads as usize * head);
    let bits = program.get(attention.out).element.bits;
    let mut out = vec![0; width];
    for h in 0..attention.heads as usize {
        let key_head = h / attention.group() as usize;
        let q = &query[row as usize * width + h * head..][..head];
        let part = |j: u64, part: usize| &state[(j as usize * batch + of) * state_width + part * head..][..head];
        let key = |j: u64| part(j, key_head);
        let value = |j: u64| part(j, attention.key_heads as usize + key_head);
        let (from, to) = attention.keys(at as u64);
        let (mut softmax, mut sums) = (SoftmaxRow::EMPTY, vec![0i32; head]);
        for run in (from / RUN * RUN..to).step_by(RUN as usize) {
            let seen = run..(run + RUN).min(to);
            let logits: Vec<Option<i32>> = seen
                .clone()
                .map(|j| (j >= from).then(|| fixed::logit(q.iter().zip(key(j)).map(|(q, k)| q * k).sum(), attention.logits)))
                .collect();
            let mut weights = vec![0; logits.len()];
            sums = softmax.take((&exponential, attention.weight_bits), &logits, &mut weights, sums.into_iter());
            for (j, weight) in seen.zip(weights) {
                sums.iter_mut().zip(value(j)).for_each(|(sum, v)| *sum += weight * v);
            }
        }
        let place = &mut out[h * head..][..head];
        place.iter_mut().zip(sums).for_each(|(o, sum)| *o = saturate(softmax.finish(sum, attention.rescale), bits));
    }
    out
}
