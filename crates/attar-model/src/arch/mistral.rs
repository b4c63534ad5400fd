//! `MistralForCausalLM`: Llama's graph and names, with a sliding window.

use super::{Architecture, llama};
use crate::{
    config::check,
    decoder::{self, Biases, DecoderConfig},
};

pub(super) static MISTRAL: Architecture = Architecture {
    names: &["MistralForCausalLM", "mistral"],
    weights: &llama::NAMES,
    gguf: |header| header.decoder(),
    build: |config, builder| {
        let c = DecoderConfig::parse(config)?;
        let all = if c.sliding_window.is_some() { "sliding_attention" } else { "full_attention" };
        let other = c.layer_types.iter().flatten().map(String::as_str).find(|kind| *kind != all).unwrap_or(all);
        check("layer_types", &other, |kind| *kind == all, "one kind for all blocks, as `sliding_window` says")?;
        decoder::build_rotary(&c, builder, Biases::default(), c.sliding_window)
    },
};
