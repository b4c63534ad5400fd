#!/usr/bin/env python3
"""Predicted cycles beside Vela's: a product of many rows, one of a single row, and a decoder block, each for four Ethos-U.

    cargo xtask engines vela && cargo build --release -p attar
    target/engines/vela/bin/python benches/vela/compare.py testdata/models/shakespeare-1m testdata/evals/shakespeare-valid.txt \\
        --attar target/release/attar

The product and its weights are one graph here (`graph.py`) and the same sizes in `attar tile`. The block comes from one quantized
checkpoint both ways: `attar export --target tflite` of the integer-only model for Vela, `attar compile` of it for the device file.
Prints Markdown; cycles of Vela are those of its per-layer table.
"""
import argparse
import collections
import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import graph

# Device: system configuration, memory mode of the device file.
DEVICES = {
    "ethos-u55-256": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65-512": ("Ethos_U65_High_End", "Dedicated_Sram_512KB"),
    "ethos-u85-256": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_512KB"),
    "ethos-u85-1024": ("Ethos_U85_SYS_DRAM_Mid", "Dedicated_Sram_512KB"),
}
# Feature maps in SRAM, constants outside: what a plan of attar does with a block this small.
IN_SRAM = "Shared_Sram"
PRODUCTS = [(512, 576, 1536), (1, 576, 1536)]
# A single product of `attar tile` reads its inputs from DRAM and stores its outputs there, which on a device with flash alone is the flash's port. With
# many rows it gets SRAM for them instead, at SRAM's speed, as Vela has it.
ROWS_IN_SRAM = {"ethos-u55-256": ["--set", "sram=4MiB", "--set", "dram.bandwidth=4GB/s", "--set", "dram.latency=32"]}
# What attar's kernels of a block hold of the operators of the exported graph.
PARTS = ("norms", "projections", "attention", "layout")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint of a decoder, in floats")
    parser.add_argument("text", help="text to calibrate on")
    parser.add_argument("--attar", default="target/release/attar", help="attar's binary [target/release/attar]")
    parser.add_argument("--tokens", type=int, action="append", help="tokens of the block, may be repeated [64 and 128]")
    arguments = parser.parse_args()
    arguments.attar = os.path.abspath(arguments.attar)
    with tempfile.TemporaryDirectory() as folder:
        products(arguments, Path(folder))
        for tokens in arguments.tokens or [64, 128]:
            block(arguments, Path(folder) / str(tokens), tokens)


