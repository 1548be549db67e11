"""The rows of the speed evidence: beside what one would use instead, and how it grows."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One job done in two ways, side by side in one interleaved run."""

    bench: str
    """What is compared, such as capture."""
    case: str
    """The sizes."""
    baseline: str
    """What one would use instead."""
    time_ratio: float
    """Time of ours over the baseline's, median over rounds; NaN where it was not measured."""
    time_ratio_lo: float
    """Lower quartile over rounds."""
    time_ratio_hi: float
    """Upper quartile over rounds."""
    memory_ratio: float
    """Peak memory of ours over the baseline's; NaN where it was not measured."""
    parity: float
    """Largest absolute difference between the two results; NaN where there is none to compare."""
    where: str = ""
    """Device, threads and version of torch; empty where a table does not say."""
    rounds: int = 0
    """Interleaved rounds; 0 where there were none, or a table does not say."""
    goal: float = math.nan
    """Where the baseline is a bound: the share of it that is aimed at, of 1 / time_ratio."""
    failed: str = ""
    """Why there are no numbers, such as `not measured: no GPU`; empty if there are."""


@dataclass(frozen=True, slots=True)
class GrowthRow:
    """Time and memory of one job at one size, and the exponent over all sizes of one quantity."""

    bench: str
    """What grows: capture, fit, loss."""
    quantity: str
    """What it grows with, such as prompts; all else stays."""
    size: float
    """Of that quantity."""
    time_ratio: float
    """Time over that of the smallest size, median over interleaved rounds."""
    time_ratio_lo: float
    """Lower quartile over rounds."""
    time_ratio_hi: float
    """Upper quartile over rounds."""
    memory_mb: float
    """Peak memory above what was there before and without the output, MiB; NaN: not measured."""
    time_exponent: float
    """b of time ~ size^b, least squares of the logarithms over all sizes."""
    time_exponent_lo: float
    """Lower end of its 95 % interval."""
    time_exponent_hi: float
    """Upper end of it."""
    time_expected: float
    """The exponent that the work itself has."""
    memory_exponent: float
    """As `time_exponent`, of the peak; NaN where it was not measured."""
    memory_exponent_lo: float
    """Lower end of its 95 % interval."""
    memory_exponent_hi: float
    """Upper end of it."""
    memory_expected: float
    """The exponent that the memory must have at most."""
    where: str
    """Device, threads and version of torch."""
    rounds: int
    """Interleaved rounds."""


TABLES: dict[str, type] = {"bench": BenchRow, "growth": GrowthRow}
