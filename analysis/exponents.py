"""The exponent b of a quantity that grows as size^b, with its interval."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
LEAST = 3
"""Sizes that a slope with an interval needs."""


class Exponent(NamedTuple):
    """Slope of log value over log size."""

    value: float
    lo: float
    """Lower end of the 95 % interval: Student's t of the residuals. It says how straight the
    points lie, not how the rounds scatter."""
    hi: float


def exponent(sizes: np.ndarray, values: np.ndarray) -> Exponent:
    """Least squares of the logarithms, over the sizes whose value is known and positive.

    All NaN where those are fewer than `LEAST`.
    """
    known = np.isfinite(values) & (values > 0)
    if known.sum() < LEAST:
        return Exponent(math.nan, math.nan, math.nan)
    x, y = np.log(sizes[known]), np.log(values[known])
    fit = stats.linregress(x, y)
    # Of values that are all the same scipy gives no error; they lie on their line.
    error = 0.0 if np.ptp(y) == 0 else float(fit.stderr)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(y) - 2)) * error
    return Exponent(float(fit.slope), float(fit.slope - half), float(fit.slope + half))


SLACK = 0.15
"""Of an exponent: caches and fixed costs bend the points by so much."""


def in_words(found: Exponent) -> str:
    """Such as `1.02 [0.98, 1.06]`."""
    value, lo, hi = (f"{round(end, 2) + 0.0:.2f}" for end in found)  # no -0.00
    return f"{value} [{lo}, {hi}]"


def too_fast(lo: float, expected: float) -> bool:
    """Whether even the lower end is clearly above what must be; not where either is unknown."""
    return lo > expected + SLACK
