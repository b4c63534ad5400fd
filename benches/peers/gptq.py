#!/usr/bin/env python3
"""GPTQ by llm-compressor, symmetric, its defaults otherwise."""
import importlib.metadata

import peer


def quantize(arguments):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    windows = peer.calibration(arguments).tolist()
    data = Dataset.from_dict({"input_ids": windows, "attention_mask": [[1] * len(w) for w in windows]})
    grid = QuantizationArgs(num_bits=arguments.bits, type="int", symmetric=True, strategy="group", group_size=arguments.group)
    scheme = QuantizationScheme(targets=["Linear"], weights=grid)
    recipe = GPTQModifier(config_groups={"blocks": scheme}, ignore=["lm_head"])
    model = peer.protocol.load(arguments.model)
    with peer.protocol.Bill() as bill:
        oneshot(model=model, dataset=data, recipe=recipe, max_seq_length=arguments.length, num_calibration_samples=len(windows))
    weights = {}
    for name, module in model.named_modules():
        if peer.protocol.is_block_matrix(f"{name}.weight"):
            weights[f"{name}.weight"] = peer.on_grid(module.weight.data, module.weight_scale.data, arguments)
    version = importlib.metadata.version("llmcompressor")
    return weights, bill, {"peer": f"GPTQ (llm-compressor {version})"}


if __name__ == "__main__":
    peer.main(__doc__, quantize, calibrated=True)
