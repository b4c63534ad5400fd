"""Compares the logits, or the last hidden states, that transformers computes from a folder of target `safetensors` with others.

`python exported.py FOLDER WANTED`: `FOLDER` is what attar wrote. `WANTED` is a folder with `golden.safetensors`, such as those
of `models/`, or a checkpoint that transformers loads as well. Both are computed in float32 with eager attention. Prints the
largest difference; above 1e-5 the exit code is 1. No weight may be missing in the folder, and none may be left over.

Made for torch 2.15.0 (CPU), transformers 5.5.4 and safetensors 0.8.0.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

TOLERANCE = 1e-5


def load(folder):
    encoder = AutoConfig.from_pretrained(folder).model_type == "bert"
    classes = AutoModel if encoder else AutoModelForCausalLM
    model, info = classes.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    # The pooler belongs to a head for other tasks, which attar does not keep.
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval(), encoder


def computed(folder, tokens, **inputs):
    model, encoder = load(folder)
    with torch.no_grad():
        outputs = model(tokens, **inputs)
    return outputs.last_hidden_state if encoder else outputs.logits


def main(folder, wanted):
    inputs = {}
    golden = Path(wanted) / "golden.safetensors"
    if golden.exists():
        tensors = load_file(golden)
        tokens = tensors["input_ids"].reshape(1, -1)
        if "token_type_ids" in tensors:
            inputs["token_type_ids"] = tensors["token_type_ids"].reshape(1, -1)
        reference = tensors["hidden_states"] if "hidden_states" in tensors else tensors["logits"]
    else:
        vocabulary = AutoConfig.from_pretrained(wanted).vocab_size
        tokens = torch.arange(96).mul(7919).remainder(vocabulary).reshape(1, -1)
        reference = computed(wanted, tokens)
    difference = (computed(folder, tokens, **inputs) - reference.reshape(1, tokens.shape[1], -1)).abs().max().item()
    print(f"{folder}: {difference:.1e}")
    return difference <= TOLERANCE


if __name__ == "__main__":
    sys.exit(0 if main(*sys.argv[1:]) else 1)
