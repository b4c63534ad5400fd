"""Measures decoders in OpenVINO on one thread: CPU-milliseconds per token, load, peak memory, nodes run.

    python in_openvino.py FOLDER [FOLDER...] [--rounds N] [--exact]

A folder has an `openvino_model.xml` that keeps its past as state, with inputs as attar and optimum-intel write them. Each round measures
every folder in a process of its own, in turn, so that noise of the machine meets all of them; the medians are printed, and ratios to the
first folder. The engine is as it comes, apart from its one thread; `--exact` has it compute in f32, with the past in f32 and activations not
rounded. Load has no cache of compiled models.

The peer's files: `pip install optimum-intel==2.2.0 optimum==2.3.0 nncf==3.4.0 openvino==2026.4.1 openvino-tokenizers==2026.4.1.0
transformers==5.5.4 torch==2.15.0`, then `optimum-cli export openvino -m CHECKPOINT --task text-generation-with-past --weight-format int4
--group-size 64 --sym --ratio 1.0 FOLDER`. Its own choice of int4, which has zero points, is the same command with `--group-size-fallback
adjust` in place of `--group-size 64 --sym --ratio 1.0`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def cpu_ms(start):
    return (time.process_time() - start) * 1000


def peak_mb():
    """What the process held at most, which `getrusage` would mix with what its parent held."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) / 1024


def measure(folder, exact):
    import numpy as np
    import openvino

    path = os.path.join(folder, "openvino_model.xml")
    options = {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", **(EXACT if exact else {})}
    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")
    start = time.process_time()
    model = core.read_model(path)
    read = cpu_ms(start)
    compiled = core.compile_model(model, "CPU", options)
    load = cpu_ms(start)
    del model
    request = compiled.create_infer_request()
    inputs = {port.get_any_name() for port in compiled.inputs}
    random = np.random.default_rng(0)
    tokens = random.integers(5, 40000, 512).tolist()

    def step(ids, before):
        if before == 0:
            request.reset_state()
        total = before + len(ids)
        numbers = {"input_ids": [ids], "attention_mask": [[1] * total], "position_ids": [list(range(before, total))]}
        feed = {name: np.array(values, np.int64) for name, values in numbers.items() if name in inputs}
        if "beam_idx" in inputs:
            feed["beam_idx"] = np.zeros(1, np.int32)
        start = time.process_time()
        request.infer(feed, share_inputs=True, share_outputs=True)
        return cpu_ms(start)

    first = step(tokens, 0)
    peak = peak_mb()
    prompt = step(tokens, 0) / len(tokens)
    decode = {}
    for context in (128, 480):
        step(tokens[:context], 0)
        decode[context] = statistics.median(step([token], context + at) for at, token in enumerate(tokens[:24]))
    return {
        "MB": sum(os.path.getsize(os.path.join(folder, f"openvino_model.{end}")) for end in ("xml", "bin")) / 1e6,
        "load ms": load,
        "  of it, read ms": read,
        "first prompt ms": first,
        "prompt 512 ms/token": prompt,
        "decode at 128 ms": decode[128],
        "decode at 480 ms": decode[480],
        "peak MB": peak,
        "nodes run": nodes_run(path, options, first_feed(np, inputs)),
    }


def first_feed(np, inputs):
    feed = {name: np.array([[at]], np.int64) for name, at in (("input_ids", 5), ("attention_mask", 1), ("position_ids", 0)) if name in inputs}
    return {**feed, **({"beam_idx": np.zeros(1, np.int32)} if "beam_idx" in inputs else {})}


def nodes_run(path, options, feed):
    """Kernels that one call runs, as OpenVINO's counters have them."""
    import openvino

    request = openvino.Core().compile_model(path, "CPU", {**options, "PERF_COUNT": "YES"}).create_infer_request()
    request.infer(feed)
    return sum(node.status == node.Status.EXECUTED for node in request.profiling_info)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--exact", action="store_true", help="compute in f32, nothing rounded on the way")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.folders[0], arguments.exact)))
        return
    found = {folder: [] for folder in arguments.folders}
    for _ in range(arguments.rounds):
        for folder in arguments.folders:
            command = [sys.executable, __file__, "--alone", folder, *(["--exact"] if arguments.exact else [])]
            found[folder].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    medians = {folder: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for folder, runs in found.items()}
    first = medians[arguments.folders[0]]
    print(f"python {' '.join(sys.argv)}, medians of {arguments.rounds}")
    for folder, values in medians.items():
        print(folder)
        for key, value in values.items():
            print(f"  {key:22}{value:10.1f}{value / first[key]:8.2f}")


main()
