//! The reference's numbers, faster: the same integers, with products by vector instructions and on all threads. What the
//! device computes is measured with it, where a proof would take hours.

use rayon::prelude::*;

use crate::{
    Program,
    data::{Data, Memory},
    program::{Kernel, Linear},
    reference,
};

/// Runs a program: reads and writes `memory`, with the result of [`reference::run`].
pub(crate) fn run(program: &Program, memory: &mut Memory) {
    program.kernels.iter().for_each(|(_, kernel)| run_kernel(program, kernel, memory));
}

fn run_kernel(program: &Program, kernel: &Kernel, memory: &mut Memory) {
    match kernel {
        Kernel::Norm(norm) => reference::norm(program, norm, memory),
        Kernel::Linear(product) => linear(program, product, memory),
        Kernel::Attention(attention) => {
            let rows = 0..program.get(attention.query).rows;
            let row = |row| reference::attended(program, attention, memory, row);
            let out = rows.into_par_iter().flat_map_iter(row).collect();
            memory.set(attention.out, Data::Numbers(out));
        }
        Kernel::GatedMlp(mlp) => {
            linear(program, &mlp.gated, memory);
            linear(program, &mlp.down, memory);
        }
        Kernel::Normed(normed) => {
            reference::norm(program, &normed.norm, memory);
            run_kernel(program, &normed.then, memory);
        }
    }
}

fn linear(program: &Program, linear: &Linear, memory: &mut Memory) {
    let sums = sums(program, linear, memory);
    reference::finish(program, linear, &sums, memory);
}

/// `x weight^T` with the scales of groups, `[m, n]`.
fn sums(program: &Program, linear: &Linear, memory: &Memory) -> Vec<i64> {
    let [m, k, n] = program.product(linear).map(|d| d as usize);
    let Data::Weight { codes, scales } = memory.get(linear.weight) else { panic!("a weight holds codes") };
    let group = if scales.is_empty() { k } else { program.get(linear.weight).element.per as usize };
    let groups = k.div_ceil(group);
    let x: Vec<i16> = memory.get(linear.x).numbers().iter().map(|x| *x as i16).collect();
    let column = |j: usize| {
        let row: Vec<i16> = codes[j * k..][..k].iter().map(|code| i16::from(*code)).collect();
        let scales = scales.get(j * groups..(j + 1) * groups);
        let sum = |x: &[i16]| -> i64 {
            let parts = x.chunks(group).zip(row.chunks(group)).map(|(x, w)| dot(x, w));
            match scales {
                None => parts.sum(),
                Some(scales) => parts.zip(scales).map(|(part, scale)| part * i64::from(*scale)).sum(),
            }
        };
        x.chunks(k).map(sum).collect::<Vec<i64>>()
    };
    let columns: Vec<Vec<i64>> = (0..n).into_par_iter().map(column).collect();
    (0..m).into_par_iter().flat_map_iter(|i| columns.iter().map(move |column| column[i])).collect()
}

/// Terms of int16 with codes of 8 bits are below 2^22: so many fit in 32 bits.
const TERMS: usize = 256;

fn dot(x: &[i16], w: &[i16]) -> i64 {
    let part = |(x, w): (&[i16], &[i16])| -> i32 { x.iter().zip(w).map(|(x, w)| i32::from(*x) * i32::from(*w)).sum() };
    x.chunks(TERMS).zip(w.chunks(TERMS)).map(|pair| i64::from(part(pair))).sum()
}
