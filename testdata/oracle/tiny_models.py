"""Makes `models/tiny-*`: random checkpoints, each with the logits or the embedding that transformers computes from its files.

Each folder is as Hugging Face lays it out; decoders have no tokenizer. `golden.safetensors` holds `input_ids` (i64,
[1, 24]) and `logits` (f32, [1, 24, 96]), computed in float32 with eager attention after reloading the written folder.
An encoder has `token_type_ids` (i64, [1, 24]), `hidden_states` (f32, [1, 24, 32]) and `embedding` (f32, [1, 32]), too. A
model that treats long and short texts differently has `short_input_ids` (i64, [1, 12]) and `short_logits`.
Some configs are spelled as transformers 5 writes them, others as older checkpoints do, with all that these leave out.

Made with Python 3.11, torch 2.15.0 (CPU), transformers 5.5.4 and safetensors 0.8.0: `python tiny_models.py`.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

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
    # The heads together are wider than the residual stream.
    "tiny-qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 96,
    },
    "tiny-gpt2": {
        "activation_function": "gelu_new",
        "architectures": ["GPT2LMHeadModel"],
        "bos_token_id": 95,
        "eos_token_id": 95,
        "layer_norm_epsilon": 1e-05,
        "model_type": "gpt2",
        "n_ctx": 64,
        "n_embd": 32,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 64,
        "torch_dtype": "float32",
        "vocab_size": 96,
    },
    # Every third block sees all positions, the others a window that is shorter than the tokens.
    "tiny-gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "final_logit_softcapping": None,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 16,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "rope_theta": 1000000.0,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "torch_dtype": "bfloat16",
        "vocab_size": 96,
    },
    # The same family as transformers 5 spells it, with capped logits.
    "tiny-gemma3-softcap": {
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "dtype": "float32",
        "final_logit_softcapping": 5.0,
        "head_dim": 8,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 32,
        "intermediate_size": 48,
        "layer_types": ["full_attention", "sliding_attention"],
        "max_position_embeddings": 64,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 5,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"rope_theta": 5000.0, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 50.0, "rope_type": "default"},
        },
        "sliding_window": 8,
        "tie_word_embeddings": True,
        "vocab_size": 96,
    },
    "tiny-phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "model_type": "phi3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "original_max_position_embeddings": 64,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "sliding_window": 8,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 96,
    },
    # Six of eight columns of a head rotate. The 24 tokens are more than 16, the 12 are not.
    "tiny-phi4-mini": {
        "architectures": ["Phi3ForCausalLM"],
        "attention_bias": False,
        "full_attn_mod": 1,
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 48,
        "interpolate_factor": 1,
        "lm_head_bias": False,
        "max_position_embeddings": 64,
        "mlp_bias": False,
        "model_type": "phi3",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "original_max_position_embeddings": 16,
        "pad_token_id": 0,
        "partial_rotary_factor": 0.75,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "long_factor": [1.0, 2.5, 6.0],
            "short_factor": [1.0, 1.25, 1.5],
            "type": "longrope",
        },
        "rope_theta": 10000.0,
        "sliding_window": 64,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 96,
    },
    "tiny-bert": {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": "float16",
        "type_vocab_size": 2,
        "vocab_size": 96,
    },
}

# As sentence-transformers saves an encoder.
SENTENCE_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]

POOLING = {
    "word_embedding_dimension": 32,
    "pooling_mode_cls_token": False,
    "pooling_mode_mean_tokens": True,
    "pooling_mode_max_tokens": False,
    "pooling_mode_mean_sqrt_len_tokens": False,
}

SHARDED = {"tiny-llama-linear": "30KB"}


def randomise(model, generator):
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        is_gain = name.endswith("weight") and ("norm" in name.lower() or ".ln_" in name)
        # Gemma adds 1 to what is stored.
        mean = 1.0 if is_gain and model.config.model_type != "gemma3_text" else 0.0
        deviation = 0.3 if "norm" in name.lower() else 0.2
        parameter.data = (mean + deviation * values).to(parameter.dtype)


def save(folder, config, generator):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    written = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (folder / "config.json").write_text(written)
    dtype = getattr(torch, config.get("torch_dtype") or config["dtype"])
    model = auto(config).from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    if hasattr(model, "pooler"):
        model.pooler = None
    randomise(model, generator)
    model.save_pretrained(folder, max_shard_size=SHARDED.get(folder.name, "1MB"))
    (folder / "generation_config.json").unlink(missing_ok=True)
    if "torch_dtype" in config:
        (folder / "config.json").write_text(written)
    if config["model_type"] == "bert":
        save_sentence_modules(folder)
        word_piece().save(str(folder / "tokenizer.json"))


def auto(config):
    return AutoModel if config["model_type"] == "bert" else AutoModelForCausalLM


def save_sentence_modules(folder):
    (folder / "modules.json").write_text(json.dumps(SENTENCE_MODULES, indent=2) + "\n")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(POOLING, indent=2) + "\n")


def word_piece():
    """BERT's tokenizer for lower-case letters and digits; like many that are published, it truncates and pads."""
    pieces = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] + pieces + ["##" + piece for piece in pieces]
    words = ["the", "ing", "to", "be", "or", "not", ".", ",", "?", "##ing", "##er", "and", "is", "of", "in", "that", "it", "'", "!"]
    ids = {piece: at for at, piece in enumerate(vocabulary + words)}
    assert len(ids) == 96, len(ids)
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=32, pad_id=0, pad_token="[PAD]")
    return tokenizer


@torch.no_grad()
def golden(folder, config, generator):
    model, loading = auto(config).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    loading["missing_keys"] = {key for key in loading["missing_keys"] if not key.startswith("pooler.")}
    assert not any(loading.values()), loading
    input_ids = torch.randint(0, model.config.vocab_size, (1, TOKENS), generator=generator)
    if config["model_type"] == "bert":
        return encoder_golden(model, input_ids)
    values = {"input_ids": input_ids, "logits": model(input_ids, use_cache=False).logits}
    if folder.name == "tiny-phi4-mini":
        short = input_ids[:, : TOKENS // 2].clone()
        values |= {"short_input_ids": short, "short_logits": model(short, use_cache=False).logits}
    return values


def encoder_golden(model, input_ids):
    """The second third is of the other segment. Pooled and normalized as `SENTENCE_MODULES` say; nothing is padding."""
    token_type_ids = torch.zeros_like(input_ids)
    token_type_ids[:, TOKENS // 3 : 2 * TOKENS // 3] = 1
    hidden_states = model(input_ids, token_type_ids=token_type_ids).last_hidden_state
    embedding = torch.nn.functional.normalize(hidden_states.mean(1), dim=1)
    plain = model(input_ids).last_hidden_state
    return {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "hidden_states": hidden_states,
        "embedding": embedding,
        "one_segment_embedding": torch.nn.functional.normalize(plain.mean(1), dim=1),
    }


def main():
    for seed, (name, config) in enumerate(CONFIGS.items()):
        generator = torch.Generator().manual_seed(seed)
        save(MODELS / name, config, generator)
        save_file(golden(MODELS / name, config, generator), MODELS / name / "golden.safetensors")


main()
