"""A group's rows: parity first, then the times turn by turn, then the peaks."""

from __future__ import annotations

import gc
import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Set
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
    memory_of: Callable[[Job, str], float] | None = None,
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
        _row(group, b, (nothing | measured)[b.name]) for b in group.baselines if b.name in reasons
    ]


def _measured(
    group: Group,
    able: Sequence[Baseline],
    rounds: int,
    memory_of: Callable[[Job, str], float] | None,
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
        limits = {b.name: min(b.rounds, rounds) for b in able}
        ratios = _ratios(ours, against, limits)
        wanted = {b.name for b in able if b.memory and group.memory}
        memories = _memories(group, ours, wanted, against, memory_of)
    except Exception as error:
        return found | {name: _nothing(_reason(error)) for name in against}
    for name in against:
        found[name] = Measured(ratios[name], parity[name], memories[name])
    del built, ours, result, against, one, baseline
    gc.collect()
    if group.device == "cuda":
        torch.cuda.empty_cache()
    return found


def _ratios(
    ours: Job, against: Mapping[str, Against], limits: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Time of ours over each baseline's, round by round; the slow ones leave after theirs."""
    found: dict[str, list[float]] = {name: [] for name in against}
    done = 0
    for limit in sorted({limits[name] for name in against}):
        left = [name for name in against if limits[name] > done]
        jobs = {"ours": ours} | {f"/{name}": against[name].job for name in left}
        times = interleave.seconds(jobs, rounds=limit - done)
        for name in left:
            share = against[name].share
            found[name] += list(share * np.divide(times["ours"], times[f"/{name}"]))
        done = limit
    return {name: np.array(ratios) for name, ratios in found.items()}


def _memories(
    group: Group,
    ours: Job,
    wanted: Set[str],
    against: Mapping[str, Against],
    memory_of: Callable[[Job, str], float] | None,
) -> dict[str, float]:
    """Peak of ours over each baseline's; of a bound there is none."""
    compared = [name for name, one in against.items() if one.compared and name in wanted]
    out = dict.fromkeys(against, NAN)
    if memory_of is None or not compared:
        return out
    try:
        mine = memory_of(ours, "ours")
        return out | {name: mine / memory_of(against[name].job, name) for name in compared}
    except Exception as error:  # the times, which took minutes, are kept
        warnings.warn(f"{group.case}: no peaks: {_reason(error)}", stacklevel=2)
        return out


def on_gpu(job: Job, name: str) -> float:
    """Peak of torch's allocator, in this process."""
    return peaks.peak(job, "cuda")


def memory_of(group: Group, bench: str, number: int) -> Callable[[Job, str], float] | None:
    """How the peaks of this group are measured, if this machine tells them."""
    if not peaks.is_known(group.device):
        return None
    if group.device == "cuda":
        return on_gpu
    return lambda job, name: memory.peak(bench, number, name)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"


def _nothing(why: str) -> Measured:
    return Measured(np.array([NAN]), NAN, NAN, why)


def _row(group: Group, baseline: Baseline, measured: Measured) -> BenchRow:
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
        rounds=0 if measured.failed else len(measured.times),
        goal=baseline.goal,
        failed=measured.failed,
    )
