//! Every number a device has.

use super::{Products, Softmax, quantity::Unit};

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
use Unit::{Bandwidth, Bits, Bytes, Count, Energy, Frequency, Numbers, Pattern, Power, Shape, Time, Whole, Word};

const fn key(name: &'static str, kind: Unit, need: Need, meaning: &'static str) -> Key {
    Key { name, kind, need, meaning }
}

/// In the order of the reference pages.
pub(super) static KEYS: &[Key] = &[
    key("flash.bytes", Bytes, PositiveIfGiven, "flash memory for weights; no flash by default"),
    key("flash.usable", Bytes, PositiveIfGiven, "bytes of it available to a model; default: all"),
    key("flash.read", Bandwidth, PositiveIfGiven, "read bandwidth"),
    key("flash.write", Bandwidth, PositiveIfGiven, "write bandwidth; default: the read bandwidth"),
    key("flash.latency", Count, OrZero, "cycles before the first byte"),
    key("flash.burst", Bytes, PositiveIfGiven, "smallest transfer; default: 1 byte"),
    key("flash.energy", Energy, OrZero, "energy per byte moved"),
    key("dram.bytes", Bytes, Positive, "DRAM size"),
    key("dram.usable", Bytes, PositiveIfGiven, "bytes of it available to a model; default: all"),
    key("dram.read", Bandwidth, Positive, "read bandwidth"),
    key("dram.write", Bandwidth, PositiveIfGiven, "write bandwidth; default: the read bandwidth"),
    key("dram.latency", Count, OrZero, "cycles before the first byte"),
    key("dram.burst", Bytes, PositiveIfGiven, "smallest transfer; default: 1 byte"),
    key("dram.energy", Energy, Given, "energy per byte moved"),
    key("sram.bytes", Bytes, Positive, "on-chip memory that programs are tiled for, all cores together"),
    key("sram.usable", Bytes, PositiveIfGiven, "bytes of it available to a program; default: all"),
    key("sram.read", Bandwidth, Positive, "read bandwidth"),
    key("sram.write", Bandwidth, PositiveIfGiven, "write bandwidth; default: the read bandwidth"),
    key("sram.latency", Count, OrZero, "cycles before the first byte"),
    key("sram.burst", Bytes, PositiveIfGiven, "smallest transfer; default: 1 byte"),
    key("sram.energy", Energy, Given, "energy per byte read or written"),
    key("core.bytes", Bytes, PositiveIfGiven, "memory private to a core, below `sram`; none by default"),
    key("core.usable", Bytes, PositiveIfGiven, "bytes of it available to a program; default: all"),
    key("engine.cores", Whole, Positive, "number of equal cores, which split the columns of a product"),
    key("engine.array", Shape, Positive, "int8 multiply-accumulates per core and cycle, as a block m x k x n"),
    key("engine.clock", Frequency, Positive, "clock frequency"),
    key("engine.lanes", Whole, Positive, "elements per cycle of all vector units together"),
    key("engine.fill", Count, OrZero, "cycles per tile to fill and drain the array"),
    key("engine.energy", Energy, Given, "energy per int8 multiply-accumulate"),
    key("engine.w8a8", Count, Positive, "multiply-accumulates per cycle, all cores, int8 weights and activations"),
    key("engine.w4a8", Count, PositiveIfGiven, "the same with int4 weights and int8 activations; unsupported if absent"),
    key("engine.w8a16", Count, PositiveIfGiven, "the same with int8 weights and 16-bit activations; unsupported if absent"),
    key("engine.w4a16", Count, PositiveIfGiven, "the same with int4 weights and 16-bit activations; unsupported if absent"),
    key("engine.w16a16", Count, PositiveIfGiven, "the same with 16-bit weights and activations; unsupported if absent"),
    key("dma.channels", Whole, Positive, "concurrent transfers"),
    key("dma.setup", Count, Given, "cycles to start a transfer, in addition to the memory's latency"),
    key(
        "dma.outstanding",
        Whole,
        PositiveIfGiven,
        "bursts that are requested before the first of them is there; default: 1, every transfer waits for the one before it",
    ),
    key("numerics.weights", Bits, Positive, "supported widths of stored weights, in bits"),
    key("numerics.activations", Bits, Positive, "supported widths of activations, in bits"),
    key("numerics.accumulator", Whole, Positive, "accumulator width, in bits"),
    key(
        "can.products",
        Word(Products::NAMES, Products::LISTED),
        OrZero,
        "what multiplies two activations: `array`, `elementwise` or `none`; default: `array`",
    ),
    key(
        "can.splits",
        Word(&["yes", "no"], "`yes` or `no`"),
        OrZero,
        "whether partial sums stay in SRAM between tiles of k: `yes` or `no`; default: `yes`",
    ),
    key(
        "can.norm",
        Word(&["inside", "apart"], "`inside` or `apart`"),
        OrZero,
        "where norms are: `inside` the products that read them, or only `apart`; default: `inside`. Norms of heads of queries and keys are elementwise work behind their product, like rotary embeddings",
    ),
    key(
        "can.softmax",
        Word(Softmax::NAMES, Softmax::LISTED),
        OrZero,
        "softmax of attention: `online`, over tiles of keys, or of `whole` rows; default: `online`",
    ),
    key(
        "can.weights",
        Count,
        PositiveIfGiven,
        "bits that an int8 weight takes on its way, where weights are a compressed stream; default: 8",
    ),
    key(
        "elementwise.product",
        Count,
        PositiveIfGiven,
        "cycles per multiply-accumulate of two activations by the elementwise unit; needed for `can.products = \"elementwise\"`",
    ),
    key("elementwise.score", Count, OrZero, "cycles per score of a softmax; default: four operations in the lanes"),
    key("elementwise.norm", Count, OrZero, "cycles per number of a norm; default: three operations in the lanes"),
    key("elementwise.rescale", Count, OrZero, "cycles per output that is only rescaled; default: two operations in the lanes"),
    key("elementwise.add", Count, OrZero, "cycles per output to which a residual is added; default: two operations in the lanes"),
    key("elementwise.rotary", Count, OrZero, "cycles per output with a rotary embedding; default: two operations in the lanes"),
    key(
        "elementwise.gate",
        Count,
        OrZero,
        "cycles per output of a gate; default: two operations in the lanes on each of its two sums",
    ),
    key(
        "sparsity.coded",
        Numbers,
        PositiveIfGiven,
        "bits that its coder takes for an int8 weight with 0, 25, 50 and 75% zeros; absent: weights are not coded",
    ),
    key(
        "sparsity.mask",
        Count,
        PositiveIfGiven,
        "bits per weight that say which weights stay, next to those that do; absent: zeros are stored like any number",
    ),
    key(
        "sparsity.skips",
        Pattern,
        PositiveIfGiven,
        "pattern of zeros that the array skips, n of m consecutive inputs staying; absent: none",
    ),
    key("align.bytes", Bytes, Positive, "alignment of every buffer"),
    key("align.tile", Shape, Positive, "tiles are multiples of this in m, k and n, unless they cover the dimension"),
    key("overhead.dispatch", Time, Given, "time from the call to the first cycle of a program"),
    key("overhead.power", Power, OrZero, "constant power"),
];
