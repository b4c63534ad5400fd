//! Devices as data: memories, engines, DMA and numerics of an NPU, each number with its source.
//!
//! A device is a TOML file ([`Device::load`]) or a shipped one ([`Device::named`]); single numbers are overridden with
//! [`Device::set`]. Only numbers of the hardware belong here, not how to tile or what to fuse.
//!
//! ```
//! use attar_compile::device::Device;
//! let mut device = Device::named("generic-npu").unwrap();
//! device.set("sram", "256KiB").unwrap();
//! assert_eq!(device.sram.usable, 256 << 10);
//! ```

mod can;
mod file;
mod keys;
mod quantity;
mod zeros;

use crate::rates::Elementwise;
use crate::tile::{Buffering, Limits, Product, Rates, Tiling};
use crate::{Element, Error, Result};
use file::{File, Location, Setting};
use keys::{KEYS, Key, Need};
use std::path::{Path, PathBuf};

pub use can::{Can, Products, Softmax};
pub use zeros::Zeros;

/// The shipped devices and their files.
static DEVICES: &[(&str, &str)] = &[
    ("ethos-u55-256", include_str!("../../../../devices/ethos-u55-256.toml")),
    ("ethos-u65-512", include_str!("../../../../devices/ethos-u65-512.toml")),
    ("ethos-u85-256", include_str!("../../../../devices/ethos-u85-256.toml")),
    ("ethos-u85-1024", include_str!("../../../../devices/ethos-u85-1024.toml")),
    ("intel-npu4", include_str!("../../../../devices/intel-npu4.toml")),
    ("hexagon-v79", include_str!("../../../../devices/hexagon-v79.toml")),
    ("amd-xdna2", include_str!("../../../../devices/amd-xdna2.toml")),
    ("apple-ane-m4", include_str!("../../../../devices/apple-ane-m4.toml")),
    ("rk3588", include_str!("../../../../devices/rk3588.toml")),
    ("generic-npu", include_str!("../../../../devices/generic-npu.toml")),
];

/// How reliable a number is, most reliable first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Confidence {
    /// Measured on the device.
    Measured,
    /// Read in a published source.
    Read,
    /// Derived from published numbers.
    Derived,
    /// Assumed, for lack of a source.
    Assumed,
}

impl Confidence {
    const ALL: [(&'static str, Confidence); 4] = [
        ("measured", Confidence::Measured),
        ("read", Confidence::Read),
        ("derived", Confidence::Derived),
        ("assumed", Confidence::Assumed),
    ];

    fn named(name: &str) -> Option<Confidence> {
        Confidence::ALL.iter().find(|(n, _)| *n == name).map(|(_, c)| *c)
    }

    /// Its name in text and data.
    pub fn name(self) -> &'static str {
        Confidence::ALL[self as usize].0
    }
}

/// The source of a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// How reliable it is.
    pub confidence: Confidence,
    /// Document and page, or the derivation.
    pub text: String,
}

/// What programs can be optimised for on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// The time of one request.
    Latency,
    /// Tokens per second over many requests.
    Throughput,
    /// Joules per token.
    Energy,
}

impl Strategy {
    const ALL: [(&'static str, Strategy); 3] =
        [("latency", Strategy::Latency), ("throughput", Strategy::Throughput), ("energy", Strategy::Energy)];

    fn named(name: &str) -> Option<Strategy> {
        Strategy::ALL.iter().find(|(n, _)| *n == name).map(|(_, s)| *s)
    }

    /// Its name in text and data.
    pub fn name(self) -> &'static str {
        Strategy::ALL[self as usize].0
    }
}

/// One level of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes that a program may use.
    pub usable: u64,
    /// Bytes read per second.
    pub read: f64,
    /// Bytes written per second.
    pub write: f64,
    /// Cycles of the engine before the first byte.
    pub latency: f64,
    /// Smallest number of bytes that an access moves.
    pub burst: u64,
    /// Energy per byte moved, pJ.
    pub energy: f64,
}

