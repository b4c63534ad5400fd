"""Makes `minilm.json`: texts, their tokens and their embeddings, as transformers computes them from the all-MiniLM-L6-v2 folder
that is given, in float32 with eager attention, mean pooling and normalisation.

Made with Python 3.11, torch 2.15.0 (CPU) and transformers 5.5.4: `python minilm.py FOLDER`.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModel

TEXTS = [
    "A man is playing a guitar.",
    "Ein Café in Zürich: naïve façade, 3.14 % of 東京!",
    "",
    "uncopyrightable antidisestablishmentarianism [MASK] #hashtag don't",
]

folder = sys.argv[1]
tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
tokenizer.no_padding()
tokenizer.no_truncation()
model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
rows = []
for text in TEXTS:
    ids = tokenizer.encode(text).ids
    with torch.no_grad():
        hidden = model(torch.tensor([ids])).last_hidden_state
    embedding = torch.nn.functional.normalize(hidden.mean(1), dim=1)[0]
    rows.append({"text": text, "tokens": ids, "embedding": [round(x, 7) for x in embedding.tolist()]})
lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
(Path(__file__).parent / "minilm.json").write_text(f"[\n{lines}\n]\n")
