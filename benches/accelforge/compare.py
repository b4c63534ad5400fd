#!/usr/bin/env python3
"""DRAM bytes beside those of accelforge's mapper (Fast and Fusiest Mapper): single products, a gated MLP, attention.

    python3.12 -m venv target/accelforge && target/accelforge/bin/pip install accelforge==1.0.467
    target/accelforge/bin/python benches/accelforge/compare.py testdata/models/shakespeare-1m testdata/evals/shakespeare-train.txt \\
        --attar target/release/attar

Written for accelforge 1.0.467 (Python 3.12). Its machine here is a DRAM, an SRAM and a multiplier; the DRAM costs one unit of energy a byte and nothing
else costs any, so that the least energy is the least traffic. Sums take 32 bits in SRAM and are never spilled, operands take 8. It buffers nothing twice
and may stream single numbers. attar buffers streamed operands twice and stores outputs from a buffer of their own; `ours` is that with the tiles of
`generic-npu` (multiples of 32 in k and n, buffers at 64 bytes), `any tile` the same with tiles and buffers of any size.

The MLP and attention are those of a block with random weights, in the shape of SmolLM2-135M, as `attar compile` plans them; rescalings, gains of the norm
and the residual are not counted. Prints Markdown; seconds are those of CPU.
"""
import argparse
import contextlib
import copy
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path

import accelforge
from accelforge.mapper.FFM.main import map_workload_to_arch
from accelforge.model.main import evaluate_mapping

PRODUCTS = [(512, 576, 1536), (128, 576, 1536), (128, 1536, 576), (512, 2048, 2048)]
WIDTH, INNER, HEADS, KEY_HEADS, HEAD = 576, 1536, 9, 3, 64
# Rows and KiB of SRAM.
MLPS = [(rows, kib) for rows in (128, 512) for kib in (64, 256, 2048)]
ATTENTIONS = [(512, 32), (512, 64), (1024, 64), (1024, 128)]
ANY_TILE = ["engine.array=1x1x1", "align.tile=1x1x1", "align.bytes=1B"]

