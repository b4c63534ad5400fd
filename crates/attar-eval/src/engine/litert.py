# The session of LiteRT. It follows worker.py, which asks for it.
import mmap

from ai_edge_litert.compiled_model import CompiledModel  # noqa: E402
from ai_edge_litert.cpu_options import CpuOptions  # noqa: E402
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
        with open(model, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # The model reads it for as long as it lives, and does not keep it.
            self.content = data[:] if data[4:8] == b"TFL3" else section(data, MODEL)
        accelerator = HardwareAccelerator.CPU
        options = Options(hardware_accelerators=accelerator, cpu_options=CpuOptions(num_threads=threads or os.cpu_count() or 1))
        self.model = CompiledModel.from_buffer(self.content, options=options)
        self.text = None
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
            return self.text.run(tokens)
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
            return chosen(self.text.output(output), start, end, self.fed)
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

    def run(self, tokens):
        if len(tokens) > self.length:
            raise ValueError(f"{len(tokens)} tokens were given, and texts have {self.length} at most: export with more `tokens`")
        ids, mask = np.zeros(self.length, np.int32), np.zeros(self.length, np.int32)
        ids[: len(tokens)], mask[: len(tokens)] = tokens, 1
        for name, buffer in self.inputs.items():
            buffer.write({"input_ids": ids, "attention_mask": mask}.get(name, np.zeros(self.length, np.int32)))
        self.model.run_by_name(self.key, self.inputs, self.outputs)

    def output(self, name):
        return self.outputs[name].read(self.widths[name], np.float32).reshape(1, -1)


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
