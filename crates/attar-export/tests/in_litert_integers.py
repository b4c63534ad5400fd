"""Runs integer-only models in LiteRT. stdin: a list of cases; stdout: what each gave, as JSON.

A case is {"folder", "tokens"}. Tokens are decoded one by one, an encoder reads them at once. The answer has the codes of all tensors in each call, by their
names. Of a decoder, parts of prompts are read, too: they must leave the same keys and values.
"""

import json
import os

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from cases import answer

LEAST = -32768


class Model:
    def __init__(self, folder, file):
        self.interpreter = Interpreter(os.path.join(folder, file), num_threads=1, experimental_preserve_all_tensors=True)
        self.run = self.interpreter.get_signature_runner()
        self.inputs, self.outputs = self.run.get_input_details(), self.run.get_output_details()
        path = os.path.join(folder, "tables.json")
        self.tables = []
        if os.path.exists(path):
            with open(path) as described:
                self.tables = [t for t in json.load(described)["tables"] if t["input"] in self.inputs]
            self.rows = {
                t["input"]: np.fromfile(os.path.join(folder, t["file"]), "<i2").reshape(t["rows"], t["columns"]) for t in self.tables
            }

    def __call__(self, indices, given):
        for table in self.tables:
            name = table["input"]
            assert np.isclose(self.inputs[name]["quantization"][0], table["scale"], rtol=1e-6)
            given[name] = self.rows[name][indices[table["index"]]].reshape(self.inputs[name]["shape"])
        given.update({name: value for name, value in indices.items() if name in self.inputs})
        given = {name: np.asarray(value, self.inputs[name]["dtype"]).reshape(self.inputs[name]["shape"]) for name, value in given.items()}
        return self.run(**given)

    def codes(self):
        """Of every tensor with a grid that was computed or given."""
        details = [d for d in self.interpreter.get_tensor_details() if d["quantization"][0] and d["dtype"] in (np.int8, np.int16)]
        return {d["name"]: self.interpreter.get_tensor(d["index"]).reshape(-1).tolist() for d in details}

    def window(self, name):
        return int(name.split("_")[1]) if "_" in name else 1 << 30


def decode(folder, tokens):
    part, one = Model(folder, "prefill.tflite"), Model(folder, "decode.tflite")
    caches = {name: d for name, d in one.inputs.items() if name.startswith("kv_cache")}
    size = next(int(d["shape"][2]) for d in caches.values())

    def empty():
        return {name: np.full(d["shape"], d["quantization"][1], d["dtype"]) for name, d in caches.items()}

    def feed(model, past, at, count):
        given = dict(past)
        for name in model.inputs:
            if name.startswith("mask"):
                mask = np.full((count, size + count), LEAST)
                for row in range(count):
                    for key in range(size + count):
                        place = key if key < size else at + key - size
                        real = key < at or key >= size
                        if real and place <= at + row and at + row - place < model.window(name):
                            mask[row, key] = 0
                given[name] = mask
        out = model({"tokens": np.array(tokens[at : at + count]), "input_pos": np.arange(at, at + count)}, given)
        for name in past:
            past[name][:, :, at : at + count] = out[name.replace("cache", "slice")]

    found, past = {}, empty()
    for at in range(len(tokens)):
        feed(one, past, at, 1)
        for name, codes in one.codes().items():
            found.setdefault(name, []).append(codes)
    length = next(int(d["shape"][2]) for name, d in part.inputs.items() if name.startswith("mask"))
    parts = empty()
    for at in range(0, len(tokens) - length + 1, length):
        feed(part, parts, at, length)
        for name in past:
            there, here = past[name][:, :, at : at + length].astype(int), parts[name][:, :, at : at + length]
            most = 1 if past[name].dtype == np.int8 else 4096
            off = np.abs(there - here).max()
            assert off <= most, f"{name}: parts of prompts leave other numbers, by {off}"
    return found


def encode(folder, tokens):
    model = Model(folder, "model.tflite")
    length = int(model.inputs["mask"]["shape"][-1])
    assert length == len(tokens)
    given = {"mask": np.zeros(length)}
    if "pooling" in model.inputs:
        given["pooling"] = np.rint(np.ones(length) / model.inputs["pooling"]["quantization"][0])
    model({"input_ids": np.array(tokens), "token_type_ids": np.zeros(length, int)}, given)
    return {name: [codes] for name, codes in model.codes().items()}


def run(case):
    encoder = os.path.exists(os.path.join(case["folder"], "model.tflite"))
    return {"codes": (encode if encoder else decode)(case["folder"], case["tokens"])}


answer(run)
