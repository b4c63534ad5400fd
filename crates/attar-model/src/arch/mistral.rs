//! `MistralForCausalLM`: Llama with a sliding window.

use super::Architecture;

pub(super) static MISTRAL: Architecture = Architecture {
    names: &["MistralForCausalLM", "mistral"],
    gguf_interleaved: true,
    decoder: |config, decoder| {
        decoder.window = config.sliding_window;
        Ok(())
    },
};
