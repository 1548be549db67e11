"""Which runs each of the papers' experiments makes, those that matter most first.

The paper's table has SFT, Constrained-SFT, Vaccine, LISA, Antidote and its own method on each of
five models; here stand all our defences, with their own papers' hyper-parameters, but none that
needs a base model where none is published. Its attacks by identity shifting and by backdoor are not
here: their data are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from regularize.arms import (
    CONSTANT,
    CONSTRAINED,
    HELD,
    NONE,
    PAPER,
    WITH_ANCHORS,
    Run,
    others,
)
from regularize.testbeds.paper import BASES
from regularize.testbeds.paper.training import HALF, SHARES

RATES = (1.0, 0.1, 0.01, 0.001)
"""Of the learning rate: 2e-4 to 2e-7."""
FIRST = (NONE, PAPER, CONSTRAINED)


def all_harmful(start: Run) -> Iterator[Run]:
    """HEx-PHI alone, on which it is evaluated too."""
    for arm in (*FIRST, HELD, *others({}, *FIRST, *CONSTANT), *CONSTANT):
        if "base" not in arm.method.needs or start.model in BASES:
            yield replace(start, arm=arm)


def disjoint(start: Run) -> Iterator[Run]:
    """Half of it, and evaluated on the other half."""
    for run in all_harmful(start):
        yield replace(run, attack=HALF)


def shares(start: Run) -> Iterator[Run]:
    """Alpaca, with few harmful rows."""
    for share in SHARES:
        for arm in (*FIRST, WITH_ANCHORS):
            yield replace(start, attack="alpaca", share=share, arm=arm)


def rates(start: Run) -> Iterator[Run]:
    """HEx-PHI alone, at learning rates a decade apart."""
    for factor in RATES:
        for arm in FIRST:
            rate = float(f"{start.learning_rate * factor:.6g}")
            yield replace(start, arm=arm, learning_rate=rate)


EXPERIMENTS: dict[str, Callable[[Run], Iterator[Run]]] = {
    "all-harmful": all_harmful,
    "disjoint": disjoint,
    "shares": shares,
    "rates": rates,
}
