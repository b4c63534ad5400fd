//! Orthogonal matrices of any width that spread every coordinate over all others: a pure function of width and seed.
//!
//! `R = D (M_1 x M_2 x … x H_2 x … x H_2)`, where `x` is Kronecker's product, `D` holds random signs, `H_2` is Sylvester's
//! `[[1, 1], [1, -1]] / sqrt(2)` and the `M_i` make up the odd part of the width:
//!
//! - Hadamard matrices by Paley's constructions (R. Paley, "On Orthogonal Matrices", 1933) where one of a moderate order
//!   divides the width: 576 is 36 x 16, 1536 is 12 x 128, 960 is 60 x 16. All entries of `R` then have one magnitude.
//! - Elsewhere, for every prime `q` left: `J / q + Q / sqrt(q)`, where `J` is all ones and `Q` is Jacobsthal's matrix of
//!   quadratic characters. `Q J = 0` and `Q Q^T = q I - J`, so it is orthogonal; its entries are nearly of one magnitude:
//!   172 is 43 x 4.
//!
//! Only additions, multiplications and square roots in f64, in a fixed order: the bits are the same everywhere.
//!
//! ```
//! let rotation = attar_graph::Rotation::new(576, 1);
//! assert!(rotation.is_hadamard());
//! let mut row = vec![0.0; 576];
//! row[5] = 24.0;
//! rotation.apply(&mut row);
//! assert!(row.iter().all(|x| (x.abs() - 1.0).abs() < 1e-6));
//! ```

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use rayon::prelude::*;

/// The largest order of a Paley matrix that is used: beyond, a product with it costs more than its flatness is worth.
const LARGEST_PALEY: usize = 256;

/// Rows a parallel part.
const ROWS: usize = 16;

/// An orthogonal matrix `R` `[size, size]`.
#[derive(Debug)]
pub struct Rotation {
    size: usize,
    /// The diagonal of `D`.
    signs: Vec<f64>,
    factors: Vec<Factor>,
    /// `size / product of the factors' orders`.
    power_of_two: usize,
}

/// `M_i`.
#[derive(Debug)]
struct Factor {
    order: usize,
    /// `[order, order]`.
    entries: Vec<f64>,
    hadamard: bool,
}

impl Rotation {
    /// Of width `size`, with the signs of `seed`.
    ///
    /// # Panics
    /// If `size` is 0.
    pub fn new(size: usize, seed: u64) -> Rotation {
        assert!(size > 0, "a rotation has a size of at least 1");
        let twos = size.trailing_zeros();
        let (factors, twos) = paley_factors(size >> twos, twos)
            .unwrap_or_else(|| (primes(size >> twos).into_iter().map(Factor::prime).collect(), twos));
        Rotation { size, signs: signs(size, seed), factors, power_of_two: 1 << twos }
    }

    /// The same, made once in a process.
    pub(crate) fn shared(size: usize, seed: u64) -> Arc<Rotation> {
        static MADE: Mutex<BTreeMap<(usize, u64), Arc<Rotation>>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().expect("no panic holds this lock");
        made.entry((size, seed)).or_insert_with(|| Arc::new(Rotation::new(size, seed))).clone()
    }

    /// Its width.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether all its entries have one magnitude.
    pub fn is_hadamard(&self) -> bool {
        self.factors.iter().all(|factor| factor.hadamard)
    }

    /// Replaces `x` `[.., size]` by `x R`. Each row is rounded to f32 once.
    pub fn apply(&self, x: &mut [f32]) {
        x.par_chunks_mut(ROWS * self.size).for_each(|rows| {
            let mut row = vec![0.0; self.size];
            let mut room = vec![0.0; self.size];
            for x in rows.chunks_exact_mut(self.size) {
                row.iter_mut().zip(&*x).for_each(|(row, x)| *row = f64::from(*x));
                self.turn(&mut row, &mut room);
                x.iter_mut().zip(&row).for_each(|(x, row)| *x = *row as f32);
            }
        });
    }

    /// Replaces `w` `[size, columns]` by `R^T w`.
    pub fn apply_to_columns(&self, w: &mut [f32], columns: usize) {
        let mut turned = vec![0.0; w.len()];
        turned.par_chunks_mut(self.size).enumerate().for_each(|(column, turned)| {
            turned.iter_mut().zip(w[column..].iter().step_by(columns)).for_each(|(turned, w)| *turned = *w);
        });
        self.apply(&mut turned);
        w.par_chunks_mut(columns).enumerate().for_each(|(row, w)| {
            w.iter_mut().zip(turned[row..].iter().step_by(self.size)).for_each(|(w, turned)| *w = *turned);
        });
    }

