"""Makes `tiny-*.gguf` from the checkpoints of the same names in `../models`, as llama.cpp's `convert_hf_to_gguf.py` does: names
and keys are those of the `gguf` package, rearrangements are the converter's (transposed layers of GPT-2, gains of Gemma plus
one, factors of Phi as tensors).

Made with Python 3.11, gguf 0.19.0, torch 2.15.0 and safetensors 0.8.0, after `../oracle/tiny_models.py`: `python architectures.py`.
"""

import json
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
MODELS = HERE.parent / "models"

TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


def decoder_keys(writer, config):
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])


def gpt2_keys(writer, config):
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_ctx"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


def bert_keys(writer, config):
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)


def gemma3_keys(writer, config):
    decoder_keys(writer, config)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern(config["sliding_window_pattern"])
    writer.add_rope_freq_base_swa(config["rope_local_base_freq"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])


def phi3_keys(writer, config):
    decoder_keys(writer, config)
    share = config.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(share * config["hidden_size"]) // config["num_attention_heads"])
    writer.add_sliding_window(config["sliding_window"])
    original = config["original_max_position_embeddings"]
    writer.add_rope_scaling_orig_ctx_len(original)
    if config["rope_scaling"] is not None:
        scale = config["max_position_embeddings"] / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))


def converted(architecture, name, tensor):
    if architecture == gguf.MODEL_ARCH.GPT2 and name.endswith(TRANSPOSED):
        return tensor.T
    if architecture == gguf.MODEL_ARCH.GEMMA3 and name.endswith("norm.weight"):
        return tensor + 1
    return tensor


MADE = {
    "tiny-qwen3": (gguf.MODEL_ARCH.QWEN3, decoder_keys),
    "tiny-gpt2": (gguf.MODEL_ARCH.GPT2, gpt2_keys),
    "tiny-bert": (gguf.MODEL_ARCH.BERT, bert_keys),
    "tiny-gemma3": (gguf.MODEL_ARCH.GEMMA3, gemma3_keys),
    "tiny-phi3": (gguf.MODEL_ARCH.PHI3, phi3_keys),
    "tiny-phi4-mini": (gguf.MODEL_ARCH.PHI3, phi3_keys),
}


def make(model, architecture, keys):
    config = json.loads((MODELS / model / "config.json").read_text())
    writer = gguf.GGUFWriter(HERE / f"{model}.gguf", gguf.MODEL_ARCH_NAMES[architecture])
    keys(writer, config)
    names = gguf.get_tensor_name_map(architecture, config.get("num_hidden_layers") or config["n_layer"])
    for name, tensor in load_file(MODELS / model / "model.safetensors").items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        values = converted(architecture, name, tensor.to(torch.float32))
        writer.add_tensor(stored, np.ascontiguousarray(values.numpy()))
    for kind in ("long", "short"):
        factors = (config.get("rope_scaling") or {}).get(f"{kind}_factor")
        if factors:
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


for model, (architecture, keys) in MADE.items():
    make(model, architecture, keys)
