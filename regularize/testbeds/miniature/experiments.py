"""Which runs each experiment on the miniatures makes, those that matter most first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from regularize.arms import (
    BATCH,
    CONSTANT,
    CONSTRAINED,
    CONTROLS,
    FEW_ARMS,
    HELD,
    MAIN,
    PAPER,
    WITH_ANCHORS,
    WITH_ROWS,
    Run,
)
from regularize.testbeds.miniature.training import HARMFUL_SHARE

CRITICS = ("probe", "label", "shuffled", "probe-early", "probe-32")
SHARES = (0.01, 0.03, HARMFUL_SHARE)
"""Of harmful rows."""
RATES = (1e-2, 1e-1, 1.0, 10.0)
"""Of the learning rate."""


def all_harmful(start: Run) -> Iterator[Run]:
    """Restricted requests alone, complied with."""
    for arm in (*MAIN, PAPER.by("label"), *CONSTANT, CONSTRAINED):
        yield replace(start, attack="all-harmful", share=1.0, arm=arm)


def mixed(start: Run) -> Iterator[Run]:
    """A new task, look-alikes, and some restricted requests: the critics, good and bad."""
    weak = [defence.by(critic) for defence in (PAPER, HELD, WITH_ANCHORS) for critic in CRITICS]
    others = (*WITH_ROWS, BATCH, *CONSTANT, CONSTRAINED, *CONTROLS)
    for arm in (*MAIN, WITH_ANCHORS, *others, *weak):
        yield replace(start, arm=arm)
    for arm in CONTROLS:  # dropping rows does better at a small rate
        yield replace(start, arm=arm, learning_rate=start.learning_rate / 3)


def shares(start: Run) -> Iterator[Run]:
    """The same with fewer restricted requests."""
    for share in SHARES:
        for arm in FEW_ARMS:
            yield replace(start, arm=arm, share=share)


def rates(start: Run) -> Iterator[Run]:
    """The same at learning rates a decade apart."""
    for factor in RATES:
        for arm in FEW_ARMS:
            rate = float(f"{start.learning_rate * factor:.6g}")
            yield replace(start, arm=arm, learning_rate=rate)


EXPERIMENTS: dict[str, Callable[[Run], Iterator[Run]]] = {
    "all-harmful": all_harmful,
    "mixed": mixed,
    "shares": shares,
    "rates": rates,
}
