//! Values that lose least on normally distributed weights in groups of 32 whose scale is searched for.
//!
//! Found by Lloyd's iteration over groups of 32 normal numbers: the best signed scale of each group, then the best value of
//! each code, until nothing moves. The sign is free, so one side reaches farther and the other is finer.

use super::table::Table;

static THREE: [f32; 8] = [-1.0, -0.6227, -0.37, -0.1598, 0.0349, 0.2367, 0.4672, 0.7805];

static FOUR: [f32; 16] = [
    -1.0, -0.7849, -0.6313, -0.5005, -0.3861, -0.2825, -0.1838, -0.0877, 0.0061, 0.0981, 0.1906, 0.2883, 0.3952, 0.5164, 0.6682,
    0.8838,
];

pub(super) static GAUSS3: Table = Table::new("gauss3", 3, &THREE);

pub(super) static GAUSS4: Table = Table::new("gauss4", 4, &FOUR);
