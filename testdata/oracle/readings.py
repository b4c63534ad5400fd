"""Makes `reading/`: what transformers reads from one set of weights under many spellings of a configuration.

`reading/FAMILY.safetensors` holds weights, `reading/FAMILY.json` the configuration they were made for and a list of cases:
the keys that a case sets, or removes, and the output for `tokens` (the last row of the logits, or the mean of the last
hidden states of an encoder), computed in float32 with eager attention from a folder with that configuration. Nothing of a
case is interpreted here: transformers reads the JSON, as attar does.

Made with Python 3.11, torch 2.15.0 (CPU), transformers 5.5.4 and safetensors 0.8.0: `python readings.py`.
"""

import json
import logging
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

READING = Path(__file__).parent.parent / "reading"

BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 64,
}

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"short_factor": [1.0 + 0.125 * i for i in range(8)], "long_factor": [1.0 + 0.5 * i for i in range(8)]}


def case(name, remove=(), **keys):
    return {"name": name, "set": keys, "remove": list(remove)}


def scaled(name, theta=30.0, **keys):
    return case(name, rope_theta=theta, rope_scaling=keys)


FAMILIES = {
    "llama": (
        BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
        [
            case("plain"),
            case("defaults", remove=["rms_norm_eps", "max_position_embeddings", "tie_word_embeddings"]),
            case("null for defaults", head_dim=None, rope_scaling=None, pad_token_id=None, eos_token_id=None, pretraining_tp=None),
            scaled("type and rope_type, default", type="default", rope_type="default"),
            scaled("type and rope_type, linear", type="linear", rope_type="linear", factor=4.0),
            scaled("type and rope_type, llama3", type="llama3", **LLAMA3, original_max_position_embeddings=32),
            case("theta inside wins", rope_theta=500.0, rope_parameters={"rope_type": "default", "rope_theta": 50.0}),
            case("theta outside counts", rope_theta=500.0, rope_parameters={"rope_type": "default"}),
            case("an empty rope_scaling", rope_scaling={}, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0}),
            scaled("yarn", **YARN),
            scaled("yarn, not truncated", **YARN, truncate=False),
            scaled("yarn, betas", **YARN, beta_fast=8, beta_slow=2),
            scaled("yarn, betas of zero", **YARN, beta_fast=0, beta_slow=0),
            scaled("yarn, attention factor", **YARN, attention_factor=1.3),
            scaled("yarn, mscale", **YARN, mscale=0.7, mscale_all_dim=1.2),
            scaled("yarn, one mscale", **YARN, mscale=0.7),
            case(
                "yarn without contexts",
                remove=["max_position_embeddings"],
                rope_theta=30.0,
                rope_scaling={"rope_type": "yarn", "factor": 4.0},
            ),
            case("llama3, original outside", rope_theta=30.0, original_max_position_embeddings=16, rope_scaling=LLAMA3),
            scaled("llama3, original by default", **LLAMA3),
            scaled("longrope", rope_type="longrope", **LONG, original_max_position_embeddings=16),
            scaled("longrope, factor", rope_type="longrope", **LONG, original_max_position_embeddings=32, factor=8.0),
            case("tied by the configuration, not in the file", tie_word_embeddings=True),
            case("keys without influence", author="someone", unsloth_version="1", attention_dropout=0.1, use_cache=False, mlp_bias=False),
        ],
    ),
    "mistral": (
        BASE | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_attention_heads": 8, "num_key_value_heads": 8},
        [
            case("plain"),
            case("key heads by default", remove=["num_key_value_heads"]),
            case("window", sliding_window=5),
            case("no window", sliding_window=None),
        ],
    ),
    "qwen3": (
        BASE | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "num_attention_heads": 1, "num_hidden_layers": 1},
        [
            case("plain"),
            case("head by default", remove=["head_dim"]),
            case("window off", sliding_window=4, max_window_layers=0, use_sliding_window=False),
            case("layer types", layer_types=["full_attention"]),
        ],
    ),
    "phi3": (
        BASE | {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "pad_token_id": 0},
        [
            case("plain"),
            case("defaults", remove=["rms_norm_eps", "max_position_embeddings"]),
            case("longrope called su", original_max_position_embeddings=16, rope_scaling={"type": "su", "original_max_position_embeddings": 16} | LONG),
            case("longrope called yarn", original_max_position_embeddings=16, rope_scaling={"type": "yarn"} | LONG),
            case(
                "longrope, context by default",
                remove=["max_position_embeddings"],
                original_max_position_embeddings=16,
                rope_scaling={"type": "longrope"} | LONG,
            ),
            case("window", sliding_window=5),
        ],
    ),
    "gemma3": (
        BASE
        | {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True},
        [
            case("plain", sliding_window=8, sliding_window_pattern=2),
            case("layer types", sliding_window=8, layer_types=["full_attention", "sliding_attention"]),
            case("local theta", sliding_window=8, sliding_window_pattern=2, rope_local_base_freq=100.0, rope_theta=5000.0),
            case("scaling", sliding_window=8, sliding_window_pattern=2, rope_scaling={"type": "linear", "rope_type": "linear", "factor": 4.0}),
            case("scalar by default", remove=["query_pre_attn_scalar"], sliding_window=8, sliding_window_pattern=2),
        ],
    ),
    "gpt2": (
        {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "n_embd": 32,
            "n_head": 2,
            "n_layer": 2,
            "n_positions": 64,
            "torch_dtype": "float32",
            "vocab_size": 64,
        },
        [
            case("plain"),
            case("the other names", remove=["n_embd", "n_head", "n_layer"], hidden_size=32, num_attention_heads=2, num_hidden_layers=2),
            case("scaled by depth", scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
        ],
    ),
    "bert": (
        {
            "architectures": ["BertModel"],
            "model_type": "bert",
            "hidden_size": 32,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "torch_dtype": "float32",
            "vocab_size": 64,
        },
        [case("plain"), case("null for defaults", layer_norm_eps=1e-12, classifier_dropout=None, hidden_act="gelu")],
    ),
}


