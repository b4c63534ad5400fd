# The session of LiteRT. It follows worker.py, which asks for it.
import json
import mmap

from ai_edge_litert.compiled_model import CompiledModel  # noqa: E402
from ai_edge_litert.cpu_options import CpuOptions  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402
from ai_edge_litert.hardware_accelerator import HardwareAccelerator  # noqa: E402
from ai_edge_litert.options import Options  # noqa: E402
from flatbuffers import number_types as types  # noqa: E402
from flatbuffers.table import Table  # noqa: E402

CACHE = "kv_cache_"
MODEL = 3
HIDDEN = np.float32(-0.7 * np.finfo(np.float32).max)


def field(table, number):
    """Where a field of a table is."""
    return table.Pos + table.Offset(4 + 2 * number)


def section(data, content):
    """The section of a bundle with such a content."""
    end = int.from_bytes(data[24:32], "little")
    if data[:8] != b"LITERTLM" or end > len(data):
        raise ValueError("the file is no bundle for LiteRT-LM")
    header = bytes(data[32:end])
    root = Table(header, int.from_bytes(header[:4], "little"))
    sections = Table(header, root.Indirect(field(root, 1)))
    first, count = sections.Vector(sections.Offset(4)), sections.VectorLen(sections.Offset(4))
    for table in (Table(header, sections.Indirect(first + 4 * i)) for i in range(count)):
        if table.Get(types.Uint8Flags, field(table, 3)) == content:
            begin, end = (table.Get(types.Uint64Flags, field(table, number)) for number in (1, 2))
            return data[begin:end]
    raise ValueError("the bundle has no model")


class Session:
    def __init__(self, library, model, mode, device, threads):
        if device.upper() != "CPU":
            raise ValueError(f"no device is named `{device}`")
        self.text = Files.of(model, threads)
        if self.text:
            self.outputs = self.text.outputs
            return
        with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # The model reads it for as long as it lives, and does not keep it.
            self.content = data[:] if data[4:8] == b"TFL3" else section(data, MODEL)
        accelerator = HardwareAccelerator.CPU
        options = Options(hardware_accelerators=accelerator, cpu_options=CpuOptions(num_threads=threads or os.cpu_count() or 1))
        self.model = CompiledModel.from_buffer(self.content, options=options)
        signatures = self.model.get_signature_list()
        if "decode" not in signatures:
            ((key, ports),) = signatures.items()
            self.text, self.outputs = Text(self.model, key, ports), list(ports["outputs"])
            return
        self.calls = {key: Call(self.model, key, ports) for key, ports in signatures.items()}
        self.decode = self.calls["decode"]
        self.outputs = [name for name in signatures["decode"]["outputs"] if not name.startswith(CACHE)]
        # The lengths of parts of prompts, longest first.
        self.parts = sorted((call for key, call in self.calls.items() if key != "decode"), key=lambda call: -call.length)
        self.caches = {name: buffer for name, buffer in self.decode.inputs.items() if name.startswith(CACHE)}
        # What a mask hides is multiplied by 0, which is not enough for what is no number.
        for name, buffer in self.caches.items():
            buffer.write(np.zeros(self.decode.sizes[name], np.float32))
        self.length, self.pending, self.numbers = 0, [], {}

    def feed(self, tokens, afresh):
        self.fed = len(tokens)
        if self.text:
            return self.text.run(tokens, afresh)
        if afresh:
            self.length, self.pending = 0, []
        else:
            self.advance(len(self.pending))
        self.numbers = {}
        room = self.decode.cache - self.length
        if len(tokens) > room:
            raise ValueError(f"{len(tokens)} tokens were given, and the caches have room for {room}: export with a larger `context`")
        self.pending = [int(token) for token in tokens]

    def advance(self, count):
        """Reads so many of the pending tokens without looking at what they give."""
        while count > 0:
            fitting = [call for call in self.parts if self.length + call.length <= self.decode.cache]
            whole = [call for call in fitting if call.length <= count]
            call = (whole or fitting[-1:] or [self.decode])[0]
            part, self.pending = self.pending[: min(count, call.length)], self.pending[min(count, call.length) :]
            self.run(call, part)
            count -= len(part)

    def run(self, call, tokens):
        call.run(tokens, self.length, self.caches)
        self.length += len(tokens)

    def rows(self, output, start, end):
        if self.text:
            return self.text.rows(output, start, end, self.fed)
        if not 0 <= start <= end <= self.fed:
            raise ValueError(f"rows {start} to {end} were asked for, and {self.fed} tokens have run")
        missing = [row for row in range(start, end) if row not in self.numbers]
        if missing and missing[0] < self.fed - len(self.pending):
            raise ValueError(f"row {missing[0]} was asked for after later ones")
        for row in missing:
            self.advance(row - (self.fed - len(self.pending)))
            self.run(self.decode, [self.pending.pop(0)])
            self.numbers[row] = {name: self.decode.output(name) for name in self.outputs}
        values = [self.numbers[row][output] for row in range(start, end)]
        return chosen(np.stack(values) if values else np.zeros((0, 1), np.float32), 0, end - start, self.fed)


