//! Decoders that tests and benchmarks are about, as sizes, on the generic device.

use attar_compile::{Element, Error, device::Device, schedule::Target};

use crate::shapes::Decoder;

/// A named decoder, with int8 weights.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) decoder: Decoder,
}

impl Model {
    /// With weights of 8 or 4 bits.
    pub(crate) fn with(&self, bits: u32) -> Decoder {
        Decoder { weight: Element { bits, per: 1 }, ..self.decoder }
    }
}

const fn model(name: &'static str, [width, inner, heads, key_heads, head, blocks]: [u64; 6]) -> Model {
    let (window, weight, vocabulary) = (None, Element::INT8, None);
    Model { name, decoder: Decoder { width, inner, heads, key_heads, head, blocks, window, weight, vocabulary } }
}

/// Smallest first.
pub(crate) const MODELS: [Model; 3] = [
    model("SmolLM2-135M", [576, 1536, 9, 3, 64, 30]),
    model("Llama-1B", [2048, 8192, 32, 8, 64, 16]),
    model("Llama-2-7B", [4096, 11008, 32, 32, 128, 32]),
];

/// The generic device with so much SRAM and enough DRAM for 7B in int8, for weights of so many bits.
pub(crate) fn generic(sram: u64, weights: u32) -> Result<Target, Error> {
    let mut device = Device::named("generic-npu")?;
    device.set("sram", &format!("{sram} B"))?;
    device.set("dram", "16 GiB")?;
    Target::new(&device, weights)
}

/// How its schedules buffer, in words.
pub(crate) fn rule(target: &Target) -> String {
    let Target { align, rates, .. } = target;
    let [_, depth, columns] = rates.tile.array;
    format!(
        "buffers aligned to {align} bytes, streamed operands double-buffered, outputs staged, tiles of {depth} in depth and \
         {columns} columns or whole"
    )
}

/// What the fusion table is over: tokens, SRAM bytes, bits of a weight.
pub(crate) const TOKENS: [u64; 3] = [128, 512, 2048];
pub(crate) const SRAM: [u64; 4] = [256 << 10, 1 << 20, 2 << 20, 8 << 20];
pub(crate) const BITS: [u32; 2] = [8, 4];