def randomise(model, generator):
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        gain = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
        mean = 1.0 if gain and model.config.model_type != "gemma3_text" else 0.0
        parameter.data = mean + 0.25 * values


def auto(config):
    return AutoModel if config["model_type"] == "bert" else AutoModelForCausalLM


def weights(name, model):
    """GPT-2 and BERT as they are often published: with masks and numbers of positions, BERT inside a larger class."""
    tensors = {key: value.contiguous().clone() for key, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    if name == "gpt2":
        mask = torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64)
        tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
        tensors |= {f"h.{block}.attn.bias": mask.clone() for block in range(2)}
        tensors |= {f"h.{block}.attn.masked_bias": torch.tensor(-1e4) for block in range(2)}
    if name == "bert":
        tensors = {f"bert.{key}": value for key, value in tensors.items()}
        tensors["bert.embeddings.position_ids"] = torch.arange(64).unsqueeze(0)
        tensors["cls.predictions.bias"] = torch.zeros(64)
    return tensors


@torch.no_grad()
def output(config, tensors, tokens):
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        save_file(tensors, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        model = auto(config).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        if config["model_type"] == "bert":
            return model(tokens).last_hidden_state.mean(1)[0]
        return model(tokens, use_cache=False).logits[0, -1]


def main():
    logging.disable(logging.WARNING)
    READING.mkdir(exist_ok=True)
    for seed, (name, (config, cases)) in enumerate(FAMILIES.items()):
        generator = torch.Generator().manual_seed(seed)
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "config.json").write_text(json.dumps(config))
            model = auto(config).from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
        randomise(model, generator)
        tensors = weights(name, model)
        save_file(tensors, READING / f"{name}.safetensors", metadata={"format": "pt"})
        tokens = torch.randint(0, 64, (1, 24), generator=generator)
        for one in cases:
            changed = {key: value for key, value in (config | one["set"]).items() if key not in one["remove"]}
            one["output"] = [float(f"{number:.7g}") for number in output(changed, tensors, tokens).tolist()]
        family = {"config": config, "tokens": tokens[0].tolist(), "cases": cases}
        (READING / f"{name}.json").write_text(json.dumps(family) + "\n")


main()