/// Multiply-accumulates per cycle for one pair of widths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Bits of a weight.
    pub weights: u32,
    /// Bits of an activation.
    pub activations: u32,
    /// Multiply-accumulates per cycle of all cores.
    pub macs: f64,
}

/// The compute engine.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// Equal cores that share a product's columns.
    pub cores: u64,
    /// One core's multiply-accumulates per cycle at int8, as a block of m, k and n.
    pub array: [u64; 3],
    /// Cycles in a second.
    pub clock: f64,
    /// Numbers processed per cycle by all vector units.
    pub lanes: u64,
    /// Cycles to fill and drain the array for a tile.
    pub fill: f64,
    /// Energy of an int8 multiply-accumulate, pJ.
    pub energy: f64,
    /// The pairs of widths that it multiplies.
    pub pairs: Vec<Pair>,
}

/// The DMA engine.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dma {
    /// Concurrent transfers.
    pub channels: u64,
    /// Cycles to start a transfer, in addition to the memory's latency.
    pub setup: f64,
    /// Requests of one burst each that are in flight at a time.
    pub outstanding: u64,
}

/// The supported number formats.
#[derive(Clone, Debug, PartialEq)]
pub struct Numerics {
    /// Widths of stored weights, bits.
    pub weights: Vec<u32>,
    /// Widths of activations, bits.
    pub activations: Vec<u32>,
    /// Bits of a partial sum.
    pub accumulator: u32,
}

/// An NPU and its memories.
#[derive(Clone, Debug, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// A one-line summary.
    pub summary: String,
    /// What programs can be optimised for, the default first.
    pub strategies: Vec<Strategy>,
    /// Flash for weights, if it has any.
    pub flash: Option<Memory>,
    /// Main memory.
    pub dram: Memory,
    /// On-chip memory for which programs are tiled.
    pub sram: Memory,
    /// Memory of one core below the SRAM, if there is any: (bytes, usable bytes).
    pub core: Option<(u64, u64)>,
    /// The compute engine.
    pub engine: Engine,
    /// The DMA engine.
    pub dma: Dma,
    /// The supported number formats.
    pub numerics: Numerics,
    /// What it can do besides multiplying weights.
    pub can: Can,
    /// Cycles of elementwise work.
    pub elementwise: Elementwise,
    /// What it does with weights that are zero.
    pub zeros: Zeros,
    /// Every buffer starts at a multiple of this many bytes.
    pub align: u64,
    /// Tiles are multiples of this in m, k and n, or the whole dimension.
    pub unit: [u64; 3],
    /// Seconds from the call to the first cycle of a program.
    pub dispatch: f64,
    /// Static power, watts.
    pub power: f64,
    file: File,
}

