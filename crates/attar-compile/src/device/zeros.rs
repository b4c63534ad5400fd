//! What a device does with weights that are zero.

/// What a device does with weights that are zero: nothing, unless a file says otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Zeros {
    /// Bits that the coder of its weight stream takes for an int8 weight, with 0, 25, 50 and 75% zeros. Empty, if there is none.
    pub coded: Vec<f64>,
    /// Bits per weight of a mask, if it stores only the weights that stay.
    pub mask: Option<f64>,
    /// A pattern that its array skips: so many of so many consecutive inputs stay.
    pub skips: Option<[u64; 2]>,
}

impl Zeros {
    /// Bits that the coder takes for an int8 weight with such a share of zeros, between the shares that were measured; `None` beyond the
    /// last one, or without a coder.
    ///
    /// ```
    /// let device = attar_compile::device::Device::named("ethos-u55-256").unwrap();
    /// assert_eq!(device.zeros.coded_bits(0.5), Some(4.58));
    /// assert_eq!(device.zeros.coded_bits(0.9), None);
    /// ```
    pub fn coded_bits(&self, share: f64) -> Option<f64> {
        between(&self.coded, share)
    }

    /// Bits that the coder takes for a weight, estimated from the entropy of its codes and the share of zeros beyond that of the codes 1
    /// and -1: what it took for the weights that `coded` is of exceeds their entropy by as much. Zeros are taken to be the smallest of
    /// those. Of the weights of a small model, Vela's coder takes 5.40 bits for int8 with half of them zero, 3.67 for int4, and 3.02 and
    /// 2.01 for int8 with coarse steps, where this gives 5.08, 3.71, 3.00 and 2.00.
    pub fn estimated_bits(&self, entropy: f64, share: f64) -> Option<f64> {
        let last = (self.coded.len().min(GAUSSIAN.len()) as f64 - 1.0) * STEP;
        let over: Vec<f64> = self.coded.iter().zip(GAUSSIAN).map(|(coded, entropy)| coded - entropy).collect();
        Some(entropy + between(&over, share.min(last))?)
    }
}

/// Distance between two shares of zeros that `coded` is of.
const STEP: f64 = 0.25;

/// Entropies of Gaussian weights in int8 by absmax, 65,536 of them, of which the smallest are zero: 0, 25, 50 and 75%.
const GAUSSIAN: [f64; 4] = [6.87, 5.84, 4.25, 2.37];

/// At a share of zeros, between `values` that are [`STEP`] apart; `None` beyond the last.
fn between(values: &[f64], share: f64) -> Option<f64> {
    let at = share / STEP;
    let below = *values.get(at.floor() as usize)?;
    match at.fract() {
        0.0 => Some(below),
        part => Some(below + part * (values.get(at.floor() as usize + 1)? - below)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_is_exact_for_what_was_measured_and_close_for_what_else_was() {
        let zeros = Zeros { coded: vec![7.06, 5.97, 4.58, 2.63], ..Zeros::default() };
        for (at, entropy) in GAUSSIAN.into_iter().enumerate() {
            let found = zeros.estimated_bits(entropy, at as f64 * STEP).unwrap_or(f64::NAN);
            assert!((found - zeros.coded[at]).abs() < 1e-9, "{found}");
        }
        // Gaussian weights on 16 levels: 2.72 bits of entropy, a quarter of them zero; Vela took 2.99.
        assert!((zeros.estimated_bits(2.72, 0.25).unwrap_or(f64::NAN) - 2.99).abs() < 0.15);
        assert!(zeros.estimated_bits(1.0, 0.9).is_some_and(|bits| bits > 1.0));
        assert_eq!(Zeros::default().estimated_bits(1.0, 0.5), None);
    }
}
