//! Every number a device has.

use super::quantity::Unit;

/// One number of a device: its key in files and in `--set`, and what it means.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Unit,
    pub(super) need: Need,
    /// For the reference pages.
    pub(super) meaning: &'static str,
}

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Given, and above zero.
    Positive,
    /// Above zero where it is given.
    PositiveIfGiven,
    /// Given, possibly zero.
    Given,
    /// Zero where it is not given.
    OrZero,
}

use Need::{Given, OrZero, Positive, PositiveIfGiven};
use Unit::{Bandwidth, Bits, Bytes, Count, Energy, Frequency, Power, Shape, Time, Whole};

const fn key(name: &'static str, kind: Unit, need: Need, meaning: &'static str) -> Key {
    Key { name, kind, need, meaning }
}

/// In the order of the reference pages.
pub(super) static KEYS: &[Key] = &[
    key("flash.bytes", Bytes, PositiveIfGiven, "flash that holds weights; no flash if absent"),
    key("flash.usable", Bytes, PositiveIfGiven, "of those, free for a model; all if absent"),
    key("flash.read", Bandwidth, PositiveIfGiven, "bytes read per second"),
    key("flash.write", Bandwidth, PositiveIfGiven, "bytes written per second; as `read` if absent"),
    key("flash.latency", Count, OrZero, "cycles before the first byte"),
    key("flash.burst", Bytes, PositiveIfGiven, "smallest number of bytes that an access moves; 1 if absent"),
    key("flash.energy", Energy, OrZero, "energy per byte moved"),
    key("dram.bytes", Bytes, Positive, "DRAM"),
    key("dram.usable", Bytes, PositiveIfGiven, "of those, free for a model; all if absent"),
    key("dram.read", Bandwidth, Positive, "bytes read per second"),
    key("dram.write", Bandwidth, PositiveIfGiven, "bytes written per second; as `read` if absent"),
    key("dram.latency", Count, OrZero, "cycles before the first byte"),
    key("dram.burst", Bytes, PositiveIfGiven, "smallest number of bytes that an access moves; 1 if absent"),
    key("dram.energy", Energy, Given, "energy per byte moved"),
    key("sram.bytes", Bytes, Positive, "on-chip memory for which programs are tiled, of all cores together"),
    key("sram.usable", Bytes, PositiveIfGiven, "of those, free for a program; all if absent"),
    key("sram.read", Bandwidth, Positive, "bytes read per second"),
    key("sram.write", Bandwidth, PositiveIfGiven, "bytes written per second; as `read` if absent"),
    key("sram.latency", Count, OrZero, "cycles before the first byte"),
    key("sram.burst", Bytes, PositiveIfGiven, "smallest number of bytes that an access moves; 1 if absent"),
    key("sram.energy", Energy, Given, "energy per byte read or written"),
    key("core.bytes", Bytes, PositiveIfGiven, "memory of one core, below `sram`; none if absent"),
    key("core.usable", Bytes, PositiveIfGiven, "of those, free for a program; all if absent"),
    key("engine.cores", Whole, Positive, "equal cores that share a product's columns"),
    key("engine.array", Shape, Positive, "multiply-accumulates of one core per cycle, as a block of m, k, n at int8"),
    key("engine.clock", Frequency, Positive, "cycles per second"),
    key("engine.lanes", Whole, Positive, "numbers that all vector units together process per cycle"),
    key("engine.fill", Count, OrZero, "cycles to fill and drain the array for a tile"),
    key("engine.energy", Energy, Given, "energy per int8 multiply-accumulate"),
    key("engine.w8a8", Count, Positive, "multiply-accumulates per cycle, all cores: int8 weights, int8 activations"),
    key("engine.w4a8", Count, PositiveIfGiven, "the same with int4 weights; unsupported if absent"),
    key("engine.w8a16", Count, PositiveIfGiven, "int8 weights, 16-bit activations"),
    key("engine.w4a16", Count, PositiveIfGiven, "int4 weights, 16-bit activations"),
    key("engine.w16a16", Count, PositiveIfGiven, "16-bit weights and activations"),
    key("dma.channels", Whole, Positive, "concurrent transfers"),
    key("dma.setup", Count, Given, "cycles to start a transfer, in addition to the memory's latency"),
    key("numerics.weights", Bits, Positive, "widths of stored weights"),
    key("numerics.activations", Bits, Positive, "widths of activations"),
    key("numerics.accumulator", Whole, Positive, "bits of a partial sum"),
    key("align.bytes", Bytes, Positive, "every buffer starts at a multiple of this"),
    key("align.tile", Shape, Positive, "tiles are multiples of this in m, k, n, or the whole dimension"),
    key("overhead.dispatch", Time, Given, "time from the call to the first cycle of a program"),
    key("overhead.power", Power, OrZero, "static power"),
];
