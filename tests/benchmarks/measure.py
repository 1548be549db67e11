"""A group's rows: parity first, then the times turn by turn, then the peaks."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from analysis.results import BenchRow
from regularize import interleave
from regularize import memory as peaks
from tests.benchmarks import memory, place
from tests.benchmarks.cases import Against, Baseline, Group, Job, difference, lacking

NAN = math.nan


class Measured(NamedTuple):
    """Of one baseline: numbers, or why there are none."""

    times: np.ndarray
    """Ratio of each round."""
    parity: float
    memory: float
    failed: str = ""


def rows(
    group: Group,
    chosen: Sequence[str],
    *,
    rounds: int,
    memory_of: Callable[[Job | None, str], float] | None = None,
) -> list[BenchRow]:
    """The rows of a group's chosen baselines; one that fails says why, and the others go on.

    Args:
        group: What is compared.
        chosen: Names of baselines.
        rounds: Interleaved rounds, unless the group has fewer.
        memory_of: Peak (bytes) of a job, by its name (`ours`, or the baseline's) where it runs in a
            process of its own; None: memory is not measured.
    """
    rounds = min(rounds, group.rounds)
    reasons = {b.name: lacking(group, b) for b in group.baselines if b.name in chosen}
    able = [b for b in group.baselines if reasons.get(b.name) == ""]
    measured = _measured(group, able, rounds, memory_of) if able else {}
    nothing = {name: _nothing(why) for name, why in reasons.items() if why}
    return [
        _row(group, b, (nothing | measured)[b.name], rounds)
        for b in group.baselines
        if b.name in reasons
    ]


def _measured(
    group: Group,
    able: Sequence[Baseline],
    rounds: int,
    memory_of: Callable[[Job | None, str], float] | None,
) -> dict[str, Measured]:
    against: dict[str, Against] = {}
    found: dict[str, Measured] = {}
    parity: dict[str, float] = {}
    try:
        built = group.build()
        ours = group.ours(built)
        result = ours()
    except Exception as error:
        return {b.name: _nothing(_reason(error)) for b in able}
    for baseline in able:
        try:
            one = baseline.make(built)
            theirs = one.job()
            mine = result if one.alike is None else one.alike()
            parity[baseline.name] = NAN
            if one.compared:
                parity[baseline.name] = difference(mine, theirs, group.tolerance)
            against[baseline.name] = one
        except Exception as error:
            found[baseline.name] = _nothing(_reason(error))
    try:
        jobs = {"ours": ours} | {f"/{name}": one.job for name, one in against.items()}
        times = interleave.seconds(jobs, rounds=rounds)
        memories = _memories(group, ours, against, memory_of)
    except Exception as error:
        return found | {name: _nothing(_reason(error)) for name in against}
    for name, one in against.items():
        ratios = one.share * np.divide(times["ours"], times[f"/{name}"])
        found[name] = Measured(ratios, parity[name], memories[name])
    del built, ours, result, against, jobs
    gc.collect()
    if group.device == "cuda":
        torch.cuda.empty_cache()
    return found


def _memories(
    group: Group,
    ours: Job,
    against: dict[str, Against],
    memory_of: Callable[[Job | None, str], float] | None,
) -> dict[str, float]:
    """Peak of ours over each baseline's; of a bound there is none."""
    compared = [name for name, one in against.items() if one.compared]
    out = dict.fromkeys(against, NAN)
    if memory_of is None or not group.memory or not compared:
        return out
    try:
        mine = memory_of(ours, "ours")
        return out | {name: mine / memory_of(against[name].job, name) for name in compared}
    except Exception as error:  # the times, which took minutes, are kept
        warnings.warn(f"{group.case}: no peaks: {_reason(error)}", stacklevel=2)
        return out


def on_gpu(job: Job | None, name: str) -> float:  # noqa: ARG001
    """Peak of torch's allocator, in this process."""
    assert job is not None
    return peaks.peak(job, "cuda")


def memory_of(group: Group, bench: str, number: int) -> Callable[[Job | None, str], float] | None:
    """How the peaks of this group are measured, if this machine tells them."""
    if not peaks.is_known(group.device):
        return None
    if group.device == "cuda":
        return on_gpu
    return lambda job, name: memory.peak(bench, number, name)  # noqa: ARG005


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _nothing(why: str) -> Measured:
    return Measured(np.array([NAN]), NAN, NAN, why)


def _row(group: Group, baseline: Baseline, measured: Measured, rounds: int) -> BenchRow:
    lo, median, hi = np.quantile(measured.times, [0.25, 0.5, 0.75])
    return BenchRow(
        bench=group.bench,
        case=group.case,
        baseline=baseline.name,
        time_ratio=float(median),
        time_ratio_lo=float(lo),
        time_ratio_hi=float(hi),
        memory_ratio=measured.memory,
        parity=measured.parity,
        where="" if measured.failed.startswith("not measured") else place.of(group.device),
        rounds=0 if measured.failed else rounds,
        goal=baseline.goal,
        failed=measured.failed,
    )
