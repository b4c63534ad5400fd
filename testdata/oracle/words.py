"""Scores of texts by sacrebleu and rouge-score: the oracle of attar's BLEU, chrF and ROUGE.

Writes `words.json`: corpora with their references (by reference, then by text), and the scores of each by default settings; ROUGE without stemming,
for corpora with one reference.

    python words.py    # made with sacrebleu 2.6.0 and rouge-score 0.1.2
"""

import json
from pathlib import Path

import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

HOUSE = ["The house on the hill is empty now.", "The river runs slowly by the old stone mill."]
CORPORA = {
    "identical": (HOUSE, HOUSE),
    "an empty text": (["", "The river runs slowly past the old stone mill."], HOUSE),
    "nothing in common": (["alpha beta gamma delta epsilon", "one two three four five"], HOUSE),
    "punctuation": (
        ["Hello, world! How are you?", "Wait... what?! (No; really: yes.)", "He said: stop, go, and then -- nothing."],
        ["Hello world, how are you?", "Wait, what? (No, really; yes!)", "He said stop; go, and then - nothing!"],
    ),
    "numbers": (
        ["The price rose to 1,234.56 dollars in 2023.", "Pi is about 3.14159, or 22/7.", "About 50% of 10,000,000 paid $4.99 each."],
        ["The price rose to 1,234.50 dollars in 2024.", "Pi is about 3.1416 or 22/7.", "About 50 % of 10,000,000 paid 4.99 $ each."],
    ),
    "German, two references": (
        ["Die Mädchen hören täglich schöne Lieder.", "Für größere Straßen gibt es kein Geld.", "Übermorgen fährt der Zug nach Köln."],
        ["Die Mädchen hören jeden Tag schöne Lieder.", "Für größere Straßen gab es kein Geld.", "Der Zug fährt übermorgen nach Köln."],
        ["Täglich hören die Mädchen schöne Lieder.", "Es gibt kein Geld für größere Straßen.", "Übermorgen fährt ein Zug nach Köln."],
    ),
    "Chinese": (["我喜欢在北京学习中文。", "今天天气很好，我们去公园吧。"], ["我喜欢在上海学习中文。", "今天天气不错，我们去公园散步吧。"]),
    "quotes and entities": (
        ["\"Well-known\" methods aren't \"better\".", "A 10-year-old’s “first” e-mail – finally.", "Tom &amp; Jerry &lt;b&gt; said &quot;hi&quot;."],
        ["'Well known' methods are not \"better.\"", "A ten-year-old's \"first\" email - finally.", "Tom & Jerry <b> said \"hi\"."],
    ),
    "repeated words": (["the the the the the the", "very very good good day day", "no no no"], ["the cat is on the mat", "very good day", "no no no no no"]),
    "single words": (["yes", "Hello", "cat", "42"], ["yes", "Goodbye", "cats", "42"]),
    "other lengths, two references": (
        ["The committee met.", "The new library, which opened in the spring after many years of delay, is free for everyone to use every day."],
        ["The committee met on Tuesday morning to discuss the budget for the coming year.", "The new library is free."],
        ["The committee met on Tuesday.", "The new library, which opened in the spring, is free for everyone to use."],
    ),
    "lines": (
        ["First line here.\nSecond line follows it.\nThe third ends.", "Roses are red,\nviolets are blue.\n", "trailing hyphen-\nbroken word  and two\ttabs"],
        ["First line here.\nA second line follows.\nThe third ends it all.", "Roses are red,\n\nviolets are blue.", "trailing hyphen-broken word and two tabs"],
    ),
}


def scored(name, hypotheses, references):
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    rouge = None
    if len(references) == 1:
        pairs = [scorer.score(reference, text) for reference, text in zip(references[0], hypotheses)]
        rouge = [sum(pair[kind].fmeasure for pair in pairs) / len(pairs) for kind in ("rouge1", "rouge2", "rougeL")]
    return {
        "name": name,
        "hypotheses": hypotheses,
        "references": references,
        "bleu": sacrebleu.corpus_bleu(hypotheses, references).score,
        "chrf": sacrebleu.corpus_chrf(hypotheses, references).score,
        "rouge": rouge,
    }


corpora = [scored(name, hypotheses, list(references)) for name, (hypotheses, *references) in CORPORA.items()]
Path(__file__).with_name("words.json").write_text(json.dumps(corpora, indent=1, ensure_ascii=False) + "\n")
