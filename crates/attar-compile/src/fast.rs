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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Element,
        fixed::Rescale,
        program::{Column, Destination, Epilogue, Role},
    };

    /// Products of both widths, with and without groups, whose sums need more than 32 bits where they may.
    #[test]
    fn products_are_those_of_the_reference() {
        for (element, weight) in [Element::INT8, Element::INT16]
            .into_iter()
            .flat_map(|x| [Element::INT8, Element::INT4, Element { bits: 136, per: 32 }].map(|w| (x, w)))
        {
            let ([m, k, n], mut program) = ([3u64, 576u64, 7u64], Program::default());
            let x = program.tensor("x", [m, k], element, Role::Input);
            let codes = program.tensor("w", [n, k], weight, Role::Weight);
            let columns = program.tensor("columns", [1, n], Column::ELEMENT, Role::Constant);
            let tensor = program.tensor("out", [m, n], Element::INT16, Role::Output);
            let narrow = Program::narrow(element, k, weight);
            let out = vec![Destination { tensor, row: 0 }];
            let linear = Linear { x, weight: codes, columns, out, epilogue: Epilogue::Rescale, narrow };
            program.kernel("product", Kernel::Linear(linear));
            program.check().expect("it is a program");
            let mut memory = Memory::new(&program);
            let top = (1i64 << (element.bits - 1)) - 1;
            let number = |at: u64| (i64::from((at * 7919 % 1009) as u32) * 2 * top / 1009 - top) as i32;
            memory.set(x, Data::Numbers((0..m * k).map(number).collect()));
            let half = 1i64 << (crate::data::code_bits(weight) - 1);
            let codes_of = (0..n * k).map(|at| ((at * 31 % (2 * half as u64)) as i64 - half) as i8).collect();
            let scales = if weight.per > 1 { (0..n * k / 32).map(|at| (at * 13 % 200) as i8).collect() } else { Vec::new() };
            memory.set(codes, Data::Weight { codes: codes_of, scales });
            let rescale = Rescale::new(1e-4).expect("it is in range");
            memory.set(columns, Data::Columns(vec![Column { rescale, bias: 12, coarser: 0 }; n as usize]));
            let (mut found, mut wanted) = (memory.clone(), memory);
            run(&program, &mut found);
            reference::run(&program, &mut wanted);
            assert!(found == wanted, "{element} x {weight}");
            assert!(found.get(tensor).numbers().iter().any(|x| *x != 0), "{element} x {weight}");
        }
    }
}
