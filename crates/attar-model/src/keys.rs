//! Keys of a configuration that no architecture asks for.
//!
//! transformers ignores such keys, and so do we where that cannot matter: those listed here, and those whose names do not
//! speak of what a model computes. A key that does, such as `bias` or `attention_multiplier`, belongs to another kind of
//! model or is misspelled, and is an error unless its value says "no". Below `rope_scaling` and `rope_parameters` every
//! unknown key is an error.

use std::collections::BTreeSet;

use attar_tensor::nearest;
use serde_json::Value;

use crate::{Config, Error, Pattern, Result, settings::short};

/// Keys without influence on the output for a text, each list with the reason. `*` stands for anything.
pub static HARMLESS_KEYS: &[(&str, &[&str])] = &[
    (
        "only training reads it",
        &[
            "*dropout*",
            "*_pdrop",
            "*_drop",
            "layerdrop",
            "initializer_*",
            "gradient_checkpointing*",
            "*loss*",
            "*label*",
            "problem_type",
            "classifier_*",
            "finetuning_task",
            "*_coef",
            "use_bfloat16",
            "fp16",
            "bf16",
            "fp32",
            "freeze*",
            "rescale_layers_init",
        ],
    ),
    ("computation is in f32, whatever the stored format", &["torch_dtype", "dtype"]),
    (
        "it tells where the files come from",
        &[
            "_*",
            "transformers_version",
            "auto_map",
            "unsloth_*",
            "tokenizer_class",
            "processor_class",
            "license",
            "transformers.js_config",
            "name_or_path",
            "model_name",
            "task_specific_params",
            "custom_pipelines",
            "base_model*",
            "adapter_path",
            "directionality",
        ],
    ),
    (
        "it chooses among implementations of the same function",
        &[
            "use_cache",
            "cache_implementation",
            "attn_implementation",
            "*flash*",
            "pretraining_tp",
            "tensor_parallel*",
            "tp_size",
            "chunk_size_feed_forward",
            "torchscript",
            "*return_dict*",
            "output_attentions",
            "output_hidden_states",
            "output_scores",
            "keys_to_ignore_at_inference",
            "reorder_and_upcast_attn",
            "use_sdpa",
            "use_fused_*",
            "fused_*",
            "keep_fp32*",
            "upcast_*",
        ],
    ),
    (
        "only the choice of the next token reads it",
        &[
            "*_token_id",
            "*_token_ids",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
            "*_penalty",
            "num_beam*",
            "do_sample",
            "max_length",
            "min_length",
            "max_new_tokens",
            "*ngram_size",
            "bad_words_ids",
            "early_stopping",
            "num_return_sequences",
            "remove_invalid_values",
            "*suppress_tokens",
            "prefix",
            "forced_*",
        ],
    ),
    (
        "it bounds the text and does not change what is computed for it",
        &["model_max_length", "seq_length", "max_sequence_length", "max_seq_len*", "max_seq_length", "n_ctx", "max_context*"],
    ),
    (
        "it describes a part that the graph does not have: a head for other tasks",
        &["summary_*", "n_special", "predict_special_tokens", "pooler_*", "num_choices"],
    ),
    ("transformers reads it and does not apply it", &["full_attn_mod", "interpolate_factor", "embd_layer"]),
];

/// Keys under `rope_scaling` and `rope_parameters` without influence.
const HARMLESS_ROPE: &[&str] = &["finetuned", "original_max_position_embeddings"];

/// Parts of names that speak of what a model computes.
const SPEAKING: &[&str] = &[
    "attn",
    "attention",
    "rope",
    "rotary",
    "position",
    "bias",
    "norm",
    "scal",
    "multiplier",
    "softcap",
    "window",
    "mask",
    "expert",
    "residual",
    "activation",
    "hidden",
    "head",
    "layer",
    "embed",
    "mlp",
    "ffn",
    "parallel",
    "alibi",
    "clip",
    "quant",
    "logit",
    "theta",
    "yarn",
    "causal",
    "bidirectional",
    "sparse",
    "router",
    "gate",
    "lora",
    "softmax",
    "interleave",
    "decoder",
    "conv",
];

/// The same, where they are a whole word between underscores.
const SPEAKING_WORDS: &[&str] =
    &["act", "kv", "qk", "qkv", "tie", "tied", "moe", "cap", "eps", "epsilon", "ssm", "mup", "sink", "sinks", "chunk"];