class Text:
    """An encoder for texts of one length, which are padded behind."""

    def __init__(self, model, key, ports):
        self.model, self.key = model, key
        self.length = int(model.get_input_tensor_details(key)["input_ids"]["shape"][1])
        self.inputs = {name: model.create_input_buffer_by_name(key, name) for name in ports["inputs"]}
        self.outputs = {name: model.create_output_buffer_by_name(key, name) for name in ports["outputs"]}
        self.widths = {name: int(detail["shape"][-1]) for name, detail in model.get_output_tensor_details(key).items()}

    def run(self, tokens, afresh):
        if len(tokens) > self.length:
            raise ValueError(f"{len(tokens)} tokens were given, and texts have {self.length} at most: export with more `tokens`")
        ids, mask = np.zeros(self.length, np.int32), np.zeros(self.length, np.int32)
        ids[: len(tokens)], mask[: len(tokens)] = tokens, 1
        for name, buffer in self.inputs.items():
            buffer.write({"input_ids": ids, "attention_mask": mask}.get(name, np.zeros(self.length, np.int32)))
        self.model.run_by_name(self.key, self.inputs, self.outputs)

    def rows(self, name, start, end, fed):
        return chosen(self.outputs[name].read(self.widths[name], np.float32).reshape(1, -1), start, end, fed)


class Graph:
    """A file with one call. Values are given and taken as f32, and rounded to the grids of its tensors, if they have any."""

    def __init__(self, path, tables, threads):
        interpreter = Interpreter(path, num_threads=threads or os.cpu_count() or 1)
        self.call = interpreter.get_signature_runner()
        self.inputs, self.outputs = self.call.get_input_details(), self.call.get_output_details()
        self.tables = {name: table for name, table in tables.items() if name in self.inputs}

    def run(self, given):
        """By the names of inputs; what is looked up by one is looked up here."""
        values = {name: self.rounded(name, given[name]) for name in self.inputs if name in given}
        for name, (index, rows) in self.tables.items():
            values[name] = rows[given[index].reshape(-1)].reshape(self.inputs[name]["shape"])
        return self.call(**values)

    def rounded(self, name, value):
        detail = self.inputs[name]
        scale, zero = detail["quantization"]
        if value.dtype != np.float32 or not scale:
            return value.astype(detail["dtype"]).reshape(detail["shape"])
        bounds = np.iinfo(detail["dtype"])
        codes = np.rint(value / scale) + zero
        return np.clip(codes, bounds.min, bounds.max).astype(detail["dtype"]).reshape(detail["shape"])

    def value(self, results, name):
        scale, zero = self.outputs[name]["quantization"]
        return (results[name].astype(np.float32) - np.float32(zero)) * np.float32(scale or 1)


