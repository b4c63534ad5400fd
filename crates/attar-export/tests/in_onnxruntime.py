"""Runs exported models in onnxruntime. stdin: a list of cases; stdout: what each gave, as JSON.

A case is {"model", "calls": [{"input_ids", "attention_mask", "position_ids", "token_type_ids"}], "check": whether the onnx
checker is asked}. Calls continue each other: the present of one is the past of the next. Of a model without logits the first
output is given.
"""

import collections
import os

import numpy as np
import onnx
import onnxruntime
from cases import answer


def session(path, optimized):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.optimized_model_filepath = optimized
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.onnx.data")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


PRODUCTS = {"MatMulIntegerToFloat": 1, "MatMulInteger": 1, "DynamicQuantizeMatMul": 1, "QLinearMatMul": 3, "QGemm": 3}


def overflowing(model, folder):
    """Products of integers whose second operand makes 16-bit sums of two products saturate on AVX2 without VNNI."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        operand = tensors.get(node.input[PRODUCTS[node.op_type]]) if node.op_type in PRODUCTS else None
        if node.op_type in PRODUCTS and operand is None:
            found.append(f"{node.name}: activations by activations")
        elif operand is not None and operand.data_type == onnx.TensorProto.INT8:
            codes = onnx.numpy_helper.to_array(operand, folder).astype(np.int64)
            if 2 * 255 * max(codes.max(), -codes.min()) > 32767:
                found.append(f"{node.name}: {operand.name}")
    return found


def run(case):
    path = case["model"]
    if case["check"]:
        onnx.checker.check_model(path, full_check=True)
    optimized = path.replace("model.onnx", "optimized.onnx")
    engine = session(path, optimized)
    model = onnx.load(optimized, load_external_data=False)
    ops = collections.Counter(node.op_type for node in model.graph.node)
    names = [i.name for i in engine.get_inputs()]
    past = {}
    for port in engine.get_inputs():
        if port.name.startswith("past_key_values."):
            shape = [len(case["calls"][0]["input_ids"]), port.shape[1], 0, port.shape[3]]
            past[port.name] = np.zeros(shape, np.float32)
    logits = []
    for call in case["calls"]:
        feed = {name: np.array(value, np.int64) for name, value in call.items() if name in names}
        outputs = engine.run(None, {**feed, **past})
        by_name = dict(zip([o.name for o in engine.get_outputs()], outputs))
        past = {name: by_name[name.replace("past_key_values", "present")] for name in past}
        logits.append(by_name.get("logits", outputs[0]).tolist())
    saturating = overflowing(model, os.path.dirname(optimized))
    return {"logits": logits, "ops": ops, "overflowing": saturating, "inputs": names, "outputs": [o.name for o in engine.get_outputs()]}


answer(run)