impl Device {
    /// The names of the shipped devices.
    pub fn names() -> impl Iterator<Item = &'static str> {
        DEVICES.iter().map(|(name, _)| *name)
    }

    /// The shipped device of this name.
    ///
    /// # Errors
    /// If no device has that name; the error has the most similar name.
    pub fn named(name: &str) -> Result<Device> {
        Device::build(file::read(&Location::Shipped(known(name)?), Vec::new())?)
    }

    /// The device of a file.
    ///
    /// # Errors
    /// If the file cannot be read, inherits from itself, has an unknown key, lacks a number, or has an invalid one.
    pub fn load(path: &Path) -> Result<Device> {
        Device::build(file::read(&Location::Path(path.into()), Vec::new())?)
    }

    /// The files that it was read from: its own and those that this one inherits, as far as they are not shipped.
    pub fn files(&self) -> &[PathBuf] {
        &self.file.paths
    }

    /// Overrides one number, as `--set key=value` does: a key of the files, or one of the short forms `sram`, `dram` and `flash`
    /// for their bytes, `dram.bandwidth` for reads and writes, `array`, `clock`, `cores`. With another array or number of cores,
    /// the multiply-accumulates per cycle scale accordingly.
    ///
    /// # Errors
    /// If the key is unknown, or the value or the resulting device is invalid; the device is unchanged then.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let keys = full_keys(key);
        let mut file = self.file.clone();
        for key in &keys {
            let Some(known) = KEYS.iter().find(|known| known.name == *key) else {
                let nearest = nearest(key, KEYS.iter().map(|k| k.name));
                return Err(Error::DeviceKey { key: key.clone(), nearest, place: "--set".into() });
            };
            if let Some(memory) = known.name.strip_suffix(".bytes").filter(|name| *name != "align") {
                file.entries.remove(&format!("{memory}.usable"));
            }
            let origin = Origin { confidence: Confidence::Assumed, text: "chosen with --set".into() };
            file.entries.insert(key.clone(), Setting { text: value.trim().into(), origin, place: "--set".into() });
        }
        let mut device = Device::build(file)?;
        if keys.iter().any(|key| key == "engine.array" || key == "engine.cores") {
            device = Device::build(device.scaled(self))?;
        }
        *self = device;
        Ok(())
    }

    /// Its file with multiply-accumulates scaled to its array and cores, in proportion to those of `before`.
    fn scaled(&self, before: &Device) -> File {
        let size = |device: &Device| device.engine.array.iter().product::<u64>() as f64 * device.engine.cores as f64;
        let mut file = self.file.clone();
        for pair in &before.engine.pairs {
            if let Some(entry) = file.entries.get_mut(&format!("engine.w{}a{}", pair.weights, pair.activations)) {
                let origin = Origin { confidence: Confidence::Derived, text: "follows the array chosen with --set".into() };
                *entry = Setting { text: (pair.macs * size(self) / size(before)).to_string(), origin, place: "--set".into() };
            }
        }
        file
    }

    /// Every number with its key, its text and its source, in the order of the reference pages.
    pub fn numbers(&self) -> impl Iterator<Item = (&'static str, &str, &Origin)> {
        KEYS.iter().filter_map(|key| self.file.entries.get(key.name).map(|e| (key.name, e.text.as_str(), &e.origin)))
    }

    /// Every key and what it means.
    pub fn keys() -> impl Iterator<Item = (&'static str, &'static str)> {
        KEYS.iter().map(|key| (key.name, key.meaning))
    }

    /// The limits of a tiling on this device.
    pub fn limits(&self) -> Limits {
        Limits { sram: self.sram.usable, align: self.align, buffering: Buffering::DoubleStreamed, staged: true, stored: None }
    }

    /// Its rates for weights and activations of these widths. The energy of a multiply-accumulate grows with
    /// the product of the widths.
    ///
    /// # Errors
    /// If it does not multiply such a pair.
    pub fn rates(&self, weights: u32, activations: u32) -> Result<Rates> {
        let takes = self.numerics.activations.contains(&activations);
        let pair = self.engine.pairs.iter().find(|p| takes && p.weights == weights && p.activations == activations);
        let pair = pair.ok_or_else(|| Error::DevicePair { device: self.name.clone(), weights, activations })?;
        let [m, k, n] = self.engine.array;
        let columns = n * self.engine.cores;
        // A pair that is faster or slower than int8 takes more or less depth in a cycle.
        let depth = (pair.macs / (m * columns) as f64).round().max(1.0) as u64;
        let columns = if depth == 1 && k > 1 { ((pair.macs / m as f64) as u64).clamp(1, columns) } else { columns };
        let cycle = 1.0 / self.engine.clock;
        Ok(Rates {
            array: [m, depth, columns],
            fill: self.engine.fill,
            read: self.dram.read * cycle,
            write: self.dram.write * cycle,
            setup: self.dma.setup + self.dram.latency,
            outstanding: self.dma.outstanding,
            burst: self.dram.burst,
            coded: self.can.weights / 8.0,
            mac_pj: self.engine.energy * f64::from(weights * activations) / 64.0,
            sram_pj: self.sram.energy,
            dram_pj: self.dram.energy,
            cycle_pj: self.power * cycle * 1e12,
        })
    }

    fn build(file: File) -> Result<Device> {
        let fields = Fields { file: &file };
        KEYS.iter().try_for_each(|key| fields.check(key))?;
        let pairs = [(8, 8), (4, 8), (8, 16), (4, 16), (16, 16)].into_iter().filter_map(|(weights, activations)| {
            let macs = fields.given(&format!("engine.w{weights}a{activations}"))?;
            Some(Pair { weights, activations, macs })
        });
        let bits = |key| fields.values(key).iter().map(|b| *b as u32).collect();
        let device = Device {
            name: file.name.clone(),
            summary: file.summary.clone(),
            strategies: if file.strategies.is_empty() { vec![Strategy::Latency] } else { file.strategies.clone() },
            flash: fields.given("flash.bytes").map(|_| fields.memory("flash")),
            dram: fields.memory("dram"),
            sram: fields.memory("sram"),
            core: fields.given("core.bytes").map(|bytes| (bytes as u64, fields.or("core.usable", bytes) as u64)),
            engine: Engine {
                cores: fields.or("engine.cores", 1.0) as u64,
                array: fields.shape("engine.array"),
                clock: fields.or("engine.clock", 0.0),
                lanes: fields.or("engine.lanes", 1.0) as u64,
                fill: fields.or("engine.fill", 0.0),
                energy: fields.or("engine.energy", 0.0),
                pairs: pairs.collect(),
            },
            dma: Dma {
                channels: fields.or("dma.channels", 1.0) as u64,
                setup: fields.or("dma.setup", 0.0),
                outstanding: fields.or("dma.outstanding", 1.0) as u64,
            },
            numerics: Numerics {
                weights: bits("numerics.weights"),
                activations: bits("numerics.activations"),
                accumulator: fields.or("numerics.accumulator", 32.0) as u32,
            },
            can: Can {
                products: Products::ALL[fields.or("can.products", 0.0) as usize],
                splits: fields.or("can.splits", 0.0) == 0.0,
                norm_inside: fields.or("can.norm", 0.0) == 0.0,
                softmax: Softmax::ALL[fields.or("can.softmax", 0.0) as usize],
                weights: fields.or("can.weights", 8.0),
            },
            elementwise: Elementwise {
                product: fields.given("elementwise.product"),
                score: fields.given("elementwise.score"),
                norm: fields.given("elementwise.norm"),
                rescale: fields.given("elementwise.rescale"),
                add: fields.given("elementwise.add"),
                rotary: fields.given("elementwise.rotary"),
                gate: fields.given("elementwise.gate"),
            },
            zeros: Zeros {
                coded: fields.values("sparsity.coded"),
                mask: fields.given("sparsity.mask"),
                skips: fields.values("sparsity.skips").try_into().ok().map(|pattern: [f64; 2]| pattern.map(|n| n as u64)),
            },
            align: fields.or("align.bytes", 1.0) as u64,
            unit: fields.shape("align.tile"),
            dispatch: fields.or("overhead.dispatch", 0.0),
            power: fields.or("overhead.power", 0.0),
            file: file.clone(),
        };
        device.sensible()?;
        Ok(device)
    }

    /// Checks that involve several numbers.
    fn sensible(&self) -> Result<()> {
        let memories = [("dram", self.dram), ("sram", self.sram)].into_iter().chain(self.flash.map(|flash| ("flash", flash)));
        for (memory, Memory { bytes, usable, .. }) in memories {
            if usable > bytes {
                return Err(Error::DeviceUsable { device: self.name.clone(), memory, usable, bytes });
            }
        }
        if self.can.products == Products::Elementwise && self.elementwise.product.is_none() {
            return Err(Error::DeviceMissing { device: self.name.clone(), key: "elementwise.product" });
        }
        if self.flash.is_some_and(|flash| flash.read == 0.0) {
            return Err(Error::DeviceMissing { device: self.name.clone(), key: "flash.read" });
        }
        let [m, k, n] = self.unit;
        let accumulator = Element { bits: self.numerics.accumulator, per: 1 };
        let product = Product { partial: accumulator, ..Product::new(m, k, n, Element::INT8, Element::INT8) };
        let needed = Tiling::new(&product, &self.limits(), crate::tile::Order::Mnk, self.unit, [0, 0]).sram;
        if needed > self.sram.usable {
            let (device, tile, sram) = (self.name.clone(), self.unit, self.sram.usable);
            return Err(Error::DeviceSram { device, tile, needed, sram });
        }
        Ok(())
    }
}

