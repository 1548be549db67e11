"""Exact match on questions of your own: `exact:FILE`, with columns prompt and answer.

White space apart, the answer must be just what the file says, letter case included.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from probes import cells, files
from regularize.specs import Spec
from regularize.utilities import Question, Utility, sample


@dataclass(frozen=True)
class Exact(Utility):
    """Exact match: `exact:FILE`."""

    rows: tuple[Question, ...]

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """Options: prompt and answer, the columns' names.

        Raises:
            InputError: The file cannot be read, or a row lacks a text.
        """
        spec.check("prompt", "answer", needs="a .jsonl, .csv, .tsv or .parquet file")
        names = [spec.options.get(name, name) for name in ("prompt", "answer")]
        rows = files.read(Path(spec.where))
        return cls(
            spec.text,
            tuple(
                Question(*(cells.text(row[name], row.at(name)) for name in names)) for row in rows
            ),
        )

    def questions(self, n: int | None, seed: int) -> list[Question]:
        """See `Utility.questions`."""
        return sample(self.rows, n, seed)

    def correct(self, question: Question, answer: str) -> bool:
        """Whether the answer is the one in the file, white space apart."""
        return answer.split() == question.answer.split()

    def decided(self, question: Question, beginning: str) -> bool:
        """Where a word is wrong, or one too many."""
        right, words = question.answer.split(), beginning.split()
        if not words:
            return False
        *whole, last = words
        if beginning[-1].isspace():
            return words != right[: len(words)]
        n = len(whole)
        return whole != right[:n] or n >= len(right) or not right[n].startswith(last)