def products(arguments, folder):
    print("| product | device | ours | Vela, total | ours / Vela | its array | ours / its array | Vela, file's memory mode |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in PRODUCTS:
        path = folder / ("fc_%d_%d_%d.tflite" % shape)
        path.write_bytes(graph.fully_connected(*shape))
        for device, (_, mode) in DEVICES.items():
            ours = tiled(arguments, shape, device)
            (row,), (other,) = vela(path, device, IN_SRAM, folder), vela(path, device, mode, folder)
            total, array = float(row["Op Cycles"]), float(row["NPU"])
            cells = ["%d x %d x %d" % shape, f"`{device}`", f"{ours:,.0f}", f"{total:,.0f}", f"{ours / total - 1:+.1%}"]
            # One row leaves the array idle: its cycles say nothing.
            cells += [f"{array:,.0f}", f"{ours / array - 1:+.1%}"] if shape[0] > 1 else ["", ""]
            cells.append(f"{float(other['Op Cycles']):,.0f}")
            print(f"| {' | '.join(cells)} |", flush=True)
    print()


def tiled(arguments, shape, device):
    """Cycles of a product by `attar tile`."""
    command = [arguments.attar, "tile", ",".join(map(str, shape)), "--device", device, "--goal", "latency", "--json"]
    command += ROWS_IN_SRAM.get(device, []) if shape[0] > 1 else []
    return json.loads(run(command))["tilings"][0]["cycles"]


def vela(model, device, mode, folder):
    """Vela's operators of a model, each with its cycles."""
    out = folder / f"vela-{device}-{mode}"
    command = [sys.executable, "-m", "ethosu.vela", str(model), "--accelerator-config", device, "--output-dir", str(out)]
    command += ["--config", "Arm/vela.ini", "--system-config", DEVICES[device][0], "--memory-mode", mode, "--verbose-performance"]
    run(command)
    with open(out / f"{model.stem}_per-layer.csv", newline="") as file:
        return list(csv.DictReader(file))


def block(arguments, folder, tokens):
    folder.mkdir()
    quantized = recipe(arguments, folder, 'kind = "quantize"\nselect = ["**"]\ngrid = "int8"\ngroup = "row"\nscale_dtype = "f32"\npositive_scales = true\n')
    exported = '[[step]]\nkind = "activations"\nmode = "static"\nvalues = "all"\nasymmetric = true\n'
    exported += f'[[export]]\nfor = "ethos-u85"\ncontext = {tokens}\nprefill = {tokens}\n'
    static = '[[step]]\nkind = "activations"\nmode = "static"\n[[export]]\ntarget = "checkpoint"\n'
    for name, rest in (("graph", exported), ("static", static)):
        path = folder / f"{name}.toml"
        path.write_text(quantized.replace("OUT", str(folder / name)) + rest)
        run([arguments.attar, "run", str(path), "--quiet"])
    (model,) = (folder / "graph").glob("*/prefill.tflite")
    print(f"| {tokens} tokens | part | ours | Vela | ours / Vela | Vela, file's memory mode |\n|---|---|---|---|---|---|")
    for device, (_, mode) in DEVICES.items():
        ours = compiled(arguments, folder, tokens, device)
        theirs, other = (parts(vela(model, device, mode, folder)) for mode in (IN_SRAM, mode))
        for part in (*PARTS, "block"):
            mine, its, others = (sum(found.values()) if part == "block" else found[part] for found in (ours, theirs, other))
            ratio = f"{mine / its - 1:+.1%}" if mine else ""
            print(f"| `{device}` | {part} | {mine:,.0f} | {its:,.0f} | {ratio} | {others:,.0f} |", flush=True)
    print()


def recipe(arguments, folder, step):
    data = f'[data.calibration]\npath = "{os.path.abspath(arguments.text)}"\nsamples = 16\nlength = 128\n'
    return f'recipe = 1\nmodel = "{os.path.abspath(arguments.model)}"\noutput = "OUT"\n{data}[[step]]\n{step}'


def compiled(arguments, folder, tokens, device):
    """Cycles of the second block, by parts, as `attar compile` predicts them."""
    out, table = folder / device, folder / f"{device}.csv"
    command = [arguments.attar, "compile", str(folder / "static" / "checkpoint"), "--device", device, "--goal", "latency", "--seq", str(tokens)]
    command += ["--chunk", str(tokens), "--decode", "false", "--prove", "0", "--quality", "0", "--calibration", arguments.text]
    run([*command, "--samples", "4", "--length", "128", "--out", str(out), "--csv", str(table), "--quiet"])
    found = collections.Counter()
    with open(table, newline="") as file:
        for row in csv.DictReader(file):
            where, _, name = row["name"].partition(" / ")
            if where == "block 1":
                part = {"scaled dot product": "attention", "norm": "norms"}.get(name.rpartition(" / ")[2], "projections")
                found[part] += float(row["cycles"])
    return found


def parts(rows):
    """Cycles of the second block's operators, by the parts of a plan."""
    found = collections.Counter()
    for row in rows:
        where, _, name = row["Name"].partition(".")
        if where == "b1":
            found[part(name)] += float(row["Op Cycles"])
    return found


def part(name):
    if name.startswith(("attention_in", "mlp_in")):
        return "norms"
    if name.startswith("mixed"):
        return "attention"
    moved = "heads" in name or name.startswith(("values", "keys", "merged"))
    return "layout" if moved and not name.endswith("heads/wide") else "projections"


def run(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