/// A file's numbers by key.
struct Fields<'a> {
    file: &'a File,
}

impl Fields<'_> {
    fn check(&self, key: &Key) -> Result<()> {
        let Some(entry) = self.file.entries.get(key.name) else {
            let missing = matches!(key.need, Need::Positive | Need::Given);
            let error = || Error::DeviceMissing { device: self.file.name.clone(), key: key.name };
            return if missing { Err(error()) } else { Ok(()) };
        };
        let wrong =
            |wanted| Error::DeviceValue { key: key.name.into(), found: entry.text.clone(), wanted, place: entry.place.clone() };
        let values = key.kind.parse(&entry.text).ok_or_else(|| wrong(key.kind.wanted()))?;
        let zero = matches!(key.need, Need::Positive | Need::PositiveIfGiven) && values.contains(&0.0);
        if zero { Err(wrong("more than zero")) } else { Ok(()) }
    }

    /// The values of a key that `check` has passed; none where it is absent.
    fn values(&self, key: &str) -> Vec<f64> {
        let kind = KEYS.iter().find(|k| k.name == key).map(|k| k.kind);
        let entry = self.file.entries.get(key);
        kind.zip(entry).and_then(|(kind, entry)| kind.parse(&entry.text)).unwrap_or_default()
    }

    fn given(&self, key: &str) -> Option<f64> {
        self.values(key).first().copied()
    }

    fn or(&self, key: &str, default: f64) -> f64 {
        self.given(key).unwrap_or(default)
    }

    fn shape(&self, key: &str) -> [u64; 3] {
        let values = self.values(key);
        std::array::from_fn(|d| values.get(d).map_or(1, |v| *v as u64))
    }

    fn memory(&self, name: &str) -> Memory {
        let or = |field: &str, default: f64| self.or(&format!("{name}.{field}"), default);
        let (bytes, read) = (or("bytes", 0.0), or("read", 0.0));
        Memory {
            bytes: bytes as u64,
            usable: or("usable", bytes) as u64,
            read,
            write: or("write", read),
            latency: or("latency", 0.0),
            burst: or("burst", 1.0) as u64,
            energy: or("energy", 0.0),
        }
    }
}

