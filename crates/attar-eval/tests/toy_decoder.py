"""Writes a decoder of one attention layer as ONNX with external data, and its logits by ONNX Runtime's own Python.

    python toy_decoder.py FOLDER

FOLDER gets `model.onnx`, `model.onnx.data`, `genai_config.json`, `tokens.u32` and `logits.f32` ([tokens, vocabulary]).
Arrays: ids, positions, mask: [batch, seq]; keys and values: [batch, heads, past + seq, head].
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, HEADS, HEAD, TOKENS = 50, 2, 8, 24
WIDTH = HEADS * HEAD

random = np.random.default_rng(7)


def weight(name, *shape):
    return numpy_helper.from_array(random.normal(0, 0.6, shape).astype(np.float32), name)


def integers(name, *values):
    return numpy_helper.from_array(np.array(values, np.int64), name)


weights = [
    weight("embedding", VOCABULARY, WIDTH),
    *(weight(name, WIDTH, WIDTH) for name in ("query", "key", "value", "output")),
    integers("split", 0, 0, HEADS, HEAD),
    integers("merge", 0, 0, WIDTH),
    integers("one", 1),
    integers("last_axis", -1),
    numpy_helper.from_array(np.array(0, np.int64), "zero"),
    numpy_helper.from_array(np.array(1, np.int64), "step"),
    numpy_helper.from_array(np.float32(HEAD**-0.5), "scale"),
    numpy_helper.from_array(np.float32(-1e9), "hidden"),
    numpy_helper.from_array(np.float32(0), "seen"),
]


def heads(name):
    return [
        helper.make_node("MatMul", ["x", name], [f"{name}_flat"]),
        helper.make_node("Reshape", [f"{name}_flat", "split"], [f"{name}_split"]),
        helper.make_node("Transpose", [f"{name}_split"], [f"{name}_heads"], perm=[0, 2, 1, 3]),
    ]


nodes = [
    helper.make_node("Gather", ["embedding", "input_ids"], ["x"]),
    *heads("query"),
    *heads("key"),
    *heads("value"),
    helper.make_node("Concat", ["past_key_values.0.key", "key_heads"], ["present.0.key"], axis=2),
    helper.make_node("Concat", ["past_key_values.0.value", "value_heads"], ["present.0.value"], axis=2),
    helper.make_node("Transpose", ["present.0.key"], ["keys"], perm=[0, 1, 3, 2]),
    helper.make_node("MatMul", ["query_heads", "keys"], ["products"]),
    helper.make_node("Mul", ["products", "scale"], ["scores"]),
    helper.make_node("Shape", ["attention_mask"], ["length"], start=1),
    helper.make_node("Squeeze", ["length"], ["all"]),
    helper.make_node("Range", ["zero", "all", "step"], ["key_positions"]),
    helper.make_node("Unsqueeze", ["position_ids", "last_axis"], ["query_positions"]),
    helper.make_node("LessOrEqual", ["key_positions", "query_positions"], ["visible_flat"]),
    helper.make_node("Unsqueeze", ["visible_flat", "one"], ["visible"]),
    helper.make_node("Where", ["visible", "seen", "hidden"], ["bias"]),
    helper.make_node("Add", ["scores", "bias"], ["masked"]),
    helper.make_node("Softmax", ["masked"], ["shares"], axis=-1),
    helper.make_node("MatMul", ["shares", "present.0.value"], ["mixed"]),
    helper.make_node("Transpose", ["mixed"], ["mixed_split"], perm=[0, 2, 1, 3]),
    helper.make_node("Reshape", ["mixed_split", "merge"], ["mixed_flat"]),
    helper.make_node("MatMul", ["mixed_flat", "output"], ["attended"]),
    helper.make_node("Add", ["x", "attended"], ["y"]),
    helper.make_node("Transpose", ["embedding"], ["head"], perm=[1, 0]),
    helper.make_node("MatMul", ["y", "head"], ["logits"]),
]

cache = lambda name, length: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", HEADS, length, HEAD])
ids = lambda name, length: helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", length])
graph = helper.make_graph(
    nodes,
    "toy",
    [ids("input_ids", "seq"), ids("attention_mask", "all"), ids("position_ids", "seq")]
    + [cache(f"past_key_values.0.{part}", "past") for part in ("key", "value")],
    [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "seq", VOCABULARY])]
    + [cache(f"present.0.{part}", "all") for part in ("key", "value")],
    weights,
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
folder = Path(sys.argv[1])
path = folder / "model.onnx"
onnx.save_model(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=256)
onnx.checker.check_model(str(path))

tokens = random.integers(0, VOCABULARY, TOKENS)
session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
nothing = np.zeros((1, HEADS, 0, HEAD), np.float32)
logits = session.run(
    ["logits"],
    {
        "input_ids": tokens[None],
        "attention_mask": np.ones((1, TOKENS), np.int64),
        "position_ids": np.arange(TOKENS)[None],
        "past_key_values.0.key": nothing,
        "past_key_values.0.value": nothing,
    },
)[0]
tokens.astype(np.uint32).tofile(folder / "tokens.u32")
logits.astype(np.float32).tofile(folder / "logits.f32")

names = {name: name for name in ("input_ids", "attention_mask", "position_ids")}
decoder = {
    "session_options": {"log_id": "toy", "provider_options": []},
    "filename": "model.onnx",
    "head_size": HEAD,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "num_hidden_layers": 1,
    "inputs": {**names, "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
    "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
}
model = {"type": "decoder", "context_length": 64, "vocab_size": VOCABULARY, "decoder": decoder}
search = {"max_length": 64, "past_present_share_buffer": False}
(folder / "genai_config.json").write_text(json.dumps({"model": model, "search": search}))
