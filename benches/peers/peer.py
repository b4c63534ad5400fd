"""The command line that all peers share, and what a peer leaves behind.

A peer writes a folder: `weights.safetensors`, the block matrices as their codes mean them, in f32; and `peer.json`: who it
was, its true bits a weight, its bill.
"""
import argparse
import os

import torch
from safetensors.torch import save_file

import protocol


def main(about, quantize, calibrated, iterations=False):
    """Runs a peer. `quantize` takes the arguments and gives weights by name, a bill, and what to note."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("model", help="the checkpoint, a Hugging Face folder")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    if calibrated:
        parser.add_argument("--calibration", required=True, help="the text to calibrate on")
        parser.add_argument("--samples", type=int, default=64, help="windows of it, from its start [64]")
        parser.add_argument("--length", type=int, default=512, help="tokens a window [512]")
    if iterations:
        parser.add_argument("--iterations", type=int, default=50, help="steps a block [50]")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    weights, bill, notes = quantize(arguments)
    os.makedirs(arguments.out, exist_ok=True)
    save_file({name: w.float().contiguous() for name, w in weights.items()}, os.path.join(arguments.out, "weights.safetensors"))
    given = {key: value for key, value in vars(arguments).items() if key not in ("model", "out", "calibration")}
    about = {**notes, "bits": true_bits(arguments), **bill.numbers(), "settings": given}
    protocol.write(os.path.join(arguments.out, "peer.json"), about)
    print(f"wrote {arguments.out}: {len(weights)} matrices, {bill.cpu_seconds:.0f} CPU-s, {bill.peak_mb:.0f} MB")


def true_bits(arguments):
    """A code a weight and a scale of 16 bits a group; symmetric, so no zeros."""
    return arguments.bits + 16 / arguments.group


def calibration(arguments):
    """The first windows of the calibration text: `[samples, length]`."""
    found = protocol.windows(protocol.tokens(arguments.model, arguments.calibration), arguments.length)
    if len(found) < arguments.samples:
        raise SystemExit(f"`{arguments.calibration}` has {len(found)} windows of {arguments.length} tokens, and {arguments.samples} are wanted")
    return found[: arguments.samples]


def on_grid(weight, scale, arguments):
    """What is stored: codes of `weight` by `scale` in f16; checks that the weights were on that grid already.

    Peers hold what they quantized as floats. That they lie on a grid of `2^bits` levels is not taken on trust.
    """
    rows, columns = weight.shape
    groups = weight.float().view(rows, columns // arguments.group, arguments.group)
    scale = scale.float().view(rows, -1, 1)
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    levels = groups / safe
    codes = levels.round().clamp(-(2 ** (arguments.bits - 1)), 2 ** (arguments.bits - 1) - 1)
    off = (levels - codes).abs().max().item()
    if off > 0.05:
        raise SystemExit(f"a weight is {off:.2f} of a step off the grid it was said to be on")
    return (codes * scale.half().float()).view(rows, columns)
