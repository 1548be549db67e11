"""What a comparison is: one job of ours, and the ways in which one would do it instead.

A group names all its baselines before it builds anything, so that a row can say why it was not
measured. Ours is timed once a round for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST = 10**9
"""Rounds, where nothing is said."""
Job = Callable[[], Any]
"""Does the whole job and returns what is compared: a tensor or an array."""


class Mismatch(AssertionError):
    """Ours and the baseline's results differ by more than rounding."""


class Against(NamedTuple):
    """A baseline that is ready to run."""

    job: Job
    alike: Job | None = None
    """Ours, made to do the very same job, where the two differ by intent; it is not timed."""
    share: float = 1.0
    """Of the job, where the baseline does a part only: its time is that of the part over this."""
    compared: bool = True
    """False where the baseline is a bound and has no result."""


class Baseline(NamedTuple):
    """One way of doing it instead."""

    name: str
    make: Callable[[Any], Against]
    """From what the group has built."""
    needs: tuple[str, ...] = ()
    """Libraries that must be installed."""
    goal: float = math.nan
    """Where it is a bound: the share of it that is aimed at."""
    rounds: int = MOST
    """At most so many, where it is slow; the others then go on without it."""
    memory: bool = True
    """Whether its peak is measured: a process, and two more runs."""


class Group(NamedTuple):
    """One job of ours and all that stands beside it."""

    bench: str
    case: str
    build: Callable[[], Any]
    """Models and data, which the jobs hold."""
    ours: Callable[[Any], Job]
    """From what was built."""
    baselines: tuple[Baseline, ...]
    tolerance: float = 1e-4
    """Largest difference allowed, over the largest number of the baseline's result."""
    rounds: int = MOST
    """At most so many, where a round is long."""
    memory: bool = True
    """Whether the peaks are measured."""
    device: str = "cpu"


def lacking(group: Group, baseline: Baseline) -> str:
    """Why a comparison cannot be made on this machine; empty if it can."""
    if group.device == "cuda" and not torch.cuda.is_available():
        return "not measured: no GPU"
    missing = [name for name in baseline.needs if find_spec(name) is None]
    return f"not measured: no {', '.join(missing)}" if missing else ""


def difference(ours: Any, theirs: Any, tolerance: float) -> float:
    """Largest absolute difference.

    Raises:
        Mismatch: It is larger than `tolerance` times the largest number of theirs, or the two
            have other shapes, or numbers that are none.
    """
    a, b = _array(ours), _array(theirs)
    if a.shape != b.shape:
        raise Mismatch(f"results differ: shape {a.shape}, the baseline's {b.shape}")
    found, scale = float(np.abs(a - b).max()), float(np.abs(b).max())
    if not found <= tolerance * scale:  # also where it is not a number
        raise Mismatch(f"results differ by {found:.1e}; allowed: {tolerance:.0e} x {scale:.1e}")
    return found


def _array(result: Any) -> np.ndarray:
    if isinstance(result, Tensor):
        return result.detach().to("cpu", torch.float64).numpy()
    return np.asarray(result, np.float64)
