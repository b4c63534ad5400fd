//! Decoders that benchmarks are about, as sizes.

use attar_compile::{Element, device::Device, schedule::Target, shapes::Decoder};

use crate::Failure;

/// A named decoder, with int8 weights.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) decoder: Decoder,
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

/// The generic device with so much SRAM, for weights of so many bits.
pub(crate) fn generic(sram: u64, weights: u32) -> Result<Target, Failure> {
    let mut device = Device::named("generic-npu")?;
    device.set("sram", &format!("{sram} B"))?;
    Ok(Target::new(&device, weights)?)
}

/// How its schedules buffer, in words.
pub(crate) fn rule(target: &Target) -> String {
    format!(
        "buffers aligned to {} bytes, streamed operands double-buffered, outputs staged, tiles of the {:?} array",
        target.align, target.rates.tile.array
    )
}

/// KiB or MiB.
pub(crate) fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}
