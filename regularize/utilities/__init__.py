"""Utilities: can the model still do, or has it learnt, a task? One file each; its name is its name.

A utility is written `name[:where][?option=value&...]`, as in `gsm8k` or `exact:mine.jsonl`. To add
one, add a file here with one `Utility`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Self, TypeVar

from probes.errors import InputError
from regularize import plugins
from regularize.specs import Spec

T = TypeVar("T")


class Question(NamedTuple):
    """What is asked, and the right answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Utility(ABC):
    """Questions whose answers a rule can check."""

    name: str
    """As it was asked for."""

    @classmethod
    @abstractmethod
    def of(cls, spec: Spec) -> Self:
        """The utility that a person asked for.

        Raises:
            InputError: An option is unknown, or what it names cannot be read.
        """

    @abstractmethod
    def questions(self, n: int | None, seed: int) -> list[Question]:
        """At most `n` different questions, drawn by the seed; None for all there are."""

    @abstractmethod
    def correct(self, question: Question, answer: str) -> bool:
        """Whether an answer is right."""

    def decided(self, question: Question, beginning: str) -> bool:  # noqa: ARG002
        """Whether every answer that begins so is as right or as wrong as the beginning itself.

        Such an answer may be cut there. As it stands: never known.
        """
        return False


def open(spec: str) -> Utility:
    """A utility by what a person wrote.

    Raises:
        InputError: There is no such utility, or it cannot be read.
    """
    named = Spec.parse(spec)
    known = plugins.found(sys.modules[__name__], Utility)  # type: ignore[type-abstract]
    if named.name not in known:
        raise InputError(f"--utility {spec}: there is none of that name, only {', '.join(known)}")
    return known[named.name].of(named)


def sample(rows: Sequence[T], n: int | None, seed: int) -> list[T]:
    """At most `n` of the rows, drawn by the seed, in their order."""
    if n is None or n >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(Random(f"utility/{seed}").sample(range(len(rows)), n))]
