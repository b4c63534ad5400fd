# The session of ONNX Runtime's QNN execution provider. It follows worker.py, which asks for it.
import onnxruntime  # noqa: E402
import onnxruntime_qnn  # noqa: E402

NAME = "QNNExecutionProvider"


class Session:
    def __init__(self, library, model, mode, device, threads):
        if device.upper() != "HTP":
            raise ValueError(f"no device is named `{device}`")
        folder = os.path.dirname(model)
        with open(model, encoding="utf-8") as file:
            config = json.load(file)
        onnxruntime.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == NAME]
        settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), **config["provider_options"]}

        def load(name):
            options = onnxruntime.SessionOptions()
            # A node that the processor does not take must be an error, and not run elsewhere.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            options.add_provider_for_devices(devices[:1], settings)
            return onnxruntime.InferenceSession(os.path.join(folder, f"{name}.onnx"), options)

        self.text = Text(load("model"), config["tokens"]) if "tokens" in config else None
        if self.text:
            self.outputs = self.text.outputs
            return
        self.context, self.calls = config["context"], {config["prefill"]: load("prefill"), 1: load("decode")}
        self.inputs = {port.name: port.shape for port in self.calls[1].get_inputs()}
        self.present = [port.name for port in self.calls[1].get_outputs() if port.name.startswith("present.")]
        self.outputs = [port.name for port in self.calls[1].get_outputs() if port.name not in self.present]
        self.forget()

    def forget(self):
        """The cache has room for the whole context; a call takes what lies before its tokens."""
        self.length, self.used = 0, np.zeros(self.context, np.int64)
        self.cache = {
            name: np.zeros((*shape[:2], self.context, shape[3]), np.float32)
            for name, shape in self.inputs.items()
            if name.startswith("past_key_values.")
        }

    def feed(self, tokens, afresh):
        self.fed = len(tokens)
        if self.text:
            return self.text.run(tokens)
        if afresh:
            self.forget()
        if len(tokens) > self.context - self.length:
            raise ValueError(
                f"{len(tokens)} tokens were given, and the cache has room for {self.context - self.length}: export with a larger `context`"
            )
        part, rows, at = max(self.calls), [], 0
        while at < len(tokens):
            left = len(tokens) - at
            # A part is filled up in front while nothing is in the cache; later that would take its room.
            if self.length == 0 and left % part:
                count, padding = left % part, part - left % part
            else:
                count, padding = (part if left >= part else 1), 0
            rows.append(self.run(tokens[at : at + count], padding))
            at += count
        self.values = {name: np.concatenate([row[name] for row in rows]) for name in self.outputs}

    def run(self, tokens, padding):
        size = len(tokens) + padding
        self.used = np.concatenate([self.used[size:], np.zeros(padding, np.int64), np.ones(len(tokens), np.int64)])
        numbers = {
            "input_ids": np.concatenate([np.zeros(padding), tokens]),
            "position_ids": np.concatenate([np.zeros(padding), np.arange(self.length, self.length + len(tokens))]),
            "attention_mask": self.used,
        }
        given = {name: values.astype(np.int64)[None] for name, values in numbers.items() if name in self.inputs}
        given.update({name: np.ascontiguousarray(values[:, :, size:]) for name, values in self.cache.items()})
        call = self.calls[size]
        names = [port.name for port in call.get_outputs()]
        results = dict(zip(names, call.run(None, given)))
        self.cache = {name: results[name.replace("past_key_values", "present", 1)] for name in self.cache}
        self.length += len(tokens)
        return {name: results[name][0, padding:] for name in self.outputs}

    def rows(self, output, start, end):
        if self.text:
            return chosen(self.text.values[output], start, end, self.fed)
        return chosen(self.values[output], start, end, self.fed)


class Text:
    """An encoder for texts of one length, which are padded behind."""

    def __init__(self, call, length):
        self.call, self.length = call, length
        self.inputs = [port.name for port in call.get_inputs()]
        self.outputs = [port.name for port in call.get_outputs()]

    def run(self, tokens):
        if len(tokens) > self.length:
            raise ValueError(f"{len(tokens)} tokens were given, and texts have {self.length} at most: export with more `tokens`")
        given = {name: np.zeros((1, self.length), np.int64) for name in self.inputs}
        known = {"input_ids": tokens, "attention_mask": np.ones(len(tokens)), "position_ids": np.arange(len(tokens))}
        for name, values in known.items():
            if name in given:
                given[name][0, : len(tokens)] = values
        self.values = dict(zip(self.outputs, self.call.run(None, given)))
