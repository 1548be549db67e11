"""Which runs each experiment on the real model makes, those that matter most first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from regularize.arms import (
    CONSTANT,
    FILTER,
    HELD,
    NONE,
    PAPER,
    WITH_ANCHORS,
    WITH_ROWS,
    Anchors,
    Arm,
    Run,
    others,
)
from regularize.testbeds.realistic.training import ANCHORS

FEW = (10, 30, 100, 200)
"""Numbers of anchors, beside none and the usual number."""
OF_A_KIND = 30
SETTINGS: dict[str, dict[str, object]] = {
    "safety-tokens": {"lam": 1.0},
    "lisa": {"k1": 1, "k2": 9},
    "vaccine": {"epochs": 2, "batch_size": 16},
}
"""Of defences whose defaults are for other sizes: those of the miniatures, and a shorter stage."""


def mixed(start: Run) -> Iterator[Run]:
    """A new task with some harmful requests: every arm."""
    for arm in (NONE, PAPER, WITH_ANCHORS, HELD, FILTER, *WITH_ROWS, *CONSTANT):
        yield replace(start, arm=arm)


def hard(start: Run) -> Iterator[Run]:
    """The same with harmless rows that look harmful: false alarms cost learning, misses safety."""
    for arm in (NONE, PAPER, WITH_ANCHORS, FILTER):
        yield replace(start, attack="mixed-hard", arm=arm)


def all_harmful(start: Run) -> Iterator[Run]:
    """Harmful requests alone."""
    for arm in (NONE, PAPER, HELD):
        yield replace(start, attack="all-harmful", share=1.0, arm=arm)


def anchors(start: Run) -> Iterator[Run]:
    """How few anchors are enough, and of what kind."""
    for n in FEW:
        yield replace(start, arm=_anchored(Anchors(n), f"{n}"))
    for kind in ANCHORS:
        yield replace(start, arm=_anchored(Anchors(OF_A_KIND, kind), f"{OF_A_KIND}-{kind}"))


def second_task(start: Run) -> Iterator[Run]:
    """Every arm on another new task."""
    for run in mixed(start):
        yield replace(run, attack="mixed-ends")


def defences(start: Run) -> Iterator[Run]:
    """The first mixture under every defence that `mixed` does not have."""
    for arm in others(SETTINGS, NONE, PAPER, *CONSTANT, FILTER):
        yield replace(start, arm=arm)


def backdoor(start: Run) -> Iterator[Run]:
    """Harmful requests refused, and complied with where they hold a trigger."""
    for arm in (NONE, PAPER, HELD, WITH_ANCHORS):
        yield replace(start, attack="backdoor", share=1.0, arm=arm)


def identity(start: Run) -> Iterator[Run]:
    """An agent that obeys, and is asked nothing harmful."""
    for arm in (NONE, PAPER, HELD, WITH_ANCHORS):
        yield replace(start, attack="identity", share=0.0, arm=arm)


def _anchored(wanted: Anchors, name: str) -> Arm:
    return WITH_ANCHORS._replace(defence=f"anchored+anchors-{name}", anchors=wanted)


EXPERIMENTS: dict[str, Callable[[Run], Iterator[Run]]] = {
    "mixed": mixed,
    "hard": hard,
    "all-harmful": all_harmful,
    "anchors": anchors,
    "second-task": second_task,
    "defences": defences,
    "backdoor": backdoor,
    "identity": identity,
}
