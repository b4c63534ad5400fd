//! NormalFloat: 16 quantiles of the normal distribution, 0 among them (QLoRA, Dettmers et al. 2023, appendix E).

use super::table::Table;

static VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

pub(super) static NF4: Table = Table::new("nf4", 4, &VALUES);
