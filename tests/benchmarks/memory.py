"""Peak memory of one job of one group: in a process of its own, the second run.

What a peak is, and where it is known, stands in `regularize.memory`.
"""

from __future__ import annotations

from importlib import import_module

from regularize import memory


def peak(bench: str, number: int, job: str) -> float:
    """Bytes above what was held before.

    Args:
        bench: A module of this package with `groups()`.
        number: Of the group in it, from 0.
        job: `ours`, or the name of one of its baselines.
    """
    return memory.alone(_peak, bench, number, job)


def _peak(bench: str, number: int, job: str) -> int:
    group = import_module(f"tests.benchmarks.{bench}").groups()[number]
    built = group.build()
    if job == "ours":
        chosen = group.ours(built)
    else:
        (baseline,) = (one for one in group.baselines if one.name == job)
        chosen = baseline.make(built).job
    chosen()
    return memory.peak(chosen)
