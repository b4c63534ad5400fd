//! How far predictions are apart.

use attar_graph::kernel;

/// `KL(softmax z || softmax (z + dz))`.
pub(super) fn divergence(z: &[f32], dz: &[f32]) -> f64 {
    let mut p = z.to_vec();
    let largest = kernel::max(z);
    kernel::exp_sum(&mut p, largest);
    let (mut all, mut mean, mut moved) = (0.0, 0.0, 0.0);
    for (p, dz) in p.iter().map(|p| f64::from(*p)).zip(dz.iter().map(|dz| f64::from(*dz))) {
        all += p;
        mean += p * dz;
        // e^dz - 1 keeps what a small change does from drowning in ones.
        moved += p * dz.exp_m1();
    }
    ((moved / all).ln_1p() - mean / all).max(0.0)
}
