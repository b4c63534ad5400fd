"""Makes `models/tiny-*`: random checkpoints, each with the logits that transformers computes from its files.

Each folder is as Hugging Face lays it out, less the tokenizer. Its `golden.safetensors` holds `input_ids` (i64, [1, 24])
and `logits` (f32, [1, 24, 96]), computed in float32 with eager attention after reloading the folder as it lies there.
Some configs are spelled as transformers 5 writes them, others as older checkpoints do, with all that these leave out.

Made with Python 3.11, torch 2.15.0 (CPU), transformers 5.5.4 and safetensors 0.8.0: `python tiny_models.py`.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

MODELS = Path(__file__).parent.parent / "models"

TOKENS = 24

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 32,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-05,
    "vocab_size": 96,
}

# The keys `torch_dtype`, `rope_theta` and `rope_scaling` mark the older spelling: these configs are kept as they are
# here. The others, with `dtype` and `rope_parameters`, are kept as transformers writes them.
CONFIGS = {
    # `use_sliding_window` is false, so the window must not be used although it is shorter than the tokens.
    "tiny-qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "max_window_layers": 1,
        "model_type": "qwen2",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 96,
    },
    "tiny-mistral": {
        "architectures": ["MistralForCausalLM"],
        "dtype": "bfloat16",
        "head_dim": 16,
        "hidden_size": 48,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "model_type": "mistral",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "vocab_size": 96,
    },
    # Of the wavelengths 6.3, 13.7, 29.7 and longer, the first is kept (below 32 / 4), the next two are blended and the
    # others are stretched (above 32 / 1).
    "tiny-llama-llama3": LLAMA
    | {
        "attention_bias": True,
        "mlp_bias": True,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 32,
            "rope_type": "llama3",
        },
        "rope_theta": 500.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    },
    # With this `rope_theta` the ramp between kept and stretched frequencies has values between 0 and 1.
    "tiny-llama-yarn": LLAMA
    | {
        "dtype": "float32",
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "rope_theta": 30.0,
            "rope_type": "yarn",
        },
        "tie_word_embeddings": True,
    },
    # As the first Llama's configs: no `num_key_value_heads`, no `rope_theta`, no `attention_bias`, and `type`.
    "tiny-llama-linear": LLAMA
    | {
        "num_attention_heads": 4,
        "rope_scaling": {"factor": 2.0, "type": "linear"},
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    },
}

SHARDED = {"tiny-llama-linear": "30KB"}


def randomise(model, generator):
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        mean, deviation = (1.0, 0.3) if "norm" in name else (0.0, 0.2)
        parameter.data = (mean + deviation * values).to(parameter.dtype)


def save(folder, config, generator):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(written)
    dtype = getattr(torch, config.get("torch_dtype") or config["dtype"])
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    randomise(model, generator)
    model.save_pretrained(folder, max_shard_size=SHARDED.get(folder.name, "1MB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "torch_dtype" in config:
        (folder / "config.json").write_text(written)


@torch.no_grad()
def golden(folder, generator):
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(loading.values()), loading
    input_ids = torch.randint(0, model.config.vocab_size, (1, TOKENS), generator=generator)
    return {"input_ids": input_ids, "logits": model(input_ids, use_cache=False).logits}


def main():
    for seed, (name, config) in enumerate(CONFIGS.items()):
        generator = torch.Generator().manual_seed(seed)
        save(MODELS / name, config, generator)
        save_file(golden(MODELS / name, generator), MODELS / name / "golden.safetensors")


main()
