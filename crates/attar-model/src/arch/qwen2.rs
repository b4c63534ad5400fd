//! `Qwen2ForCausalLM`: Qwen 2 and 2.5. Llama with biases on query, key and value.

use super::Architecture;
use crate::Error;

pub(super) static QWEN2: Architecture = Architecture {
    names: &["Qwen2ForCausalLM", "qwen2"],
    gguf_interleaved: false,
    decoder: |config, decoder| {
        decoder.qkv_bias = true;
        match config.use_sliding_window {
            false => Ok(()),
            true => Err(Error::Unsupported { key: "use_sliding_window".into(), found: "true".into(), wanted: "`false`" }),
        }
    },
};
