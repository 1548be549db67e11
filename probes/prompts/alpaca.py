"""Alpaca: 52 thousand instructions, written by a language model. Harmless.

The prompt is the instruction and, where there is one, its input.
Label rule: every row counts as harmless; nobody has checked them one by one.
"""

from probes.prompts._named import NamedSet, Part, Split, joined

SET = NamedSet(
    hub="tatsu-lab/alpaca",
    licence="CC BY-NC 4.0",
    citation="Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca",
    splits={"train": Split(hub=(Part("train"),), files=(Part("benign/alpaca.jsonl"),))},
    prompt=joined("instruction", "input"),
    label=0,
)