MACHINE = """
arch:
  nodes:
  - !Memory
    name: DRAM
    size: inf
    leak_power: 0
    area: 0
    tensors: {{keep: ~Intermediates, may_keep: {dram}}}
    actions:
    - {{name: read, energy: 1, throughput: inf, bits_per_action: 8}}
    - {{name: write, energy: 1, throughput: inf, bits_per_action: 8}}
  - !Memory
    name: SRAM
    size: {bits}
    leak_power: 0
    area: 0
    bits_per_value: {{{sums}: 32}}
    tensors: {{keep: All, no_refetch_from_above: Outputs}}
    actions:
    - {{name: read, energy: 0, throughput: inf}}
    - {{name: write, energy: 0, throughput: inf}}
  - !Compute
    name: MAC
    leak_power: 0
    area: 0
    actions:
    - {{name: compute, energy: 0, throughput: inf}}
"""
PRODUCT = """
workload:
  rank_sizes: {{M: {0}, K: {1}, N: {2}}}
  bits_per_value: {{All: 8}}
  einsums:
  - "C[m, n] = A[m, k] * W[k, n]"
"""
# Rows in 16 bits and their norm in 8; gate and up as one product of pairs (t); the result in 16 bits.
MLP = """
workload:
  rank_sizes: {{M: {0}, I: {1}, J: {1}, F: {2}, T: 2}}
  bits_per_value: {{X: 16, N: 8, W: 8, G: 32, H: 8, V: 8, Y: 16}}
  einsums:
  - "N[m, i] = X[m, i]"
  - "G[m, f, t] = N[m, i] * W[i, f, t]"
  - "H[m, f] = G[m, f, t]"
  - "Y[m, j] = H[m, f] * V[f, j]"
"""
# One head of keys with all of its queries. The softmax is an operation on single scores: it needs no maximum and no sum.
ATTENTION = """
workload:
  rank_sizes: {{M: {0}, I: {1}, J: {1}, F: {2}}}
  bits_per_value: {{Q: 8, K: 8, V: 8, S: 32, P: 8, O: 8}}
  einsums:
  - "S[m, f] = Q[m, i] * K[f, i]"
  - "P[m, f] = S[m, f]"
  - "O[m, j] = P[m, f] * V[f, j]"
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a checkpoint of a decoder, whose tokenizer and configuration are taken")
    parser.add_argument("text", help="text to calibrate on")
    parser.add_argument("--attar", default="target/release/attar", help="attar's binary [target/release/attar]")
    parser.add_argument("--part", action="append", choices=["products", "mlp", "attention"], help="may be repeated [all]")
    parser.add_argument("--divisors", action="store_true", help="MLP and attention: let accelforge try only tiles that divide the sizes, as is its default")
    parser.add_argument("--mapping", action="store_true", help="print accelforge's mappings, too")
    arguments = parser.parse_args()
    for name in ("attar", "model", "text"):
        setattr(arguments, name, os.path.abspath(getattr(arguments, name)))
    accelforge.set_n_parallel_jobs(1)
    parts = arguments.part or ["products", "mlp", "attention"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        if "products" in parts:
            products(arguments)
        if parts != ["products"]:
            block(arguments)
        if "mlp" in parts:
            mlp(arguments)
        if "attention" in parts:
            attention(arguments)


def head(first):
    print(f"| {first} | SRAM KiB | ours | any tile | accelforge | ours / it | any tile / it | bound | our s | its s |")
    print("|---|---|---|---|---|---|---|---|---|---|")


def row(name, kib, ours, its, bound):
    (mine, seconds), (any_tile, _), (theirs, took) = *ours, its
    cells = [name, kib, f"{mine:,}", f"{any_tile:,}", f"{theirs:,}", f"{mine / theirs:.3f}", f"{any_tile / theirs:.3f}", f"{bound:,}"]
    print("|", " | ".join(map(str, cells)), f"| {seconds:.2f} | {took:.1f} |", flush=True)


def products(arguments):
    head("product")
    for shape in PRODUCTS:
        for kib in (64, 256):
            command = [arguments.attar, "tile", ",".join(map(str, shape)), "--json", "--set", f"sram={kib}KiB"]
            found, ours = None, []
            for settings in ([], ANY_TILE):
                started = seconds()
                found = json.loads(run(command + [word for setting in settings for word in ("--set", setting)]))
                ours.append((found["tilings"][0]["dram_bytes"], seconds() - started))
            its = mapped(arguments, PRODUCT.format(*shape), kib, "All", "C", False)
            row(" x ".join(map(str, shape)), kib, ours, its, found["lower_bound"])
    print()


def mlp(arguments):
    head("MLP, rows")
    for rows, kib in MLPS:
        ours = [compiled(arguments, rows, kib, settings, mlp_bytes) for settings in ([], ANY_TILE)]
        its = mapped(arguments, MLP.format(rows, WIDTH, INNER), kib, "All - G", "Y", arguments.divisors)
        row(rows, kib, ours, its, 4 * rows * WIDTH + 3 * WIDTH * INNER)
    print()


def attention(arguments):
    head("attention, tokens")
    for tokens, kib in ATTENTIONS:
        ours = [compiled(arguments, tokens, kib, settings, attention_bytes) for settings in ([], ANY_TILE)]
        workload = ATTENTION.format(tokens * HEADS // KEY_HEADS, HEAD, tokens)
        theirs, took = mapped(arguments, workload, kib, "All - S", "O", arguments.divisors)
        row(tokens, kib, ours, (KEY_HEADS * theirs, took), 2 * tokens * HEAD * (HEADS + KEY_HEADS))
    print()


def mapped(arguments, workload, kib, dram, sums, divisors):
    """DRAM bytes of accelforge's best mapping, and the seconds that it took to find."""
    Path("spec.yaml").write_text(MACHINE.format(dram=dram, bits=kib << 13, sums=sums) + workload)
    spec = accelforge.Spec.from_yaml("spec.yaml")
    spec.mapper.metrics = accelforge.Metrics.ENERGY
    spec.mapper.explore_imperfect_temporal_loops = not divisors
    started = seconds()
    found = map_workload_to_arch(spec, eval_in_detail=False, print_progress=False)
    took = seconds() - started
    # What map_workload_to_arch does for details, without the picture that needs Graphviz.
    detailed = copy.deepcopy(spec)
    detailed.model.metrics = detailed.mapper.info_metrics
    detailed.mapping = found.data.iloc[0]["Total<SEP>mapping"](_for_model=True)
    result = evaluate_mapping(detailed, flattened_arches=found.flattened_arches, evaluated_specs=found.evaluated_specs)
    if arguments.mapping:
        bytes_moved = result.energy(per_component=True, per_tensor=True, per_action=True)
        print({" ".join(key[1:]): round(value) for key, value in bytes_moved.items() if key[0] == "DRAM" and value}, result.resource_usage())
        show(found.mapping().nodes, 1)
    return round(result.energy(per_component=True)["DRAM"]), took


