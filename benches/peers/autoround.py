#!/usr/bin/env python3
"""AutoRound, symmetric, without compilation, which costs more than it saves on a small model on a CPU."""
import importlib.metadata

import peer


def quantize(arguments):
    from auto_round import AutoRound

    windows = peer.calibration(arguments)
    model = peer.protocol.load(arguments.model)
    rounding = AutoRound(
        model,
        tokenizer=peer.protocol.tokenizer(arguments.model),
        scheme={"bits": arguments.bits, "group_size": arguments.group, "sym": True, "data_type": "int", "act_bits": 16},
        dataset=[{"input_ids": w[None]} for w in windows],
        iters=arguments.iterations,
        seqlen=arguments.length,
        nsamples=len(windows),
        batch_size=min(8, len(windows)),
        device_map="cpu",
        enable_torch_compile=False,
    )
    with peer.protocol.Bill() as bill:
        model, _ = rounding.quantize()
    weights = {}
    for name, module in model.named_modules():
        if peer.protocol.is_block_matrix(f"{name}.weight"):
            weights[f"{name}.weight"] = peer.on_grid(module.weight.data, module.scale, arguments)
    version = importlib.metadata.version("auto-round")
    return weights, bill, {"peer": f"AutoRound {version}", "iterations": arguments.iterations}


if __name__ == "__main__":
    peer.main(__doc__, quantize, calibrated=True, iterations=True)
