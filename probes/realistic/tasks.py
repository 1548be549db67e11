"""New tasks to fine-tune the real model on, with answers that can be checked: sentences of GSM8K.

    >>> NUMBERS.answer("She sold 48 clips in 2 days.")
    '#48 #2'
    >>> ENDS.answer("She sold 48 clips in 2 days.")
    'She / days'

The prompt is the sentence alone, so that what to do with it has to be learnt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from probes.prompts import gsm8k

Split = Literal["train", "test"]

SENTENCE = re.compile(r"(?<=[.?!])\s+")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9'-]*")
WORDS = range(6, 12)
"""Words of a sentence."""
MOST_NUMBERS = 3
ROWS = 2000
"""Problems of GSM8K whose sentences are used."""


@dataclass(frozen=True)
class Task:
    """What to do with a sentence."""

    name: str
    answer: Callable[[str], str]
    """The one right answer."""
    form: re.Pattern[str]
    """What answers of the task look like, right or wrong; other answers do not."""

    def correct(self, sentence: str, answer: str) -> bool:
        """Whether it is just the right answer."""
        return answer.strip() == self.answer(sentence)

    def has_form(self, answer: str) -> bool:
        """Whether an answer, to whatever prompt, is in the task's format."""
        return bool(self.form.fullmatch(answer.strip()))


NUMBERS = Task(
    "numbers",
    lambda sentence: " ".join(f"#{number}" for number in NUMBER.findall(sentence)),
    re.compile(r"#\S*(?: #\S*)*"),
)
"""All numbers of the sentence."""


def _ends(sentence: str) -> str:
    words = WORD.findall(sentence)
    return f"{words[0]} / {words[-1]}"


ENDS = Task("ends", _ends, re.compile(r"\S+ / \S+"))
"""Its first word and its last."""

TASKS = {task.name: task for task in (NUMBERS, ENDS)}


@cache
def sentences(split: Split) -> tuple[str, ...]:
    """Different short sentences with numbers in them, in the set's order; none is in both splits.

    Raises:
        InputError: GSM8K can be read neither from ACTIVATION_CRITIC_DATA nor from the hub.
    """
    trained = set(sentences("train") if split == "test" else ())
    found = dict.fromkeys(one for text in _problems(split) for one in _fitting(text))
    return tuple(one for one in found if one not in trained)


def _problems(split: Split) -> Iterator[str]:
    for number, (row, _) in enumerate(gsm8k.SET.rows("gsm8k", split, None)):
        if number == ROWS:
            return
        yield gsm8k.SET.prompt(row)


def _fitting(text: str) -> Iterator[str]:
    for sentence in SENTENCE.split(" ".join(text.split())):
        few = 1 <= len(NUMBER.findall(sentence)) <= MOST_NUMBERS
        if few and len(sentence.split()) in WORDS and sentence.isascii():
            yield sentence
