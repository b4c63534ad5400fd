"""Measures decoders in ONNX Runtime on one thread: CPU-milliseconds per token, load, peak memory, nodes run.

    python in_onnxruntime.py FOLDER [FOLDER...] [--rounds N]

A folder has a `model.onnx` with inputs as attar and ONNX Runtime GenAI's builder write them. Each round measures every folder in a process
of its own, in turn, so that noise of the machine meets all of them; the medians are printed, and ratios to the first folder. Past and present
share a buffer where the model has GroupQueryAttention.

The peer's file: `pip install onnxruntime-genai==0.18.0 onnx==1.23.2 onnx_ir==1.1.0 torch transformers`, then
`python -m onnxruntime_genai.models.builder -i CHECKPOINT -o FOLDER -p int4 -e cpu`.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

ROOM = 1024


def cpu_ms(start):
    return (time.process_time() - start) * 1000


def measure(folder):
    import numpy as np
    import onnx
    import onnxruntime

    path = os.path.join(folder, "model.onnx")
    graph = onnx.load(path, load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    config = os.path.join(folder, "genai_config.json")
    if os.path.exists(config):
        with open(config, encoding="utf-8") as file:
            decoder = json.load(file)["model"]["decoder"]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    start = time.process_time()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load = cpu_ms(start)
    inputs = {port.name: port for port in session.get_inputs()}
    pasts = {name: port for name, port in inputs.items() if name.startswith("past_key_values.")}
    known = next(iter(pasts.values())).shape
    heads = known[1] if isinstance(known[1], int) else decoder["num_key_value_heads"]
    width = known[3] if isinstance(known[3], int) else decoder["head_size"]
    shape = lambda length: (1, heads, length, width)
    shared = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape(ROOM), np.float32)) for name in pasts}
    random = np.random.default_rng(0)
    tokens = random.integers(5, 40000, 512).tolist()
    past = {name: np.zeros(shape(0), np.float32) for name in pasts}

    def step(ids, before):
        nonlocal past
        total = before + len(ids)
        numbers = {"input_ids": [ids], "attention_mask": [[1] * total], "position_ids": [list(range(before, total))]}
        feed = {name: np.array(values, np.int64) for name, values in numbers.items() if name in inputs}
        start = time.process_time()
        if attentions:
            binding = session.io_binding()
            for name, values in feed.items():
                binding.bind_cpu_input(name, values)
            for name, value in shared.items():
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
            binding.bind_output("logits")
            session.run_with_iobinding(binding)
        else:
            if before == 0:
                past = {name: np.zeros(shape(0), np.float32) for name in pasts}
            outputs = dict(zip([port.name for port in session.get_outputs()], session.run(None, {**feed, **past})))
            kept = {name: outputs[name.replace("past_key_values", "present")] for name in past}
            past = kept if len(ids) > 1 else past
        return cpu_ms(start)

    prompt = step(tokens, 0) / len(tokens)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    decode = {}
    for context in (128, 480):
        step(tokens[:context], 0)
        decode[context] = statistics.median(step([token], context) for token in tokens[:24])
    return {
        "MB": os.path.getsize(path) / 1e6 + os.path.getsize(path + ".data") / 1e6,
        "load ms": load,
        "prompt 512 ms/token": prompt,
        "decode at 128 ms": decode[128],
        "decode at 480 ms": decode[480],
        "peak MB": peak,
        "nodes run": nodes_run(path, step_feed(tokens, inputs, pasts, shape)),
    }


def step_feed(tokens, inputs, pasts, shape):
    import numpy as np

    numbers = {"input_ids": [tokens[:4]], "attention_mask": [[1] * 4], "position_ids": [list(range(4))]}
    feed = {name: np.array(values, np.int64) for name, values in numbers.items() if name in inputs}
    return {**feed, **{name: np.zeros(shape(0), np.float32) for name in pasts}}


def nodes_run(path, feed):
    """Kernels that one call runs, as ONNX Runtime's profile has them."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        options.enable_profiling = True
        options.profile_file_prefix = os.path.join(folder, "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        session.run(None, feed)
        with open(session.end_profiling(), encoding="utf-8") as file:
            return sum(event["name"].endswith("_kernel_time") for event in json.load(file))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(arguments.folders[0])))
        return
    found = {folder: [] for folder in arguments.folders}
    for _ in range(arguments.rounds):
        for folder in arguments.folders:
            command = [sys.executable, __file__, "--alone", folder]
            found[folder].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    medians = {folder: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for folder, runs in found.items()}
    first = medians[arguments.folders[0]]
    print(f"python {' '.join(sys.argv)}, medians of {arguments.rounds}")
    for folder, values in medians.items():
        print(folder)
        for key, value in values.items():
            print(f"  {key:22}{value:10.1f}{value / first[key]:8.2f}")


main()
