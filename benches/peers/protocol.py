"""What every peer is measured by: the text, the windows, the numbers, the bill.

Windows of `length` tokens without overlap, no token of any kind added; every window scores `length - 1` tokens. A
model's matrices are the float32 tensors it computes with. Standard errors are over windows.
"""
import json
import math
import os
import resource
import time

import torch

# What is quantized: the matrices of the blocks. Embedding, head and norms stay as they are.
BLOCK_MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def is_block_matrix(name):
    """Whether a parameter of a Hugging Face model counts."""
    return name.split(".")[-1] == "weight" and name.split(".")[-2] in BLOCK_MATRICES


def tokenizer(model):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_file=os.path.join(model, "tokenizer.json"))


def tokens(model, text, at_most=None):
    """A text as token numbers, tokenized whole, without special tokens."""
    with open(text, encoding="utf-8") as file:
        ids = tokenizer(model)(file.read(), add_special_tokens=False)["input_ids"]
    return ids[:at_most]


def windows(ids, length):
    """Whole windows, in order: `[windows, length]`."""
    count = len(ids) // length
    return torch.tensor(ids[: count * length]).view(count, length)


def load(model):
    """A Hugging Face model in float32 on the CPU."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def compare(base, subject, texts):
    """Perplexity of both, its ratio, the KL divergence `base || subject`, the share of equal top tokens."""
    rows = []
    with torch.no_grad():
        for window in texts:
            p = base(window[None]).logits[0, :-1].double().log_softmax(-1)
            q = subject(window[None]).logits[0, :-1].double().log_softmax(-1)
            target = window[1:, None]
            rows.append((
                -p.gather(1, target).mean().item(),
                -q.gather(1, target).mean().item(),
                (p.exp() * (p - q)).sum(-1).mean().item(),
                (p.argmax(-1) == q.argmax(-1)).double().mean().item(),
            ))
    base_loss, loss, divergence, agree = zip(*rows)
    ratio = mean([b - a for a, b in zip(base_loss, loss)])
    ratio_error = standard_error([b - a for a, b in zip(base_loss, loss)])
    return {
        "windows": len(rows),
        "base_perplexity": math.exp(mean(base_loss)),
        "ratio": math.exp(ratio),
        "ratio_se": math.exp(ratio) * ratio_error,
        "kl": mean(divergence),
        "kl_se": standard_error(divergence),
        "top1": mean(agree),
    }


def mean(values):
    return sum(values) / len(values)


def standard_error(values):
    """Of the mean."""
    if len(values) < 2:
        return float("nan")
    center = mean(values)
    return math.sqrt(sum((v - center) ** 2 for v in values) / (len(values) - 1) / len(values))


class Bill:
    """CPU-seconds (user and system, children that ended included) of what runs within, and the process's peak memory.

    The peak is over the process's life: what is to be billed has a process of its own.
    """

    def __enter__(self):
        self.start = self._cpu()
        self.started = time.monotonic()
        return self

    def __exit__(self, *_):
        self.cpu_seconds = self._cpu() - self.start
        self.wall_seconds = time.monotonic() - self.started
        self.peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000

    @staticmethod
    def _cpu():
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(u.ru_utime + u.ru_stime for u in used)

    def numbers(self):
        return {"cpu_s": self.cpu_seconds, "wall_s": self.wall_seconds, "peak_mb": self.peak_mb}


def write(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")


def read(path):
    with open(path, encoding="utf-8") as file:
        return json.load(file)
