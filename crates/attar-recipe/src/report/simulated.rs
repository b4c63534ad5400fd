//! What the step `simulate` proved again.

use serde::{Deserialize, Serialize};

use super::finding::{Finding, Found};
use crate::table::{Table, bytes, rows_of};

/// A plan that was run on real numbers and agreed with the reference in every bit. Cycles, times and energies are predicted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SimulationReport {
    /// Its file, or `FOLDER/FILE` of what the recipe compiled.
    pub plan: String,
    /// For what.
    pub device: String,
    /// What it runs.
    pub title: String,
    /// Always so: what is not proven fails the run.
    pub proven: bool,
    /// Multiply-accumulates.
    pub macs: u64,
    /// DRAM bytes moved.
    pub dram_bytes: u64,
    /// Bytes.
    pub peak_sram: u64,
    /// Of the device.
    pub cycles: u64,
    /// Seconds.
    pub latency: f64,
    /// Joules.
    pub energy: f64,
}

impl Finding for SimulationReport {
    fn tables(found: &Found<'_, Self>) -> Vec<(&'static str, Table)> {
        vec![("Plans proven again", table(found))]
    }
}

/// Plans: one row each that was proven again.
fn table(variants: &Found<'_, SimulationReport>) -> Table {
    let row = |s: &SimulationReport| {
        let (latency, energy) = (format!("{:.3} ms", 1e3 * s.latency), format!("{:.3e}", s.energy));
        let counts = [s.macs.to_string(), bytes(s.dram_bytes), bytes(s.peak_sram), s.cycles.to_string(), latency, energy];
        [[s.plan.clone(), s.device.clone()].into_iter().chain(counts).collect::<Vec<_>>()]
    };
    Table { head: HEAD, rows: rows_of(variants.iter().copied(), row) }
}

const HEAD: &[&str] = &[
    "variant",
    "plan",
    "device",
    "MACs",
    "DRAM traffic",
    "peak SRAM",
    "cycles (predicted)",
    "latency (predicted)",
    "energy (J, predicted)",
];
