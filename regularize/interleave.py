"""Several ways of doing one thing, timed turn by turn: a noisy machine disturbs all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

DRAWS = 2000
LEVEL = 0.95


class Ratio(NamedTuple):
    """Median of ours over the median of theirs, with an interval."""

    median: float
    lo: float
    hi: float


def seconds(
    jobs: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """What each job took in each round. Who follows whom changes from round to round."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds):
        for name in order(list(jobs), turn):
            start = clock()
            jobs[name]()
            found[name].append(clock() - start)
    return found


def order(names: Sequence[str], turn: int) -> list[str]:
    """Forwards and backwards by turns, and every other time a different one begins."""
    first = turn // 2 % len(names)
    turned = [*names[first:], *names[:first]]
    return turned[::-1] if turn % 2 else turned


def ratio(ours: Sequence[float], theirs: Sequence[float], *, seed: int = 0) -> Ratio:
    """Ratio of medians, with its 95 % bootstrap interval over rounds.

    Rounds are drawn whole, ours with theirs, for what disturbs a round disturbs both. The medians
    leave alone what disturbs a few rounds.

    Args:
        ours: Seconds of each round.
        theirs: The same of the baseline, of the same rounds.
        seed: Draws the rounds.
    """
    times = np.array([ours, theirs])
    drawn = np.random.default_rng(seed).integers(times.shape[1], size=(DRAWS, times.shape[1]))
    a, b = np.median(times[:, drawn], axis=2)
    lo, hi = np.quantile(a / b, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mine, other = np.median(times, axis=1)
    return Ratio(float(mine / other), float(lo), float(hi))
