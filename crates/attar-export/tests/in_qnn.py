"""Runs graphs of target `qnn` on Qualcomm's HTP library for x86-64, with nothing left to the CPU. stdin: a list of cases; stdout: what each gave, as JSON.

A case is {"folder", "calls"}: each call is {"tokens", "padding"}, run by the graph of that size over the cache of those before. The answer has the
logits of each call's tokens, or the first output of an encoder for each call's text. With "soc" it also has what the provider's context binary of `decode.onnx` was made for.
"""

import json
import os
import re
import sys
import tempfile

# Whatever the provider prints must not end up among the answers.
sys.stdout = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import onnxruntime_qnn  # noqa: E402
from cases import answer  # noqa: E402

NAME = "QNNExecutionProvider"
onnxruntime.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())
DEVICES = [device for device in onnxruntime.get_ep_devices() if device.ep_name == NAME]


def options(config):
    made = onnxruntime.SessionOptions()
    made.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    made.add_provider_for_devices(DEVICES[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **config["provider_options"]})
    return made


def embedded(folder, config):
    """What the file that a phone would load says of itself."""
    with tempfile.TemporaryDirectory() as out:
        made = options(config)
        made.add_session_config_entry("ep.context_enable", "1")
        made.add_session_config_entry("ep.context_file_path", f"{out}/context.onnx")
        made.add_session_config_entry("ep.context_embed_mode", "0")
        onnxruntime.InferenceSession(f"{folder}/decode.onnx", made)
        (binary,) = [name for name in os.listdir(out) if name.endswith(".bin")]
        with open(f"{out}/{binary}", "rb") as file:
            data = file.read()
    return {key: re.search(rb"%s=(\w+)" % key.encode(), data).group(1).decode() for key in ("soc_type", "arch", "vtcm_size")}


def text(folder, config, tokens):
    """What an encoder returns for a text, which is padded behind."""
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options(config))
    size = config["tokens"]
    fill = [0] * (size - len(tokens))
    numbers = {"input_ids": tokens + fill, "position_ids": range(size), "attention_mask": [1] * len(tokens) + fill, "token_type_ids": [0] * size}
    given = {port.name: np.array(list(numbers[port.name]), np.int64)[None] for port in session.get_inputs()}
    return session.run(None, given)[0].tolist()


def run(case):
    folder = case["folder"]
    with open(f"{folder}/qnn.json", encoding="utf-8") as file:
        config = json.load(file)
    if "tokens" in config:
        return {"outputs": [text(folder, config, call["tokens"]) for call in case["calls"]]}
    sessions = {size: onnxruntime.InferenceSession(f"{folder}/{name}.onnx", options(config)) for name, size in (("prefill", config["prefill"]), ("decode", 1))}
    shapes = {port.name: port.shape for port in sessions[1].get_inputs()}
    cache = {name: np.zeros((*shape[:2], config["context"], shape[3]), np.float32) for name, shape in shapes.items() if "past" in name}
    used, length, logits = np.zeros(config["context"]), 0, []
    for call in case["calls"]:
        tokens, padding = call["tokens"], call["padding"]
        size = len(tokens) + padding
        used = np.concatenate([used[size:], np.zeros(padding), np.ones(len(tokens))])
        positions = np.concatenate([np.zeros(padding), np.arange(length, length + len(tokens))])
        numbers = {"input_ids": [0] * padding + tokens, "position_ids": positions, "attention_mask": used}
        given = {name: np.array(values, np.int64)[None] for name, values in numbers.items() if name in shapes}
        given.update({name: np.ascontiguousarray(values[:, :, size:]) for name, values in cache.items()})
        names = [port.name for port in sessions[size].get_outputs()]
        out = dict(zip(names, sessions[size].run(None, given)))
        cache = {name: out[name.replace("past_key_values", "present")] for name in cache}
        logits.append(out["logits"][0, padding:].tolist())
        length += len(tokens)
    return {"logits": logits, **({"embedded": embedded(folder, config)} if "soc" in case else {})}


def apart(case):
    """In a process of its own: the library may abort."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            result = run(case)
        except Exception as error:
            result = {"error": str(error)}
        with os.fdopen(writer, "w") as to:
            json.dump(result, to)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"error": f"the process ended with {status}"}


answer(apart)