/// The keys that a short key stands for.
fn full_keys(key: &str) -> Vec<String> {
    match key {
        "sram" | "dram" | "flash" | "core" => vec![format!("{key}.bytes")],
        "array" | "clock" | "cores" => vec![format!("engine.{key}")],
        _ => match key.strip_suffix(".bandwidth") {
            Some(memory) => vec![format!("{memory}.read"), format!("{memory}.write")],
            None => vec![key.into()],
        },
    }
}

/// The shipped device of this name, as it is spelt.
fn known(name: &str) -> Result<&'static str> {
    let found = DEVICES.iter().find(|(known, _)| *known == name).map(|(known, _)| *known);
    found.ok_or_else(|| Error::DeviceUnknown { name: name.into(), nearest: nearest(name, Device::names()) })
}

fn shipped(name: &str) -> Result<&'static str> {
    let name = known(name)?;
    DEVICES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| *text)
        .ok_or_else(|| Error::DeviceUnknown { name: name.into(), nearest: None })
}

/// The name that was probably meant: one with this prefix, or the most similar one if any is similar.
fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let score = |name: &str| f64::from(u8::from(name.starts_with(word))) + strsim::jaro_winkler(word, name);
    let scored = names.map(|n| (score(n), n)).filter(|(s, _)| *s > 0.75);
    scored.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, n)| n.into())
}
