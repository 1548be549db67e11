"""Peak memory of a job, of ours over the baseline's: each in a process of its own, the second run.

What a peak is, and where it is known, stands in `regularize.memory`; elsewhere the ratio is NaN.
"""

from __future__ import annotations

from importlib import import_module
from itertools import islice
from typing import Literal

from regularize import memory

Job = Literal["ours", "theirs"]


def ratio(bench: str, number: int) -> float:
    """Peak of ours over the baseline's.

    Args:
        bench: A module of this package with `cases()`.
        number: Of the case in it, from 0.
    """
    if not memory.is_known():
        return float("nan")
    ours, theirs = (memory.alone(_peak, bench, number, job) for job in ("ours", "theirs"))
    return ours / theirs


def _peak(bench: str, number: int, job: Job) -> int:
    cases = import_module(f"tests.benchmarks.{bench}").cases()
    chosen = getattr(next(islice(cases, number, None)), job)
    chosen()
    return memory.peak(chosen)
