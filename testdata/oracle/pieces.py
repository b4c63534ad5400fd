"""Small SentencePiece models, and the tokens that SentencePiece itself makes of odd texts.

    pip install sentencepiece==0.2.3
    python testdata/oracle/pieces.py

Written to `testdata/pieces/`: `NAME.model` of each kind of model, and `tokens.json`, `{NAME: {TEXT: TOKENS}}`.
"""

import json
import pathlib

import sentencepiece as spm

HERE = pathlib.Path(__file__).resolve().parents[1]
OUT = HERE / "pieces"
TEXTS = [
    "",
    " ",
    "To be, or not to be: that is the question.",
    "  two  spaces   and a tab\there ",
    "a\nnew line\n\nand another",
    "\n\nBIANCA:\nWhy",
    "ends in a line\n",
    "\t",
    "naïve café ﬁne Ⅷ ｆｕｌｌ",
    "東京 ☃ unknown ☃☃☃ characters",
    "In 1984 they'd paid $12,345.67",
    "x" * 60,
]
KINDS = {
    "unigram": dict(model_type="unigram", byte_fallback=True, vocab_size=600),
    "unigram-bare": dict(model_type="unigram", add_dummy_prefix=False, normalization_rule_name="identity"),
    "bpe": dict(model_type="bpe", normalization_rule_name="identity"),
    # As the makers of Llama trained theirs.
    "bpe-llama": dict(
        model_type="bpe", byte_fallback=True, vocab_size=600, normalization_rule_name="identity",
        remove_extra_whitespaces=False, split_digits=True,
    ),
}


def main():
    OUT.mkdir(exist_ok=True)
    tokens = {}
    for name, more in KINDS.items():
        settings = dict(vocab_size=320, input=str(HERE / "evals/shakespeare-valid.txt"), num_threads=1, minloglevel=2)
        spm.SentencePieceTrainer.train(model_prefix=str(OUT / name), **(settings | more))
        (OUT / f"{name}.vocab").unlink()
        processor = spm.SentencePieceProcessor(model_file=str(OUT / f"{name}.model"))
        tokens[name] = {text: processor.encode(text) for text in TEXTS}
    (OUT / "tokens.json").write_text(json.dumps(tokens, indent=1, ensure_ascii=False) + "\n")


main()
