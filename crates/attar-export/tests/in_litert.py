"""Runs the models of LiteRT-LM bundles in LiteRT. stdin: a list of cases; stdout: what each gave, as JSON.

A case is {"model", "tokens", "prompt"}: so many tokens are read as the runtime reads a prompt, in parts that are filled up; all others one by one.
The answer has the logits of the latter. The header is read by LiteRT-LM's own code.
"""

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from cases import answer
from litert_lm_builder import litertlm_header_schema_py_generated as header

HIDDEN = np.float32(-0.7 * np.finfo(np.float32).max)


def model_of(path):
    with open(path, "rb") as file:
        data = file.read()
    root = header.LiteRTLMMetaData.GetRootAs(data[32 : int.from_bytes(data[24:32], "little")], 0)
    sections = root.SectionMetadata()
    objects = [sections.Objects(i) for i in range(sections.ObjectsLength())]
    (found,) = [o for o in objects if o.DataType() == header.AnySectionDataType.TFLiteModel]
    return data[found.BeginOffset() : found.EndOffset()]


def feed(runner, state, tokens, start):
    shapes = {name: detail["shape"] for name, detail in runner.get_input_details().items()}
    length, cache = shapes["mask"][2:]
    ids, positions, mask = np.zeros((1, length), np.int32), np.zeros(length, np.int32), np.full((1, 1, length, cache), HIDDEN)
    ids[0, : len(tokens)], positions[: len(tokens)] = tokens, np.arange(start, start + len(tokens))
    for row in range(len(tokens)):
        mask[0, 0, row, : start + row + 1] = 0
    if not state:
        state.update({name: np.zeros(shape, np.float32) for name, shape in shapes.items() if name.startswith("kv_cache_")})
    given = {"tokens": ids, "input_pos": positions, "mask": mask}
    out = runner(**{name: value for name, value in given.items() if name in shapes}, **state)
    state.update({name: out[name] for name in state})
    return out


def run(case):
    interpreter = Interpreter(model_content=model_of(case["model"]), num_threads=1)
    signatures = {key: interpreter.get_signature_runner(key) for key in interpreter.get_signature_list()}
    lengths = sorted(int(key.split("_")[1]) for key in signatures if key != "decode")
    state, tokens, at = {}, case["tokens"], 0
    while at < case["prompt"]:
        left = case["prompt"] - at
        length = next((length for length in lengths if length >= left), lengths[-1])
        part = tokens[at : at + min(left, length)]
        feed(signatures[f"prefill_{length}"], state, part, at)
        at += len(part)
    logits = []
    for at in range(case["prompt"], len(tokens)):
        logits.append(feed(signatures["decode"], state, tokens[at : at + 1], at)["logits"][0, 0].tolist())
    return {"logits": logits}


answer(run)
