//! `MistralForCausalLM`: Llama's graph and names, with a sliding window.

use super::{Architecture, llama};
use crate::decoder::{self, Biases, DecoderConfig};

pub(super) static MISTRAL: Architecture = Architecture {
    names: &["MistralForCausalLM", "mistral"],
    weights: &llama::NAMES,
    gguf: |header| header.decoder(),
    build: |config, builder| {
        let c = DecoderConfig::parse(config)?;
        decoder::build_rotary(&c, builder, Biases::default(), c.sliding_window)
    },
};