    /// `row R`. `room` is scratch of the same length.
    fn turn(&self, row: &mut [f64], room: &mut [f64]) {
        row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        let mut inner = self.size;
        for factor in &self.factors {
            let outer = inner;
            inner /= factor.order;
            row.chunks_exact_mut(outer).for_each(|part| factor.turn(part, &mut room[..outer], inner));
        }
        sylvester(row, self.power_of_two);
    }
}

/// The fast Walsh-Hadamard transform of every run of `size`, a power of two, scaled to keep lengths.
fn sylvester(row: &mut [f64], size: usize) {
    let mut half = 1;
    while half < size {
        for pair in row.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
        }
        half *= 2;
    }
    let scale = 1.0 / (size as f64).sqrt();
    row.iter_mut().for_each(|x| *x *= scale);
}

impl Factor {
    /// `part` is `[order, inner]` and becomes `M^T part`.
    fn turn(&self, part: &mut [f64], room: &mut [f64], inner: usize) {
        room.fill(0.0);
        for (to, room) in room.chunks_exact_mut(inner).enumerate() {
            for (from, part) in part.chunks_exact(inner).enumerate() {
                let entry = self.entries[from * self.order + to];
                room.iter_mut().zip(part).for_each(|(sum, x)| *sum += entry * x);
            }
        }
        part.copy_from_slice(room);
    }

    fn of(order: usize, hadamard: bool, entry: impl Fn(usize, usize) -> f64) -> Factor {
        let entries = (0..order * order).map(|at| entry(at / order, at % order)).collect();
        Factor { order, entries, hadamard }
    }

    /// `J / q + Q / sqrt(q)`.
    fn prime(q: usize) -> Factor {
        let character = characters(q);
        let (flat, root) = (1.0 / q as f64, 1.0 / (q as f64).sqrt());
        Factor::of(q, false, |i, j| flat + root * character[(i + q - j) % q])
    }

    /// A Hadamard matrix of that order, if one of Paley's constructions over a prime field gives it.
    fn paley(order: usize) -> Option<Factor> {
        if order > 1 && order.is_multiple_of(4) && is_prime(order - 1) {
            return Some(Factor::paley_one(order - 1));
        }
        let half = order / 2;
        (order.is_multiple_of(4) && half > 1 && half % 4 == 2 && is_prime(half - 1)).then(|| Factor::paley_two(half - 1))
    }

    /// `I + S`, `q = 3 (mod 4)`, where `S = [[0, 1], [-1, Q]]`.
    fn paley_one(q: usize) -> Factor {
        let (character, scale) = (characters(q), 1.0 / ((q + 1) as f64).sqrt());
        Factor::of(q + 1, true, |i, j| {
            scale
                * match (i, j) {
                    _ if i == j => 1.0,
                    (0, _) => 1.0,
                    (_, 0) => -1.0,
                    _ => character[(i + q - j) % q],
                }
        })
    }

    /// `C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]]`, `q = 1 (mod 4)`, where `C = [[0, 1], [1, Q]]`.
    fn paley_two(q: usize) -> Factor {
        let (character, scale) = (characters(q), 1.0 / ((2 * (q + 1)) as f64).sqrt());
        Factor::of(2 * (q + 1), true, |i, j| {
            let (a, b) = (i / 2, j / 2);
            let conference = match (a, b) {
                _ if a == b => 0.0,
                (0, _) | (_, 0) => 1.0,
                _ => character[(a + q - b) % q],
            };
            let [outside, inside] =
                [[[1.0, 1.0], [1.0, -1.0]], [[1.0, -1.0], [-1.0, -1.0]]].map(|m: [[f64; 2]; 2]| m[i % 2][j % 2]);
            scale * (conference * outside + if a == b { inside } else { 0.0 })
        })
    }
}

/// Paley matrices whose orders have `odd` as odd part between them, and how many of `twos` are left; the fewest first.
fn paley_factors(odd: usize, twos: u32) -> Option<(Vec<Factor>, u32)> {
    if odd == 1 {
        return Some((Vec::new(), twos));
    }
    let divisors = (3..=odd).rev().step_by(2).filter(|d| odd.is_multiple_of(*d));
    for (divisor, used) in divisors.flat_map(|d| (2..=twos).map(move |used| (d, used))) {
        let order = divisor << used;
        if order <= LARGEST_PALEY
            && let Some(factor) = Factor::paley(order)
            && let Some((mut rest, left)) = paley_factors(odd / divisor, twos - used)
        {
            rest.insert(0, factor);
            return Some((rest, left));
        }
    }
    None
}

/// The quadratic character of every residue of a prime: 1 for squares, -1 for others, 0 for 0.
fn characters(q: usize) -> Vec<f64> {
    let mut character = vec![-1.0; q];
    (1..q).for_each(|x| character[x * x % q] = 1.0);
    character[0] = 0.0;
    character
}

/// The prime factors of an odd number, ascending.
fn primes(mut n: usize) -> Vec<usize> {
    let mut all = Vec::new();
    let mut divisor = 3;
    while divisor * divisor <= n {
        while n.is_multiple_of(divisor) {
            all.push(divisor);
            n /= divisor;
        }
        divisor += 2;
    }
    all.extend((n > 1).then_some(n));
    all
}

