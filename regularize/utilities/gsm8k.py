"""GSM8K, grade school word problems (Cobbe et al. 2021, arXiv 2110.14168): the final number.

    gsm8k                        the test split, from ACTIVATION_CRITIC_DATA or the hub
    gsm8k:PATH                   a copy, or a set of your own, as .jsonl with question and answer
    gsm8k:org/name?split=test    another set on the hub with these columns

The question is asked as it stands, without examples. The model's number is the first one after
`####`, and where there is none, the last number in the answer. Numbers are compared by value:
thousands' commas, a currency sign, units and trailing zeros are left aside.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Self

from probes import cells, files, hub
from probes.errors import InputError
from regularize.specs import Spec
from regularize.utilities import Question, Utility, sample

NUMBER = re.compile(r"(?<![\w.])[-−]?[$€£]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
DATA = "ACTIVATION_CRITIC_DATA"


@dataclass(frozen=True)
class Gsm8k(Utility):
    """Word problems: `gsm8k[:PATH]`."""

    rows: tuple[Question, ...]

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """Options: split, of a set on the hub.

        Raises:
            InputError: The set cannot be read, or a row's answer holds no number.
        """
        spec.check("split")
        return cls(spec.text, tuple(_question(row) for row in _rows(spec)))

    def questions(self, n: int | None, seed: int) -> list[Question]:
        """See `Utility.questions`."""
        return sample(self.rows, n, seed)

    def correct(self, question: Question, answer: str) -> bool:
        """Whether the answer's number is the right one."""
        return final_number(answer) == final_number(question.answer)

    def decided(self, question: Question, beginning: str) -> bool:  # noqa: ARG002
        """Where the number after `####` has ended."""
        after = beginning.partition("####")[2]
        marked = NUMBER.search(after)
        return marked is not None and any(not _goes_on(one) for one in after[marked.end() :])


def final_number(text: str) -> Decimal | None:
    """The first number after `####`, else the last in the text; None where there is none."""
    marked = NUMBER.search(text.partition("####")[2])
    found = marked or next(reversed(list(NUMBER.finditer(text))), None)
    if found is None:
        return None
    return Decimal(re.sub(r"[,$€£]", "", found[0]).replace("−", "-"))


def _goes_on(character: str) -> bool:
    """Whether a number may go on with it."""
    return character.isdecimal() or character in ".,"


def _rows(spec: Spec) -> Iterable[files.Row]:
    split = spec.options.get("split", "test")
    if not spec.where:
        local = Path(os.environ.get(DATA, ""), "benign", f"gsm8k_{split}.jsonl")
        if os.environ.get(DATA) and local.is_file():
            return files.read(local)
        return hub.read("openai/gsm8k", "main", split)
    path = Path(spec.where)
    if path.suffix in files.SUFFIXES or path.exists():
        return files.read(path)
    return hub.read(spec.where, "", split)


def _question(row: files.Row) -> Question:
    question = Question(
        cells.text(row["question"], row.at("question")), cells.text(row["answer"], row.at("answer"))
    )
    if final_number(question.answer) is None:
        raise InputError(f"{row.at('answer')}: no number in it to compare with")
    return question
