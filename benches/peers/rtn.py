#!/usr/bin/env python3
"""Rounding to nearest in plain torch: symmetric over the full range, the extreme weight of a group at -2^(bits - 1)."""
import torch

import peer


def rounded(weight, bits, group):
    """`weight` as its codes and f16 scales mean it."""
    rows, columns = weight.shape
    groups = weight.view(rows, columns // group, group)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (extreme / -(2 ** (bits - 1))).half().float()
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = (groups / safe).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return (codes * scale).view(rows, columns)


def quantize(arguments):
    state = peer.protocol.load(arguments.model).state_dict()
    with peer.protocol.Bill() as bill:
        weights = {name: rounded(w, arguments.bits, arguments.group) for name, w in state.items() if peer.protocol.is_block_matrix(name)}
    return weights, bill, {"peer": f"RTN (torch {torch.__version__}), full range"}


if __name__ == "__main__":
    peer.main(__doc__, quantize, calibrated=False)
