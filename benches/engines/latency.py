"""Times of an answer as an engine's own interface gives them, to hold against `attar bench` on the same artifact.

    target/engines/onnxruntime/bin/python latency.py onnxruntime FOLDER
    target/engines/openvino/bin/python latency.py openvino-genai FOLDER

Both take prompts of `--prompt` tokens and write `--answer` tokens greedily, `--requests` times, on `--threads` threads; `attar bench FOLDER
--runner onnxruntime|openvino --prompt-tokens P --answer-tokens A --requests R --engine-threads T --json` is the other side. The first loops as
onnxruntime_perf_test does, keys and values in a buffer that past and present share; the second reads OpenVINO GenAI's `perf_metrics`.
Prints milliseconds: the median time to the first token, and the median between tokens (GenAI: medians over requests of its means).
"""

import argparse
import json
import os
import statistics
import time


def onnxruntime(arguments, prompts):
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(os.path.join(arguments.folder, "model.onnx"), options, providers=["CPUExecutionProvider"])
    inputs = {port.name: port for port in session.get_inputs()}
    room = arguments.prompt + arguments.answer
    pasts = {name: port.shape for name, port in inputs.items() if name.startswith("past_key_values.")}
    shape = lambda known: [1, known[1], room, known[3]]
    shared = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape(known), np.float32)) for name, known in pasts.items()}

    def step(ids, before):
        total = before + len(ids)
        numbers = {"input_ids": [ids], "attention_mask": [[1] * total], "position_ids": [list(range(before, total))]}
        binding = session.io_binding()
        for name, values in numbers.items():
            if name in inputs:
                binding.bind_cpu_input(name, np.array(values, np.int64))
        for name, value in shared.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        return int(binding.get_outputs()[0].numpy()[0, -1].argmax())

    for prompt in prompts:
        first, between, start = None, [], time.perf_counter()
        token = step(prompt, 0)
        first = time.perf_counter() - start
        for at in range(arguments.answer - 1):
            start = time.perf_counter()
            token = step([token], len(prompt) + at)
            between.append(time.perf_counter() - start)
        yield first, between


def openvino_genai(arguments, prompts):
    import numpy as np
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(arguments.folder, "CPU", INFERENCE_NUM_THREADS=arguments.threads, INFERENCE_PRECISION_HINT="f32")
    config = genai.GenerationConfig(max_new_tokens=arguments.answer, ignore_eos=True, do_sample=False)
    for prompt in prompts:
        ids = ov.Tensor(np.array([prompt], np.int64))
        inputs = genai.TokenizedInputs(ids, ov.Tensor(np.ones_like(ids.data)))
        metrics = pipeline.generate(inputs, config).perf_metrics
        yield metrics.get_ttft().mean / 1e3, [metrics.get_tpot().mean / 1e3]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("engine", choices=["onnxruntime", "openvino-genai"])
    parser.add_argument("folder")
    for name, default in (("prompt", 128), ("answer", 32), ("requests", 10), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    # Two requests to warm up.
    prompts = [[(at * 61 + n * 7919) % 40000 + 5 for n in range(arguments.prompt)] for at in range(arguments.requests + 2)]
    run = onnxruntime if arguments.engine == "onnxruntime" else openvino_genai
    found = list(run(arguments, prompts))[2:]
    between = [one for _, many in found for one in many]
    print(json.dumps({"ttft ms": 1e3 * statistics.median(f for f, _ in found), "tpot ms": 1e3 * statistics.median(between)}))


if __name__ == "__main__":
    main()
