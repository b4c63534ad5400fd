//! The columns that stay take over what the others made: exact least squares.

use faer::{Mat, Side, linalg::solvers::Solve};

use crate::{
    Error, Hessian, Result,
    hessian::{Cross, damped},
};

/// Damping towards the old weight, as a share of the mean of the diagonal. Some ten thousand tokens do not decide a layer of a thousand
/// inputs: less damping fits the calibration text better and others worse.
pub(super) const DAMPING: f64 = 0.1;

/// What a layer is to return for what it reads.
pub enum Response<'a> {
    /// What it returns now, whatever it reads.
    Own,
    /// Second moments of the wanted outputs with what it reads.
    Wanted(&'a Cross),
}

/// The weight `[rows, columns]` with zeros in all but the `kept` columns, which solve
/// `min E|y - W x|^2 + damping |W - W0|^2` for the wanted outputs `y`.
///
/// # Errors
/// If no damping makes the second moments positive definite, or if the solution is not finite.
pub fn refitted(weight: &[f32], moments: &Hessian, response: &Response<'_>, kept: &[usize]) -> Result<Vec<f32>> {
    let (n, count) = (moments.inputs(), kept.len());
    let rows = weight.len() / n.max(1);
    let w = Mat::from_fn(rows, n, |i, j| f64::from(weight[i * n + j]));
    let own = match response {
        Response::Own => Some(&w * Mat::from_fn(n, count, |i, j| moments.mean(i, kept[j]))),
        Response::Wanted(_) => None,
    };
    let part = moments.restricted(kept);
    let (solved, _) = damped(&part, DAMPING, |damping| {
        let damped = Mat::from_fn(count, count, |i, j| part.mean(i, j) + if i == j { damping } else { 0.0 });
        let right = Mat::from_fn(count, rows, |j, i| {
            let wanted = match (&own, response) {
                (Some(own), _) => own[(i, j)],
                (None, Response::Wanted(cross)) => cross.mean(i, kept[j]),
                (None, Response::Own) => unreachable!("made above"),
            };
            wanted + damping * w[(i, kept[j])]
        });
        Some(damped.llt(Side::Lower).ok()?.solve(&right))
    })?;
    let mut out = vec![0.0; weight.len()];
    for i in 0..rows {
        for (j, column) in kept.iter().enumerate() {
            out[i * n + column] = solved[(j, i)] as f32;
        }
    }
    match out.iter().all(|x| x.is_finite()) {
        true => Ok(out),
        false => Err(Error::NotPositiveDefinite { inputs: count, damping: DAMPING }),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    /// Rounding of the results to f32.
    const CLOSE: f64 = 1e-5;

    /// Tokens `[count, 3]` of which the last column is `a - 2 b`.
    fn tokens(count: usize) -> Tensor {
        let of = |at: usize| {
            let (a, b) = (((at * 37) % 19) as f32 / 9.0 - 1.0, ((at * 53) % 23) as f32 / 11.0 - 1.0);
            [a, b, a - 2.0 * b]
        };
        Tensor::from_vec((0..count).flat_map(of).collect::<Vec<f32>>(), (count, 3), &Device::Cpu).unwrap()
    }

    /// What the first two of three columns are by Cramer's rule, given second moments of the wanted output with them.
    fn by_hand(moments: &Hessian, old: [f64; 2], wanted: [f64; 2]) -> [f64; 2] {
        let c = |i: usize, j: usize| moments.mean(i, j);
        let damping = DAMPING * (c(0, 0) + c(1, 1)) / 2.0;
        let ([a, d], b) = ([c(0, 0) + damping, c(1, 1) + damping], c(0, 1));
        let right = [wanted[0] + damping * old[0], wanted[1] + damping * old[1]];
        let determinant = a * d - b * b;
        [(d * right[0] - b * right[1]) / determinant, (a * right[1] - b * right[0]) / determinant]
    }

    #[track_caller]
    fn assert_are(found: &[f32], wanted: [f64; 2]) {
        let close = found.iter().zip(wanted).all(|(found, wanted)| (f64::from(*found) - wanted).abs() < CLOSE);
        assert!(close && found[2] == 0.0, "{found:?}, {wanted:?}");
    }

    #[test]
    fn what_stays_takes_over_what_a_column_made() {
        let mut moments = Hessian::new(3);
        moments.add(&tokens(200)).unwrap();
        let (weight, c) = ([1.0f32, 1.0, 3.0], |i: usize, j: usize| moments.mean(i, j));
        let fitted = refitted(&weight, &moments, &Response::Own, &[0, 1]).unwrap();
        let own = [0, 1].map(|j| c(0, j) + c(1, j) + 3.0 * c(2, j));
        assert_are(&fitted, by_hand(&moments, [1.0, 1.0], own));
        assert!(fitted[0] > 3.0 && fitted[1] < -3.0, "towards 4 and -5, which would do all of it: {fitted:?}");
    }

    #[test]
    fn wanted_outputs_are_met_as_far_as_damping_lets_them() {
        let x = tokens(200);
        let (mut moments, mut cross) = (Hessian::new(3), Cross::new(1, 3));
        moments.add(&x).unwrap();
        let y = x.matmul(&Tensor::new(&[[2.0f32], [0.5], [0.0]], &Device::Cpu).unwrap()).unwrap();
        cross.add(&y, &x).unwrap();
        let fitted = refitted(&[0.0, 0.0, 1.0], &moments, &Response::Wanted(&cross), &[0, 1]).unwrap();
        assert_are(&fitted, by_hand(&moments, [0.0, 0.0], [cross.mean(0, 0), cross.mean(0, 1)]));
    }

    #[test]
    fn a_layer_that_keeps_all_columns_stays_as_it_is() {
        let mut moments = Hessian::new(3);
        moments.add(&tokens(50)).unwrap();
        let weight = [0.3, -1.0, 2.0, 5.0, 0.0, -0.25];
        let fitted = refitted(&weight, &moments, &Response::Own, &[0, 1, 2]).unwrap();
        assert!(fitted.iter().zip(weight).all(|(a, b)| (a - b).abs() < 1e-4), "{fitted:?}");
    }
}
