"""Greedy answers by transformers, scored by sacrebleu and rouge-score: the oracle of the task `generate`.

    python generate.py    # prints the scores; made with transformers 5.5.4, sacrebleu 2.6.0, rouge-score 0.1.2, float32
"""

import json
from pathlib import Path

import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

here = Path(__file__).parent
folder = here.parent / "models" / "shakespeare-1m"
tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
records = [json.loads(line) for line in (here.parent / "evals" / "prompts.jsonl").read_text().splitlines()]
references = [record.get("references") or [record["reference"]] for record in records]
TOKENS = 24

answers = []
for record in records:
    tokens = torch.tensor([tokenizer.encode(record["prompt"], add_special_tokens=False).ids])
    written = model.generate(tokens, do_sample=False, max_new_tokens=TOKENS, pad_token_id=0, eos_token_id=None)
    answers.append(tokenizer.decode(written[0, tokens.shape[1] :].tolist()).strip())
    print(answers[-1:])

most = max(map(len, references))
# sacrebleu takes None where a text has fewer references.
by_reference = [[all[at] if at < len(all) else None for all in references] for at in range(most)]
scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
rouge = [scorer.score_multi(all, text) for all, text in zip(references, answers)]
print("bleu", sacrebleu.corpus_bleu(answers, by_reference).score)
print("chrf", sacrebleu.corpus_chrf(answers, by_reference).score)
for kind, name in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougeL", "rouge-l")):
    print(name, sum(score[kind].fmeasure for score in rouge) / len(rouge))
