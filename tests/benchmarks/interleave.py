"""Two ways of doing one thing, side by side: their times, turn by turn, and their results."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from regularize import interleave


class Case(NamedTuple):
    """One comparison. `ours` and `theirs` each do the whole job and return what is compared."""

    bench: str
    case: str
    baseline: str
    ours: Callable[[], np.ndarray]
    theirs: Callable[[], np.ndarray]
    parity: Callable[[], float] | None = None
    """Largest difference, where the two jobs are not the same: of what they have in common."""
    share: float = 1.0
    """Of the job, where the baseline does a part only: its time is that of the part over this."""


class Ratio(NamedTuple):
    """Time of ours over the baseline's: median over rounds, with the quartiles of the rounds."""

    median: float
    lo: float
    hi: float
    parity: float
    """Largest absolute difference between the two results."""


def measure(case: Case, *, rounds: int) -> Ratio:
    """Check parity once, run both once to warm up, then time `rounds` interleaved rounds."""
    parity = float(np.abs(case.ours() - case.theirs()).max())
    if case.parity is not None:
        parity = case.parity()
    times = interleave.seconds({"ours": case.ours, "theirs": case.theirs}, rounds=rounds)
    ratios = case.share * np.divide(times["ours"], times["theirs"])
    lo, median, hi = np.quantile(ratios, [0.25, 0.5, 0.75])
    return Ratio(float(median), float(lo), float(hi), parity)
