//! Kernels of norms and pooling against their definitions in f64.

use attar_graph::kernel;
use candle_core::Tensor;

use crate::random::Random;

/// Sums of a few hundred f32 values, over the largest result.
const RELATIVE: f64 = 2e-6;

/// Rows of several lengths, around the 16 lanes of a sum; far from zero, so that a variance of squares would fail.
fn rows() -> Vec<Tensor> {
    let mut random = Random::new(11);
    let shapes = [[1, 1, 2], [2, 3, 15], [1, 7, 16], [3, 2, 17], [2, 5, 384], [1, 2, 1031]];
    shapes.iter().map(|dims| random.tensor(dims).affine(2.0, 30.0).unwrap()).collect()
}

fn values(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

fn assert_close(what: &str, got: &Tensor, want: &[f64]) {
    let (got, scale) = (values(got), want.iter().fold(0.0f64, |most, x| most.max(x.abs())));
    assert_eq!(got.len(), want.len(), "{what}");
    let worst = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
    assert!(worst <= RELATIVE * scale, "{what}: off by {worst} where the largest is {scale}");
}

#[test]
fn layer_norm_is_what_the_definition_says() {
    for x in rows() {
        let width = x.dims()[2];
        let mut random = Random::new(width as u64);
        let (gain, bias) = (random.tensor(&[width]), random.tensor(&[width]));
        for bias in [None, Some(&bias)] {
            let (g, b) = (values(&gain), bias.map(values));
            let row = |row: &[f64]| -> Vec<f64> {
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                let normed = |i: usize| (row[i] - mean) / (variance + 1e-5).sqrt() * g[i];
                (0..width).map(|i| normed(i) + b.as_ref().map_or(0.0, |b| b[i])).collect()
            };
            let want: Vec<f64> = values(&x).chunks(width).flat_map(row).collect();
            // A mean of 30 leaves five bits less of what is around it.
            let off = f64::from(2f32.powi(5));
            let got = kernel::layer_norm(&x, &gain, bias, 1e-5).unwrap();
            let worst = values(&got).iter().zip(&want).map(|(g, w)| (g - w).abs()).fold(0.0, f64::max);
            assert!(worst <= RELATIVE * off, "{:?}: off by {worst}", x.dims());
        }
    }
}

#[test]
fn normalized_rows_have_length_one_and_rows_of_zeros_stay() {
    for x in rows() {
        let width = x.dims()[2];
        let unit = |row: &[f64]| -> Vec<f64> {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            row.iter().map(|x| x / length).collect()
        };
        let want: Vec<f64> = values(&x).chunks(width).flat_map(unit).collect();
        assert_close("normalize", &kernel::normalize(&x, 1e-12).unwrap(), &want);
        let zeros = x.zeros_like().unwrap();
        assert!(values(&kernel::normalize(&zeros, 1e-12).unwrap()).iter().all(|x| *x == 0.0));
    }
}

#[test]
fn a_pooled_value_is_the_mean_over_positions() {
    for x in rows() {
        let (_, seq, width) = x.dims3().unwrap();
        let mean = |window: &[f64]| -> Vec<f64> {
            (0..width).map(|i| (0..seq).map(|at| window[at * width + i]).sum::<f64>() / seq as f64).collect()
        };
        let want: Vec<f64> = values(&x).chunks(seq * width).flat_map(mean).collect();
        assert_close("mean_pool", &kernel::mean_pool(&x).unwrap(), &want);
    }
}
