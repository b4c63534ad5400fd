//! Everything that was seen: nothing is clipped, and one outlier decides how fine all codes are.

use super::{Codes, Distribution, Observer};

pub(super) struct MinMax;

impl Observer for MinMax {
    fn name(&self) -> &'static str {
        "minmax"
    }

    fn version(&self) -> u32 {
        1
    }

    fn range(&self, seen: &Distribution, _: Codes, _: f64) -> [f32; 2] {
        seen.bounds()
    }

    fn default_number(&self) -> Option<f64> {
        None
    }
}