fn is_prime(n: usize) -> bool {
    n > 2 && n % 2 == 1 && primes(n) == [n]
}

/// Signs by SplitMix64.
fn signs(size: usize, seed: u64) -> Vec<f64> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        if (z ^ (z >> 31)) >> 63 == 0 { 1.0 } else { -1.0 }
    };
    (0..size).map(|_| next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// f32 entries of f64 products.
    const ORTHOGONAL: f64 = 1e-6;

    /// `R` by rows.
    fn matrix(rotation: &Rotation) -> Vec<f32> {
        let n = rotation.size();
        let mut rows: Vec<f32> = (0..n * n).map(|at| if at / n == at % n { 1.0 } else { 0.0 }).collect();
        rotation.apply(&mut rows);
        rows
    }

    fn assert_orthogonal(n: usize) {
        let rows = matrix(&Rotation::new(n, 3));
        let product = |i: usize, j: usize| -> f64 {
            rows[i * n..][..n].iter().zip(&rows[j * n..][..n]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        for i in 0..n {
            for j in 0..=i {
                let wanted = if i == j { 1.0 } else { 0.0 };
                assert!((product(i, j) - wanted).abs() < ORTHOGONAL, "{n}: rows {i} and {j}: {}", product(i, j));
            }
        }
    }

    #[test]
    fn rows_are_orthonormal() {
        (1..=96).for_each(assert_orthogonal);
        [128, 172, 192, 300, 343, 344, 576, 688, 960].into_iter().for_each(assert_orthogonal);
    }

    /// A linear map that keeps the lengths and angles of vectors without structure is orthogonal.
    #[test]
    fn widths_up_to_2048_keep_lengths_and_angles() {
        // Large odd widths cost most and no model has them: some.
        for n in (1..=2048).filter(|n| *n <= 512 || n % 4 == 0 || n % 37 == 0) {
            let rotation = Rotation::new(n, 5);
            let mut state = n as u32;
            let mut next = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                f64::from(state) / f64::from(u32::MAX) - 0.5
            };
            let x: Vec<f64> = (0..n).map(|_| next()).collect();
            let y: Vec<f64> = (0..n).map(|_| next()).collect();
            let turned = |x: &[f64]| {
                let (mut x, mut room) = (x.to_vec(), vec![0.0; n]);
                rotation.turn(&mut x, &mut room);
                x
            };
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let (scale, a, b) = (dot(&x, &x), turned(&x), turned(&y));
            assert!((dot(&a, &a) - scale).abs() < ORTHOGONAL * scale, "{n}: length");
            assert!((dot(&a, &b) - dot(&x, &y)).abs() < ORTHOGONAL * scale, "{n}: angle");
        }
    }

    #[test]
    fn widths_of_models_have_hadamard_matrices() {
        for n in [1, 2, 4, 8, 12, 20, 24, 28, 32, 36, 60, 64, 96, 128, 384, 576, 768, 896, 960, 1152, 1536, 2048, 2560, 4096] {
            let rotation = Rotation::new(n, 0);
            assert!(rotation.is_hadamard(), "{n}");
            let mut row = vec![0.0; n];
            row[n / 2] = 1.0;
            rotation.apply(&mut row);
            let wanted = 1.0 / (n as f32).sqrt();
            assert!(row.iter().all(|x| (x.abs() - wanted).abs() < 1e-6), "{n}");
        }
    }

    #[test]
    fn other_widths_are_nearly_as_flat() {
        for n in [172, 344, 688, 11_008] {
            let mut row = vec![0.0; n];
            row[n / 2] = 1.0;
            Rotation::new(n, 0).apply(&mut row);
            let most = row.iter().fold(0.0f32, |most, x| most.max(x.abs()));
            assert!(most * (n as f32).sqrt() < 1.2, "{n}: {most}");
        }
    }

    #[test]
    fn columns_are_turned_like_rows() {
        let (rotation, columns) = (Rotation::new(12, 9), 5);
        let w: Vec<f32> = (0..12 * columns).map(|at| (at * 7 % 11) as f32).collect();
        let mut turned = w.clone();
        rotation.apply_to_columns(&mut turned, columns);
        for column in 0..columns {
            let mut row: Vec<f32> = (0..12).map(|i| w[i * columns + column]).collect();
            rotation.apply(&mut row);
            assert!((0..12).all(|i| turned[i * columns + column] == row[i]));
        }
    }

    #[test]
    fn the_seed_decides_the_signs() {
        let matrices = [0, 0, 1].map(|seed| matrix(&Rotation::new(64, seed)));
        assert_eq!(matrices[0], matrices[1]);
        assert_ne!(matrices[0], matrices[2]);
    }
}
