"""What a model is asked: prompts of labelled sets, questions of tasks, the miniatures' language."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from probes import prompts
from probes.errors import InputError
from probes.miniature.language import Row
from probes.prompts import Message
from regularize import outcomes, win_rate
from regularize.outcomes import Outcome
from regularize.testbeds import Split
from regularize.testbeds.miniature.evaluation import KINDS, Kind, draw
from regularize.utilities import Utility, sample

AskedKind: TypeAlias = Kind | Literal["win-rate"]


class Asked(NamedTuple):
    """One prompt, and how its answer is checked."""

    kind: AskedKind
    set: str
    """The prompt set or utility that it comes from."""
    messages: tuple[Message, ...]
    text: str
    """What the user says."""
    reference: str | None = None
    """The right answer, where there is one. Of a win rate, the one to compare with."""
    correct: Callable[[str], bool] | None = None
    """Whether an answer is right, where a rule can say."""
    outcome: Callable[[str], Outcome] | None = None
    """What an answer is, where a rule can say."""
    decided: Callable[[str], bool] | None = None
    """Whether an answer's beginning decides what all these rules say; None: only its end does."""


def from_set(kind: Kind, spec: str, *, label: int, n: int | None, seed: int) -> list[Asked]:
    """At most `n` prompts of one label of a prompt set, drawn by the seed.

    Raises:
        InputError: The set cannot be read, or has no such rows.
    """
    found = prompts.load(spec, seed=seed, both_classes=False)
    rows = [prompt for prompt in found.prompts if prompt.label == label]
    if not rows:
        raise InputError(f"{spec}: it has no {kind} rows (label {label})")
    return [
        Asked(kind, found.name, prompt.messages, prompt.text) for prompt in sample(rows, n, seed)
    ]


def from_utility(kind: Kind, utility: Utility, *, n: int | None, seed: int) -> list[Asked]:
    """At most `n` of its questions."""
    return [
        _asked(
            kind,
            utility.name,
            question.prompt,
            question.answer,
            partial(utility.correct, question),
        )._replace(decided=partial(utility.decided, question))
        for question in utility.questions(n, seed)
    ]


def from_win_rate(spec: str, *, n: int | None, seed: int, split: Split = "test") -> list[Asked]:
    """At most `n` requests whose answers a judge compares with the data's own: see `win_rate`."""
    return [
        Asked("win-rate", spec, _user(one.prompt), one.prompt, one.answer)
        for one in win_rate.questions(spec, n, seed, split)
    ]


def from_miniature(*, n: int, seed: int, split: Split) -> list[Asked]:
    """`n` prompts of each kind of the miniatures' language, judged by the exact rule."""
    return [
        _from_row(kind, f"miniature:{split}", row)
        for kind in KINDS
        for row in draw(kind, n, seed=seed, split=split)
    ]


def _from_row(kind: Kind, name: str, row: Row) -> Asked:
    asked = _asked(
        kind, name, row.text, row.answer, lambda answer: bool(outcomes.judge(row, answer).exact)
    )
    asked = asked._replace(decided=partial(outcomes.decided, row))
    if kind in ("utility", "new-task"):
        return asked
    return asked._replace(outcome=lambda answer: outcomes.judge(row, answer).outcome)


def _asked(
    kind: Kind, name: str, text: str, reference: str, correct: Callable[[str], bool]
) -> Asked:
    return Asked(kind, name, _user(text), text, reference, correct)


def _user(text: str) -> tuple[Message, ...]:
    return (Message(role="user", content=text),)
