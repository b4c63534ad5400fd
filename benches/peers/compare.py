#!/usr/bin/env python3
"""One table: what peers and attar lose on one model and one text, and what that took.

Peers come as the folders that their scripts wrote, and are measured here. attar comes as recipes, which are run here by its
own binary and measured by its own reference run: the recipe must hold an `[[eval]]` called `test` of the same text, window
and tokens. An `rtn` recipe beside the `rtn.py` peer shows that both measure the same thing.
"""
import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time

import protocol

HEAD = ["who", "bits", "ratio", "KL", "top-1 %", "windows", "CPU-s", "peak MB"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="the checkpoint, a Hugging Face folder")
    parser.add_argument("--test", required=True, help="the text to measure on")
    parser.add_argument("--length", type=int, default=512, help="tokens a window [512]")
    parser.add_argument("--tokens", type=int, default=10240, help="tokens from the text's start [10240]")
    parser.add_argument("--peer", action="append", default=[], metavar="DIR", help="a folder that a peer wrote; may be repeated")
    parser.add_argument("--attar", action="append", default=[], metavar="RECIPE", help="a recipe; may be repeated")
    parser.add_argument("--binary", default="attar", help="the attar to run [attar]")
    parser.add_argument("--json", help="write the numbers there, too")
    arguments = parser.parse_args()
    rows = [measure_peer(folder, arguments) for folder in arguments.peer]
    rows += [run_attar(recipe, arguments) for recipe in arguments.attar]
    print(table(rows))
    if arguments.json:
        protocol.write(arguments.json, rows)


def measure_peer(folder, arguments):
    from safetensors.torch import load_file

    about = protocol.read(os.path.join(folder, "peer.json"))
    base = protocol.load(arguments.model)
    subject = copy.deepcopy(base)
    weights = load_file(os.path.join(folder, "weights.safetensors"))
    wanted = {name for name in base.state_dict() if protocol.is_block_matrix(name)}
    if set(weights) != wanted:
        raise SystemExit(f"`{folder}` does not hold the block matrices of `{arguments.model}`: {sorted(set(weights) ^ wanted)[:3]}")
    subject.load_state_dict(weights, strict=False)
    ids = protocol.tokens(arguments.model, arguments.test, arguments.tokens)
    measured = protocol.compare(base, subject, protocol.windows(ids, arguments.length))
    return {"who": about["peer"], **{key: about[key] for key in ("bits", "cpu_s", "peak_mb", "settings")}, **measured}


def run_attar(recipe, arguments):
    """Runs a recipe without its evals for the bill, then with them for the numbers."""
    with tempfile.TemporaryDirectory() as folder:
        with open(recipe, encoding="utf-8") as file:
            text = file.read()
        billed = bill(arguments.binary, without_evals(text), folder, "billed")
        report = bill(arguments.binary, text, folder, "measured")
        measured = next((e["outcome"]["measured"] for e in report["evals"] if e["eval"] == "test"), None)
        if measured is None:
            raise SystemExit(f"`{recipe}` has no `[[eval]]` with `name = \"test\"`")
    against = measured["against_base"]
    return {
        "who": f"attar: {os.path.splitext(os.path.basename(recipe))[0]}",
        "bits": report["variants"][0]["quantized_bits_per_weight"],
        "cpu_s": billed["cpu_s"],
        "peak_mb": billed["peak_mb"],
        "windows": measured["windows"],
        "ratio": against["perplexity_ratio"]["value"],
        "ratio_se": against["perplexity_ratio"]["standard_error"],
        "kl": against["kl_mean"]["value"],
        "kl_se": against["kl_mean"]["standard_error"],
        "top1": against["top1_agreement"]["value"],
    }


def without_evals(text):
    """The recipe up to its first eval: what the bill is for."""
    return text.split("[[eval]]")[0]


def bill(binary, text, folder, name):
    """Runs a recipe in a process of its own; its report, CPU-seconds and peak memory."""
    path, out = os.path.join(folder, f"{name}.toml"), os.path.join(folder, name)
    lines = [line for line in text.splitlines() if not line.startswith("output")]
    lines.insert(1, f"output = {json.dumps(out)}")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    process = subprocess.Popen([binary, "run", path, "--quiet"], stdout=sys.stderr)
    # What the system tells of a child that ended includes this process's own memory before it became attar.
    peak_mb = float("nan")
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        peak_mb = high_water_mb(process.pid, peak_mb)
        time.sleep(0.05)
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"`{binary} run {path}` failed")
    report = protocol.read(os.path.join(out, "report.json"))
    return {**report, "cpu_s": used.ru_utime + used.ru_stime, "peak_mb": peak_mb}


def high_water_mb(pid, before):
    """The most memory that a process has had so far; `before` where the system does not say."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith("VmHWM")]
    except OSError:
        lines = []
    return int(lines[0].split()[1]) * 1024 / 1e6 if lines else before


def table(rows):
    cells = [HEAD] + [
        [
            row["who"],
            f"{row['bits']:.3f}",
            f"{row['ratio']:.4f} ± {row['ratio_se']:.4f}",
            f"{row['kl']:.4f} ± {row['kl_se']:.4f}",
            f"{100 * row['top1']:.1f}",
            str(row["windows"]),
            f"{row['cpu_s']:.0f}",
            f"{row['peak_mb']:.0f}",
        ]
        for row in rows
    ]
    lines = ["| " + " | ".join(line) + " |" for line in cells]
    lines.insert(1, "|" + "---|" * len(HEAD))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
