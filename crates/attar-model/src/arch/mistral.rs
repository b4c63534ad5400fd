//! `MistralForCausalLM`: Llama's graph and names, with a sliding window.

use super::{Architecture, llama};
use crate::{
    decoder::{self, Biases, DecoderConfig, Defaults},
    shape::Keys,
};

const DEFAULTS: Defaults = Defaults { context: 131_072, key_heads: Some(8), ..Defaults::LLAMA };

/// What transformers assumes without the key.
const WINDOW: usize = 4096;

pub(super) static MISTRAL: Architecture = Architecture {
    names: &["MistralForCausalLM", "mistral"],
    weights: &llama::NAMES,
    gguf: |header| header.windowed(),
    build: |config, builder| {
        let c = DecoderConfig::parse(config, DEFAULTS)?;
        c.check_silu()?;
        let window = c.window(Some(WINDOW))?;
        c.check_layers(if window.is_some() { "sliding_attention" } else { "full_attention" })?;
        decoder::build_rotary(&c, builder, Biases::default(), window)
    },
    shape: |config| {
        let c = DecoderConfig::parse(config, DEFAULTS)?;
        let window = c.window(Some(WINDOW))?;
        Ok(c.shape(|_| window))
    },
    keys: &Keys::LLAMA,
};