def show(nodes, depth):
    for node in nodes:
        if hasattr(node, "nodes"):
            show(node.nodes, depth + 1)
        elif "reserves" not in node.compact_str():
            print("  " * depth + node.compact_str())


def block(arguments):
    """Writes a quantized block with random weights."""
    source, folder = Path(arguments.model), Path("random")
    folder.mkdir()
    config = json.loads((source / "config.json").read_text())
    config |= {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS}
    config |= {"head_dim": HEAD, "num_hidden_layers": 1, "max_position_embeddings": 2048}
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(source / "tokenizer.json", folder)
    layer, queries, states = "model.layers.0.", HEADS * HEAD, KEY_HEADS * HEAD
    shapes = {"model.embed_tokens": (config["vocab_size"], WIDTH), "model.norm": (WIDTH, 1)}
    shapes |= {layer + name: (WIDTH, 1) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {layer + f"self_attn.{name}_proj": size for name, size in zip("qkvo", [(queries, WIDTH), (states, WIDTH), (states, WIDTH), (WIDTH, queries)])}
    shapes |= {layer + f"mlp.{name}_proj": size for name, size in zip(("gate", "up", "down"), [(INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER)])}
    header, data, generator = {}, bytearray(), random.Random(1)
    for name, shape in shapes.items():
        count = shape[0] * shape[1]
        values = bytearray(b"\x80\x3f" * count)
        if shape[1] > 1:
            # In bfloat16: a random fraction, sign and lowest bit of the exponent.
            values[0::2] = generator.randbytes(count)
            values[1::2] = bytes(0x3C | byte & 0x80 for byte in generator.randbytes(count))
        dims = [size for size in shape if size > 1]
        header[name + ".weight"] = {"dtype": "BF16", "shape": dims, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    recipe = f'recipe = 1\nmodel = "{folder.absolute()}"\noutput = "{Path("static").absolute()}"\n'
    recipe += f'[data.calibration]\npath = "{arguments.text}"\nsamples = 8\nlength = 128\n'
    recipe += '[[step]]\nkind = "quantize"\nselect = ["**"]\ngrid = "int8"\ngroup = "row"\nscale_dtype = "f32"\npositive_scales = true\n'
    recipe += '[[step]]\nkind = "activations"\nmode = "static"\n[[export]]\ntarget = "checkpoint"\n'
    Path("block.toml").write_text(recipe)
    run([arguments.attar, "run", "block.toml", "--quiet"])


def compiled(arguments, tokens, kib, settings, count):
    """The DRAM bytes that `count` finds in the plan of the block with nothing kept between kernels, and the seconds of the whole command."""
    shutil.rmtree("plan", ignore_errors=True)
    command = [arguments.attar, "compile", "static/checkpoint", "--seq", str(tokens), "--chunk", str(tokens), "--decode", "false"]
    command += ["--keep", "false", "--prove", "0", "--quality", "0", "--calibration", arguments.text, "--samples", "4", "--length", "128"]
    command += [word for setting in [f"sram={kib}KiB", *settings] for word in ("--set", setting)]
    started = seconds()
    run([*command, "--out", "plan", "--quiet"])
    took = seconds() - started
    return count(json.loads(Path("plan/compiled/prefill.json").read_text())["calls"], tokens), took


def mlp_bytes(calls, tokens):
    calls = calls[[call["kind"] for call in calls].index("attention") + 2 :]
    residual = 2 * tokens * WIDTH
    moved = 0
    for call in calls:
        for tensor in call["tensors"]:
            if not tensor["name"].endswith((".columns", ".gains")):
                moved += tensor["read"] + tensor["written"]
    joined = [call for call in calls if call["kind"] == "mlp"]
    # The rows that are added at the end: the same tensor as the one that is normed. A joined kernel may have read it once for both.
    added = not joined or any(tensor["read"] >= 2 * residual for tensor in joined[0]["tensors"] if not tensor["name"].endswith(".weight"))
    return moved - residual if added else moved


def attention_bytes(calls, _tokens):
    (call,) = [call for call in calls if call["kind"] == "attention"]
    return call["read"] + call["written"]


def seconds():
    """CPU seconds of this process and of those it has run."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
