"""Log-likelihoods of options by transformers: the oracle of the task `choice`.

Options follow their questions after a space; tokens are those of the whole, without a begin-of-text token (as lm-evaluation-harness 0.4 does it). Writes
`choice.json`: for each question the log-likelihoods of its options, and `acc` and `acc_norm` (by bytes) over all.

    python choice.py    # made with transformers 5.5.4, float32
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
folder = here.parent / "models" / "shakespeare-1m"
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
records = [json.loads(line) for line in (here.parent / "evals" / "choice.jsonl").read_text().splitlines()]
SHOTS = 2


def index(record):
    answer = record["answer"]
    answer = answer[0] if isinstance(answer, list) else answer
    if isinstance(answer, int):
        return answer
    return record["options"].index(answer) if answer in record["options"] else ord(answer) - ord("A")


def likelihood(context, option):
    prompt = tokenizer.encode(context, add_special_tokens=False).ids
    whole = tokenizer.encode(f"{context} {option}", add_special_tokens=False).ids
    tokens = prompt + whole[len(prompt) :]
    with torch.no_grad():
        logits = model(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    return sum(logits[at - 1, tokens[at]].item() for at in range(len(prompt), len(tokens)))


def scores(asked, front):
    samples, right, by_byte = [], 0, 0
    for record in asked:
        options = record["options"]
        found = [likelihood(front + record["question"], option) for option in options]
        lengths = [len(option.encode()) for option in options]
        samples.append(found)
        right += max(range(len(options)), key=lambda i: found[i]) == index(record)
        by_byte += max(range(len(options)), key=lambda i: found[i] / lengths[i]) == index(record)
    return {"log_likelihoods": samples, "acc": right / len(asked), "acc_norm": by_byte / len(asked)}


front = "".join(f"{record['question']} {record['options'][index(record)]}\n\n" for record in records[:SHOTS])
results = {"zero_shot": scores(records, ""), "two_shot": scores(records[SHOTS:], front)}
(here / "choice.json").write_text(json.dumps(results, indent=1) + "\n")
