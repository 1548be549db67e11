"""How a share changes between two answers to the same prompts."""

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from numpy import ndarray

from probes.metrics import DRAWS, LEVEL, Interval, all_alike


def paired_change(
    before: Bool[ndarray, "prompt"],
    after: Bool[ndarray, "prompt"],
    groups: Shaped[ndarray, "prompt"],
    *,
    seed: int,
) -> Interval:
    """Change of a share with a 95 % interval: percentiles over draws of whole groups.

    Where all groups change alike, draws cannot differ. But k groups that all keep to what has
    probability p do so with probability p^k: the interval then reaches as far as this allows.
    """
    change = after.astype(float) - before.astype(float)
    _, group = np.unique(groups, return_inverse=True)
    k = int(group.max()) + 1
    sums, sizes = np.bincount(group, change, k), np.bincount(group, minlength=k)
    estimate = float(change.mean())
    if np.ptp(sums / sizes) == 0:
        room = 1 - all_alike(k)
        return Interval(estimate, max(estimate - room, -1.0), min(estimate + room, 1.0))
    times: Float64[ndarray, "draw group"] = np.random.default_rng(seed).multinomial(
        k, np.full(k, 1 / k), DRAWS
    )
    drawn = (times @ sums) / (times @ sizes)
    lo, hi = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(estimate, float(lo), float(hi))
