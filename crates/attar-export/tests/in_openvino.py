"""Runs exported models in OpenVINO. stdin: a list of cases as for in_onnxruntime.py; stdout: what each gave, as JSON."""

import numpy as np
import openvino
from cases import answer

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


def run(core, case):
    model = core.compile_model(core.read_model(case["model"]), "CPU", {**EXACT, "INFERENCE_NUM_THREADS": "1"})
    request = model.create_infer_request()
    past = {}
    for port in model.inputs:
        name = port.get_any_name()
        if name.startswith("past_key_values."):
            heads, head = (port.partial_shape[axis].get_length() for axis in (1, 3))
            past[name] = np.zeros([len(case["calls"][0]["input_ids"]), heads, 0, head], np.float32)
    names = [port.get_any_name() for port in model.inputs]
    if "beam_idx" in names:
        past["beam_idx"] = np.arange(len(case["calls"][0]["input_ids"]), dtype=np.int32)
    outputs = [port.get_any_name() for port in model.outputs]
    logits = []
    for call in case["calls"]:
        feed = {name: np.array(value, np.int64) for name, value in call.items() if name in names}
        request.infer({**feed, **past})
        presents = {name: name.replace("past_key_values", "present") for name in past if name.startswith("past_key_values.")}
        past.update({name: request.get_tensor(present).data.copy() for name, present in presents.items()})
        logits.append(request.get_tensor("logits" if "logits" in outputs else outputs[0]).data.tolist())
    return {"logits": logits, "overflowing": [], "inputs": names, "outputs": outputs}


core = openvino.Core()
answer(lambda case: run(core, case))
