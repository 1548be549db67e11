"""The miniatures' tasks by exact match: `miniature`, and `miniature:rotate`, the new one.

Fresh questions of the part of the language that no training draws from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from probes.errors import InputError
from regularize.specs import Spec
from regularize.utilities import Question, Utility

DEFAULT = 200


@dataclass(frozen=True)
class Miniature(Utility):
    """Word tasks: `miniature[:rotate]`."""

    new: bool
    """Whether it is the task that no miniature was trained on."""

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """It takes no options."""
        spec.check()
        if spec.where not in ("", "rotate"):
            raise InputError(f"{spec.text}: write miniature, or miniature:rotate")
        return cls(spec.text, spec.where == "rotate")

    def questions(self, n: int | None, seed: int) -> list[Question]:
        """There is no end of them: None is 200."""
        from regularize.testbeds.miniature.evaluation import draw

        kind = "new-task" if self.new else "utility"
        rows = draw(kind, n or DEFAULT, seed=seed, split="test")
        return [Question(row.text, row.answer) for row in rows]

    def correct(self, question: Question, answer: str) -> bool:
        """Whether it is just the right answer."""
        return answer.strip() == question.answer

    def decided(self, question: Question, beginning: str) -> bool:
        """Where it is wrong."""
        said = beginning.lstrip()
        return not question.answer.startswith(said) and said.rstrip() != question.answer
