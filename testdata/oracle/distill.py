"""Three steps of distillation by torch: the oracle of attar's trainer.

The student is the model with its `mlp.down` matrices at nine tenths, the teacher the model itself, in float32. Hidden states count by the
relative mean square behind every block. Writes
`distill.json`: the loss before every step, the norm of the first gradients, and a few weights after the last step.

    python distill.py    # made with torch 2.15.0 (CPU) and transformers 5.5.4
"""

import json
import math
from pathlib import Path

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
MODEL = HERE.parent / "models" / "shakespeare-1m"
STEPS, RATE, WARMUP, LAST, CLIP, DECAY, KL, LABELS, HIDDEN = 3, 1e-3, 2, 0.1, 1.0, 0.1, 0.7, 0.3, 0.5
WINDOWS = [[(window * 131 + at * at * 17 + at) % 1000 for at in range(48)] for window in range(2)]
PROBES = {
    "blocks.0.attention.query": "model.layers.0.self_attn.q_proj.weight",
    "blocks.1.attention.value": "model.layers.1.self_attn.v_proj.weight",
    "blocks.2.mlp.down": "model.layers.2.mlp.down_proj.weight",
    "blocks.3.mlp.gate": "model.layers.3.mlp.gate_proj.weight",
    "blocks.3.mlp_norm": "model.layers.3.post_attention_layernorm.weight",
    "final_norm": "model.norm.weight",
}


def rate(step):
    warm = min((step + 1) / WARMUP, 1)
    behind = max(step - WARMUP, 0) / max(STEPS - WARMUP, 1)
    return RATE * warm * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * behind)))


def behind(model):
    """What leaves every block, filled by each forward pass."""
    states = [None] * len(model.model.layers)
    for at, layer in enumerate(model.model.layers):
        def keep(_, __, output, at=at):
            states[at] = output[0] if isinstance(output, tuple) else output
        layer.register_forward_hook(keep)
    return states


def main():
    torch.set_num_threads(1)
    teacher = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    student = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokens = torch.tensor(WINDOWS)
    trained = {name: weight for name, weight in student.named_parameters() if "embed" not in name and "lm_head" not in name}
    for name, weight in student.named_parameters():
        weight.requires_grad_(name in trained)
    theirs, own = behind(teacher), behind(student)
    with torch.no_grad():
        for layer in student.model.layers:
            layer.mlp.down_proj.weight *= 0.9
        wanted = teacher(tokens).logits
    groups = [
        {"params": [w for w in trained.values() if w.dim() > 1], "weight_decay": DECAY},
        {"params": [w for w in trained.values() if w.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(STEPS):
        logits = student(tokens).logits
        flat = logits.reshape(-1, logits.shape[-1])
        kl = F.kl_div(F.log_softmax(flat, -1), F.log_softmax(wanted.reshape(flat.shape), -1), log_target=True, reduction="batchmean")
        labels = F.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1))
        apart = [((h - y).pow(2).sum(-1) / y.pow(2).sum(-1)).mean() for h, y in zip(own, theirs)]
        loss = KL * kl + LABELS * labels + HIDDEN * torch.stack(apart).mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        losses.append(float(loss))
    probes = {name: [float(x) for x in trained[theirs].detach().flatten()[:6]] for name, theirs in PROBES.items()}
    written = {"windows": WINDOWS, "losses": losses, "norms": norms, "weights": probes}
    (HERE / "distill.json").write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