class Files:
    """A decoder with a file for parts of prompts and one for a token, or an integer-only encoder."""

    @staticmethod
    def of(model, threads):
        folder = os.path.dirname(model)
        tables, described = {}, os.path.join(folder, "tables.json")
        if os.path.exists(described):
            with open(described, encoding="utf-8") as file:
                for table in json.load(file)["tables"]:
                    rows = np.fromfile(os.path.join(folder, table["file"]), np.int16).reshape(table["rows"], table["columns"])
                    tables[table["input"]] = (table["index"], rows)
        if os.path.basename(model) == "decode.tflite":
            return Files([os.path.join(folder, "prefill.tflite"), model], tables, threads)
        if os.path.basename(model) == "model.tflite":
            graph = Graph(model, tables, threads)
            if any(detail["dtype"] != np.float32 for detail in graph.outputs.values()):
                return Files([model], tables, threads)
        return None

    def __init__(self, paths, tables, threads):
        self.graphs = [Graph(path, tables, threads) for path in paths]
        self.last = self.graphs[-1]
        self.outputs = [name for name in self.last.outputs if not name.startswith("kv_")]
        self.past = {name: detail for name, detail in self.last.inputs.items() if name.startswith(CACHE)}
        # Of integers, keys of a call are behind those of the caches; of floats, caches come back whole.
        self.whole = all(name in self.last.outputs for name in self.past)
        masks = [detail["shape"] for name, detail in self.last.inputs.items() if name.startswith("mask")]
        self.context = int(masks[0][3]) - (0 if self.whole else 1)
        self.reset()

    def reset(self):
        self.length, self.pending, self.numbers = 0, [], []
        self.caches = {
            name: np.full(detail["shape"], detail["quantization"][1], detail["dtype"]) for name, detail in self.past.items()
        }

    def run(self, tokens, afresh):
        if not self.past:
            return self.encode(tokens)
        if afresh:
            self.reset()
        else:
            self.skip(len(self.pending))
        room = self.context - self.length
        if len(tokens) > room:
            raise ValueError(f"{len(tokens)} tokens were given, and the caches have room for {room}: export with a larger `context`")
        self.pending, self.numbers, self.first = [int(token) for token in tokens], [], 0

    def skip(self, count):
        """Reads so many of the pending tokens without looking at what they give."""
        part = next(int(detail["shape"][2]) for name, detail in self.graphs[0].inputs.items() if name.startswith("mask"))
        while count >= part:
            self.step(self.graphs[0], part)
            count -= part
        for _ in range(count):
            self.step(self.last, 1)

    def step(self, graph, count):
        tokens, self.pending = self.pending[:count], self.pending[count:]
        positions = np.arange(self.length, self.length + count, dtype=np.int32)
        given = {"tokens": np.array(tokens, np.int32), "input_pos": positions, **self.caches}
        for name, detail in graph.inputs.items():
            if name.startswith("mask"):
                keys, seen = np.arange(self.context), np.arange(self.context) < self.length + (count if self.whole else 0)
                if not self.whole:
                    keys, seen = np.concatenate([keys, positions]), np.concatenate([seen, np.ones(count, bool)])
                window = int(name[len("mask_") :] or 0) if name != "mask" else 0
                near = (keys <= positions[:, None]) & ((positions[:, None] - keys < window) if window else True)
                hidden = HIDDEN if self.whole else np.iinfo(detail["dtype"]).min
                given[name] = np.where(seen & near, 0, hidden)
        results = graph.run(given)
        self.length += count
        if self.whole:
            self.caches = {name: results[name] for name in self.caches}
            return results
        for name, cache in self.caches.items():
            cache[:, :, self.length - count : self.length] = results[name.replace("kv_cache_", "kv_slice_")]
        return results

    def encode(self, tokens):
        (graph,) = self.graphs
        details = graph.inputs
        length = next(int(details[name]["shape"][-1]) for name in details if name.startswith("mask"))
        if len(tokens) > length:
            raise ValueError(f"{len(tokens)} tokens were given, and texts have {length} at most: export with more `tokens`")
        ids, counts = np.zeros(length, np.int32), np.zeros(length, np.float32)
        ids[: len(tokens)], counts[: len(tokens)] = tokens, length / max(len(tokens), 1)
        hidden = np.where(np.arange(length) < len(tokens), 0, np.iinfo(np.int16).min)
        given = {"input_ids": ids, "token_type_ids": np.zeros(length, np.int32), "mask": hidden, "pooling": counts}
        self.results = graph.run(given)

    def rows(self, name, start, end, fed):
        if not self.past:
            return chosen(self.last.value(self.results, name).reshape(1, -1), start, end, fed)
        if not 0 <= start <= end <= fed:
            raise ValueError(f"rows {start} to {end} were asked for, and {fed} tokens have run")
        if not self.numbers:
            self.skip(start - self.first)
            self.first = start
        if start < self.first:
            raise ValueError(f"row {start} was asked for after later ones")
        while self.first + len(self.numbers) < end:
            results = self.step(self.last, 1)
            self.numbers.append({output: self.last.value(results, output).reshape(-1) for output in self.outputs})
        values = [numbers[name] for numbers in self.numbers[start - self.first : end - self.first]]
        return chosen(np.stack(values) if values else np.zeros((0, 1), np.float32), 0, end - start, fed)


class Call:
    """A signature and its buffers; caches are written where they are read."""

    def __init__(self, model, key, ports):
        self.model, self.key = model, key
        shapes = {name: detail["shape"] for name, detail in model.get_input_tensor_details(key).items()}
        self.length, self.cache = (int(size) for size in shapes["mask"][2:])
        self.sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
        self.inputs = {name: model.create_input_buffer_by_name(key, name) for name in ports["inputs"]}
        self.outputs = {name: model.create_output_buffer_by_name(key, name) for name in ports["outputs"]}
        self.widths = {name: int(detail["shape"][-1]) for name, detail in model.get_output_tensor_details(key).items()}

    def run(self, tokens, start, caches):
        ids, positions = np.zeros((1, self.length), np.int32), np.zeros(self.length, np.int32)
        mask = np.full((1, 1, self.length, self.cache), HIDDEN, np.float32)
        ids[0, : len(tokens)], positions[: len(tokens)] = tokens, np.arange(start, start + len(tokens))
        for row in range(len(tokens)):
            mask[0, 0, row, : start + row + 1] = 0
        for name, values in (("tokens", ids), ("input_pos", positions), ("mask", mask)):
            self.inputs[name].write(values.reshape(-1))
        self.model.run_by_name(self.key, {**self.inputs, **caches}, {**self.outputs, **caches})

    def output(self, name):
        return self.outputs[name].read(self.widths[name], np.float32)
