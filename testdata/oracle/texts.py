"""The score in testdata/tasks/texts.toml, by transformers in float32 (needs torch, transformers).

Each text is cut into windows of 256 tokens that do not overlap; a window predicts all of its tokens but the first. The result is
the geometric mean of the perplexities of the texts.
"""
import math
import pathlib

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

ROOT = pathlib.Path(__file__).resolve().parents[1]
MODEL = ROOT / "models/shakespeare-1m"
TEXTS = ["evals/shakespeare-valid.txt", "evals/shakespeare-test.txt"]
WINDOW, TOKENS = 256, 4000

tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(MODEL / "tokenizer.json"))
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
logs = []
for text in TEXTS:
    tokens = tokenizer((ROOT / text).read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"][:TOKENS]
    loss = count = 0
    for start in range(0, len(tokens), WINDOW):
        window = torch.tensor([tokens[start : start + WINDOW]])
        if window.shape[1] < 2:
            continue
        with torch.no_grad():
            logits = model(window).logits[0, :-1].double()
        loss += torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="sum").item()
        count += window.shape[1] - 1
    logs.append(loss / count)
    print(text, count, math.exp(loss / count))
print("perplexity", math.exp(sum(logs) / len(logs)))
