"""Generates from exported folders in ONNX Runtime GenAI. stdin: a list of cases; stdout: what each gave, as JSON.

A case is {"model", "prompts": lists of tokens, "tokens": how many to generate, "chat": messages}. The answer has what each prompt alone goes on
with, what all of them do as one batch that is padded behind, and the text that the chat template makes.
"""

import json

import numpy as np
import onnxruntime_genai as genai
from cases import answer


def generate(model, prompts, tokens, pad):
    length = max(len(prompt) for prompt in prompts)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=length + tokens, min_length=length + tokens, batch_size=len(prompts))
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array([prompt + [pad] * (length - len(prompt)) for prompt in prompts], np.int32))
    said = []
    for _ in range(tokens):
        generator.generate_next_token()
        said.append(generator.get_next_tokens())
    return np.array(said).T.tolist()


def run(case):
    with open(f"{case['model']}/genai_config.json", encoding="utf-8") as file:
        pad = json.load(file)["model"].get("pad_token_id", 0)
    model = genai.Model(case["model"])
    alone = [generate(model, [prompt], case["tokens"], pad)[0] for prompt in case["prompts"]]
    together = generate(model, case["prompts"], case["tokens"], pad)
    tokenizer = genai.Tokenizer(model)
    chat = tokenizer.apply_chat_template(json.dumps(case["chat"]), add_generation_prompt=True)
    return {"alone": alone, "together": together, "chat": chat, "encoded": tokenizer.encode(chat).tolist()}


answer(run)
