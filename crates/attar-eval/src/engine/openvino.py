# The session of OpenVINO. It follows worker.py, which asks for it.
import openvino  # noqa: E402

PAST, PRESENT = "past_key_values.", "present."
# Without these, activations may be rounded to bf16 or int8, and a cache to int8.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "KV_CACHE_PRECISION": "f32"}


def dimension(port, axis):
    """A dimension of a port, 0 where it is not fixed."""
    size = port.partial_shape[axis]
    return 0 if size.is_dynamic else size.get_length()


class Session:
    def __init__(self, library, model, mode, device, threads):
        core = openvino.Core()
        settings = dict(EXACT) if mode == "exact" else {}
        supported = core.get_property(device, "SUPPORTED_PROPERTIES")
        # Not every device has a cache precision of its own; the other two are what exact means.
        settings = {key: value for key, value in settings.items() if key != "KV_CACHE_PRECISION" or key in supported}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        compiled = core.compile_model(core.read_model(model), device, settings)
        self.request = compiled.create_infer_request()
        self.inputs = {port.get_any_name(): port for port in compiled.inputs}
        outputs = [port.get_any_name() for port in compiled.outputs]
        self.outputs = [name for name in outputs if not name.startswith(PRESENT)]
        self.states = bool(self.request.query_state())
        self.heads = {name: self.nothing(name) for name in self.inputs if name.startswith(PAST)}
        self.forget()

    def nothing(self, name):
        port = self.inputs[name]
        if port.partial_shape.rank.get_length() != 4 or dimension(port, 1) == 0 or dimension(port, 3) == 0:
            raise ValueError(f"input `{name}` is {port.partial_shape}, expected [batch, heads, past, head size]")
        return np.zeros((1, dimension(port, 1), 0, dimension(port, 3)), np.float32)

    def forget(self):
        self.length, self.past, self.fed = 0, self.heads, 0
        if self.states:
            self.request.reset_state()

    def feed(self, tokens, afresh):
        if afresh:
            self.forget()
        after = self.length + len(tokens)
        numbers = {
            "input_ids": tokens,
            "position_ids": np.arange(self.length, after),
            "attention_mask": np.ones(after),
            "token_type_ids": np.zeros(len(tokens)),
        }
        given = {name: values.astype(np.int64)[None] for name, values in numbers.items() if name in self.inputs}
        if "beam_idx" in self.inputs:
            given["beam_idx"] = np.zeros(1, np.int32)
        self.request.infer({**given, **self.past})
        self.length, self.fed = after, len(tokens)
        # The engine overwrites its outputs in the next run.
        self.past = {name: self.output(name.replace(PAST, PRESENT, 1)).copy() for name in self.past}

    def output(self, name):
        return self.request.get_tensor(name).data

    def rows(self, output, start, end):
        if not self.fed:
            raise ValueError("no tokens have run")
        return chosen(self.output(output), start, end, self.fed)
