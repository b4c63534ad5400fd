//! What GGUF metadata says about a decoder, as the `config.json` it would have had.

use attar_tensor::{
    Source,
    gguf::{Metadata, Value},
};
use serde_json::json;

use crate::{Decoder, Error, Result};

/// A text value.
pub(crate) fn text<'m>(metadata: &'m Metadata, key: &str) -> Result<&'m str> {
    match metadata.get(key) {
        Some(Value::Text(text)) => Ok(text),
        _ => Err(Error::Metadata { key: key.into() }),
    }
}

/// A number of any width, if the key is there.
pub(crate) fn number(metadata: &Metadata, key: &str) -> Option<f64> {
    match metadata.get(key)? {
        Value::Unsigned(n) => Some(*n as f64),
        Value::Signed(n) => Some(*n as f64),
        Value::Float(n) => Some(*n),
        _ => None,
    }
}

/// A whole number, if the key is there.
pub(crate) fn count(metadata: &Metadata, key: &str) -> Option<u64> {
    number(metadata, key).filter(|n| *n >= 0.0 && n.fract() == 0.0).map(|n| n as u64)
}

/// `config.json` in the words of transformers. `class` is the name there, `prefix` the one here.
pub(crate) fn config(class: &str, prefix: &str, metadata: &Metadata, source: &dyn Source) -> Result<serde_json::Value> {
    let key = |name: &str| format!("{prefix}.{name}");
    let need = |name: &str| count(metadata, &key(name)).ok_or_else(|| Error::Metadata { key: key(name) });
    let epsilon_key = key("attention.layer_norm_rms_epsilon");
    // Written as f32: its shortest decimal is what the original configuration said.
    let epsilon = number(metadata, &epsilon_key).ok_or(Error::Metadata { key: epsilon_key })?;
    let heads = need("attention.head_count")?;
    let vocabulary = source.info("token_embd.weight")?.matrix()[0];
    let mut config = json!({
        "architectures": [class],
        "vocab_size": vocabulary,
        "hidden_size": need("embedding_length")?,
        "intermediate_size": need("feed_forward_length")?,
        "num_hidden_layers": need("block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": count(metadata, &key("attention.head_count_kv")).unwrap_or(heads),
        "rms_norm_eps": shortest(epsilon),
        "rope_theta": shortest(number(metadata, &key("rope.freq_base")).unwrap_or(10_000.0)),
        "hidden_act": "silu",
        "tie_word_embeddings": !source.tensors().contains_key("output.weight"),
        "attention_bias": prefix == "llama" && source.tensors().contains_key("blk.0.attn_q.bias"),
    });
    let optional = [
        ("head_dim", count(metadata, &key("attention.key_length"))),
        ("max_position_embeddings", count(metadata, &key("context_length"))),
        ("sliding_window", count(metadata, &key("attention.sliding_window"))),
        ("bos_token_id", count(metadata, "tokenizer.ggml.bos_token_id")),
        ("eos_token_id", count(metadata, "tokenizer.ggml.eos_token_id")),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            config[name] = json!(value);
        }
    }
    if let Some(scaling) = scaling(prefix, metadata)? {
        config["rope_scaling"] = scaling;
    }
    Ok(config)
}

fn scaling(prefix: &str, metadata: &Metadata) -> Result<Option<serde_json::Value>> {
    let key = |name: &str| format!("{prefix}.rope.scaling.{name}");
    let Some(Value::Text(kind)) = metadata.get(&key("type")) else { return Ok(None) };
    let factor = number(metadata, &key("factor")).map(shortest);
    let original = count(metadata, &key("original_context_length"));
    Ok(match kind.as_str() {
        "none" => None,
        kind => Some(json!({ "rope_type": kind, "factor": factor, "original_max_position_embeddings": original })),
    })
}

/// The decimal that an f32 of the file was most likely written from.
fn shortest(value: f64) -> f64 {
    (value as f32).to_string().parse().unwrap_or(value)
}

/// What only the tensors tell.
pub(crate) fn adjust(decoder: &mut Decoder, source: &dyn Source) -> Result<()> {
    if decoder.output_bias {
        return Err(Error::Unsupported {
            key: "blk.0.attn_q.bias".into(),
            found: "present".into(),
            wanted: "a Llama without biases",
        });
    }
    if source.tensors().contains_key("rope_freqs.weight") {
        let mut factors = vec![0.0; source.info("rope_freqs.weight")?.elements()];
        source.read("rope_freqs.weight", 0..1, &mut factors)?;
        if factors.len() != decoder.head / 2 {
            return Err(Error::Contradiction {
                first: format!("rope_freqs.weight holds {} factors", factors.len()),
                second: format!("a head is {} wide", decoder.head),
            });
        }
        decoder.rope.scaling = attar_graph::op::Scaling::Factors(factors);
    }
    Ok(())
}
