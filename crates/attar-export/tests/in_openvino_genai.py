"""Generates from exported folders in OpenVINO GenAI. stdin: a list of cases; stdout: what each gave, as JSON.

A case is {"model", "prompts": lists of tokens, "tokens": how many to generate} and perhaps "device" and its "options", by default the CPU with f32
everywhere. The answer has what each prompt goes on with. With {"chat": messages, "texts"} it also has the text that the chat template makes, and
the tokens of the texts and what they are decoded to.
"""

import numpy as np
import openvino
import openvino_genai as genai
from cases import answer

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def run(case):
    options = case.get("options", {"ATTENTION_BACKEND": "SDPA", **EXACT})
    pipeline = genai.LLMPipeline(case["model"], case.get("device", "CPU"), **options)
    config = genai.GenerationConfig(max_new_tokens=case["tokens"], ignore_eos=True, do_sample=False, eos_token_id=0)
    said = []
    for prompt in case["prompts"]:
        ids, mask = np.array([prompt], np.int64), np.ones((1, len(prompt)), np.int64)
        said.append(pipeline.generate(genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(mask)), config).tokens[0])
    if "chat" not in case:
        return {"said": said}
    tokenizer = pipeline.get_tokenizer()
    encoded = [tokenizer.encode(text).input_ids.data[0].tolist() for text in case["texts"]]
    decoded = [tokenizer.decode(ids) for ids in encoded]
    chat = tokenizer.apply_chat_template(case["chat"], True)
    ends = tokenizer.get_eos_token_id()
    return {"said": said, "encoded": encoded, "decoded": decoded, "chat": chat, "end": ends}


answer(run)
