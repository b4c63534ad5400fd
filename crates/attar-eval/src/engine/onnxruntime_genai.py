# The session of ONNX Runtime GenAI. It follows worker.py, which asks for it.
import onnxruntime_genai as genai  # noqa: E402

# Without this, a DequantizeLinear and a product that are fused round activations to int8.
EXACT = {"session.qdq_matmulnbits_accuracy_level": "1"}


class Session:
    def __init__(self, library, model, mode, device, threads):
        if device.lower() != "cpu":
            raise ValueError(f"no device is named `{device}`")
        folder = os.path.dirname(model)
        options = dict(EXACT) if mode == "exact" else {}
        if threads is not None:
            options["intra_op_num_threads"] = threads
        config = genai.Config(folder)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self.model = genai.Model(config)
        with open(model, encoding="utf-8") as file:
            self.context = json.load(file)["model"]["context_length"]
        self.outputs, self.tokens, self.generator = ["logits"], [], None

    def begin(self, length):
        """A generator with room for some more tokens than `length`: the shared cache takes memory for all of its room."""
        self.room = min(self.context, max(2 * length, length + 256))
        params = genai.GeneratorParams(self.model)
        params.set_search_options(max_length=self.room)
        self.generator = genai.Generator(self.model, params)

    def feed(self, tokens, afresh):
        tokens = tokens.astype(np.int32)
        before = [] if afresh else self.tokens
        self.tokens = np.concatenate([np.array(before, np.int32), tokens])
        if len(self.tokens) > self.context:
            raise ValueError(f"{len(self.tokens)} tokens are more than the {self.context} of the model's context")
        if afresh or self.generator is None or len(self.tokens) >= self.room:
            self.begin(len(self.tokens))
            self.generator.append_tokens(self.tokens)
        else:
            self.generator.append_tokens(tokens)
        self.fed = len(tokens)

    def rewind(self, length):
        self.tokens = self.tokens[:length]
        if length == 0:
            self.generator = None
        elif self.generator is not None:
            self.generator.rewind_to(length)

    def rows(self, output, start, end):
        if self.generator is None:
            raise ValueError("no tokens have run")
        logits = self.generator.get_output(output)
        return chosen(logits[:, -self.fed :], start, end, self.fed)
