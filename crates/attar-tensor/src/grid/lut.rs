//! Look-up tables of 2 to 16 values that are learned: one for every group, row or tensor, and no scale. The form that
//! Core ML calls palettization.

use super::table::Table;

static ONE: [f32; 2] = [-1.0, 1.0];
static TWO: [f32; 4] = [-1.0, -0.5, 0.0, 0.5];
static THREE: [f32; 8] = [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75];
static FOUR: [f32; 16] =
    [-1.0, -0.875, -0.75, -0.625, -0.5, -0.375, -0.25, -0.125, 0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875];

pub(super) static LUT4: Table = Table::learned("lut4", 4, &FOUR);
pub(super) static LUT3: Table = Table::learned("lut3", 3, &THREE);
pub(super) static LUT2: Table = Table::learned("lut2", 2, &TWO);
pub(super) static LUT1: Table = Table::learned("lut1", 1, &ONE);
