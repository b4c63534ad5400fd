//! All but a share of the values on either side (McKinstry et al. 2019, "Discovering Low-Precision Networks Close to
//! Full-Precision Networks for Efficient Inference", section 3.2.2).

use super::{Codes, Distribution, Observer};

pub(super) struct Percentile;

impl Observer for Percentile {
    fn name(&self) -> &'static str {
        "percentile"
    }

    fn version(&self) -> u32 {
        1
    }

    /// `number` percent of the values are not above the greatest, and as many not below the least.
    fn range(&self, seen: &Distribution, _: Codes, number: f64) -> [f32; 2] {
        [seen.quantile(1.0 - number / 100.0), seen.quantile(number / 100.0)]
    }

    fn default_number(&self) -> Option<f64> {
        Some(99.99)
    }
}
