//! `LlamaForCausalLM`: Llama 1 to 3, SmolLM, TinyLlama, and many others under the same name.

use super::Architecture;

pub(super) static LLAMA: Architecture = Architecture {
    names: &["LlamaForCausalLM", "llama"],
    gguf_interleaved: true,
    decoder: |config, decoder| {
        (decoder.qkv_bias, decoder.output_bias) = (config.attention_bias, config.attention_bias);
        decoder.mlp_bias = config.mlp_bias;
        Ok(())
    },
};