/// Refuses the keys that nobody asked for, speak of what is computed and say more than "no".
pub(crate) fn check(config: &Config, ignore: &[Pattern]) -> Result<()> {
    let asked = config.asked().keys();
    let mut unknown = Vec::new();
    collect("", config.settings()?.entries(), &asked, &mut unknown);
    unknown.retain(|(key, _)| !ignore.iter().any(|pattern| pattern.matches(&format!("config.{key}"))));
    let Some((first, _)) = unknown.first() else { return Ok(()) };
    let known = asked.iter().map(String::as_str).filter(|key| !key.ends_with('.'));
    Err(Error::UnknownKeys {
        path: config.path().into(),
        architecture: config.architecture.clone(),
        nearest: known.clone().find(|known| known.contains(first.as_str())).or_else(|| nearest(first, known)).map(Into::into),
        keys: unknown.into_iter().map(|(key, value)| (key, short(value))).collect(),
    })
}

/// The keys that must not be passed over, with their values.
fn collect<'a>(
    at: &str,
    entries: impl Iterator<Item = (&'a String, &'a Value)>,
    asked: &BTreeSet<String>,
    unknown: &mut Vec<(String, &'a Value)>,
) {
    for (name, value) in entries {
        let key = format!("{at}{name}");
        match value.as_object().filter(|_| asked.contains(&format!("{key}."))) {
            Some(inner) => collect(&format!("{key}."), &mut inner.iter() as &mut dyn Iterator<Item = _>, asked, unknown),
            None if asked.contains(&key) || value.is_null() => {}
            None if !at.is_empty() && !HARMLESS_ROPE.contains(&name.as_str()) => unknown.push((key, value)),
            None if at.is_empty() && !is_harmless(name) && speaks(name) && !says_no(name, value) => unknown.push((key, value)),
            None => {}
        }
    }
}

fn is_harmless(key: &str) -> bool {
    HARMLESS_KEYS.iter().flat_map(|(_, keys)| keys.iter()).any(|pattern| like(pattern, key))
}

/// Whether the name speaks of what is computed.
fn speaks(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let word = || key.split(['_', '.', '-']).any(|word| SPEAKING_WORDS.contains(&word));
    SPEAKING.iter().any(|part| key.contains(part)) || word()
}

/// Whether the value leaves out what the key is about.
fn says_no(key: &str, value: &Value) -> bool {
    let multiplies = ["multiplier", "scale", "scaling", "factor", "ratio"].iter().any(|word| key.contains(word));
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(n) => n.as_f64() == Some(if multiplies { 1.0 } else { 0.0 }),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

/// Whether `key` is as `pattern` says, in which `*` at an end stands for anything.
fn like(pattern: &str, key: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(_), Some(_)) => key.contains(pattern.trim_matches('*')),
        (Some(end), None) => key.ends_with(end),
        (None, Some(start)) => key.starts_with(start),
        (None, None) => key == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_speak_of_what_is_computed_are_told_from_those_that_do_not() {
        for key in
            ["bias", "qkv_bias", "attention_multiplier", "use_qk_norm", "rms_norm_epsilon", "rope_thetta", "num_local_experts"]
        {
            assert!(speaks(key) && !is_harmless(key), "{key}");
        }
        for key in
            ["author", "is_llama_config", "trained_by", "unsloth_fixed", "attention_dropout", "_attn_implementation_autoset"]
        {
            assert!(!speaks(key) || is_harmless(key), "{key}");
        }
        assert!(says_no("residual_multiplier", &1.0.into()) && !says_no("residual_multiplier", &0.5.into()));
        assert!(says_no("num_experts", &0.into()) && !says_no("num_experts", &8.into()));
    }

    #[test]
    fn every_harmless_key_is_documented_with_its_reason() {
        let page = include_str!("../../../docs/reading.md");
        for (reason, keys) in HARMLESS_KEYS {
            let listed: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
            assert!(page.contains(&format!("| {} | {reason} |", listed.join(", "))), "docs/reading.md lacks: {reason}");
        }
        for key in crate::HARMLESS_GGUF {
            assert!(page.contains(&format!("`{key}`")), "docs/reading.md lacks {key}");
        }
    }
}
