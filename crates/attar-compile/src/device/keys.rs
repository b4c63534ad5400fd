//! Every number a device has.

use super::quantity::Kind;

/// One number of a device: its key in files and in `--set`, and what it means.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
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

use Kind::{Bandwidth, Bits, Bytes, Count, Energy, Frequency, Power, Shape, Time, Whole};
use Need::{Given, OrZero, Positive, PositiveIfGiven};

const fn key(name: &'static str, kind: Kind, need: Need, meaning: &'static str) -> Key {
    Key { name, kind, need, meaning }
}

/// In the order of the reference pages.
pub(super) static KEYS: &[Key] = &[
    key("flash.bytes", Bytes, PositiveIfGiven, "flash that holds weights; no flash where absent"),
    key("flash.usable", Bytes, PositiveIfGiven, "of those, free for a model; all where absent"),
    key("flash.read", Bandwidth, PositiveIfGiven, "bytes read in a second"),
    key("flash.write", Bandwidth, PositiveIfGiven, "bytes written in a second; as `read` where absent"),
    key("flash.latency", Count, OrZero, "cycles before the first byte"),
    key("flash.burst", Bytes, PositiveIfGiven, "bytes that one access moves at least; 1 where absent"),
    key("flash.energy", Energy, OrZero, "energy of a byte moved"),
    key("dram.bytes", Bytes, Positive, "DRAM"),
    key("dram.usable", Bytes, PositiveIfGiven, "of those, free for a model; all where absent"),
    key("dram.read", Bandwidth, Positive, "bytes read in a second"),
    key("dram.write", Bandwidth, PositiveIfGiven, "bytes written in a second; as `read` where absent"),
    key("dram.latency", Count, OrZero, "cycles before the first byte"),
    key("dram.burst", Bytes, PositiveIfGiven, "bytes that one access moves at least; 1 where absent"),
    key("dram.energy", Energy, Given, "energy of a byte moved"),
    key("sram.bytes", Bytes, Positive, "on-chip memory for which programs are tiled, of all cores together"),
    key("sram.usable", Bytes, PositiveIfGiven, "of those, free for a program; all where absent"),
    key("sram.read", Bandwidth, Positive, "bytes read in a second"),
    key("sram.write", Bandwidth, PositiveIfGiven, "bytes written in a second; as `read` where absent"),
    key("sram.latency", Count, OrZero, "cycles before the first byte"),
    key("sram.burst", Bytes, PositiveIfGiven, "bytes that one access moves at least; 1 where absent"),
    key("sram.energy", Energy, Given, "energy of a byte read or written"),
    key("core.bytes", Bytes, PositiveIfGiven, "memory of one core, below `sram`; none where absent"),
    key("core.usable", Bytes, PositiveIfGiven, "of those, free for a program; all where absent"),
    key("engine.cores", Whole, Positive, "equal cores that share a product's columns"),
    key("engine.array", Shape, Positive, "multiply-accumulates of one core in one cycle, as a block of m, k, n at int8"),
    key("engine.clock", Frequency, Positive, "cycles in a second"),
    key("engine.lanes", Whole, Positive, "numbers that all vector units together process in a cycle"),
    key("engine.fill", Count, OrZero, "cycles to fill and drain the array for a tile"),
    key("engine.energy", Energy, Given, "energy of an int8 multiply-accumulate"),
    key("engine.w8a8", Count, Positive, "multiply-accumulates in a cycle, all cores: int8 weights, int8 activations"),
    key("engine.w4a8", Count, PositiveIfGiven, "the same with int4 weights; not offered where absent"),
    key("engine.w8a16", Count, PositiveIfGiven, "int8 weights, 16-bit activations"),
    key("engine.w4a16", Count, PositiveIfGiven, "int4 weights, 16-bit activations"),
    key("engine.w16a16", Count, PositiveIfGiven, "16-bit weights and activations"),
    key("dma.channels", Whole, Positive, "transfers under way at once"),
    key("dma.setup", Count, Given, "cycles to start a transfer, besides the memory's latency"),
    key("numerics.weights", Bits, Positive, "widths of stored weights"),
    key("numerics.activations", Bits, Positive, "widths of activations"),
    key("numerics.accumulator", Whole, Positive, "bits of a partial sum"),
    key("align.bytes", Bytes, Positive, "every buffer starts at a multiple of this"),
    key("align.tile", Shape, Positive, "tiles are multiples of this in m, k, n, or the whole dimension"),
    key("overhead.dispatch", Time, Given, "from the call to the first cycle of a program"),
    key("overhead.power", Power, OrZero, "drawn whatever is done"),
];
