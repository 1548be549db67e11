"""What no other choice beats in both of two aims: the Pareto front."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def front(more: npt.ArrayLike, less: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which points no other dominates.

    A point dominates another if it is no worse in both aims and better in one. Points that agree in
    both do not dominate each other. One that lacks a value is on no front and dominates nothing.

    Args:
        more: What is to be large, one a point.
        less: What is to be small.

    Returns:
        One a point.
    """
    x, y = np.asarray(more, dtype=float), np.asarray(less, dtype=float)
    known = ~(np.isnan(x) | np.isnan(y))
    found = np.zeros(len(x), dtype=bool)
    # From the largest `more` on, the smallest `less` first: what comes later dominates nothing.
    order = np.lexsort((y, -x))
    best, at = np.inf, np.nan
    for i in order[known[order]]:
        if y[i] < best or (y[i] == best and x[i] == at):
            found[i], best, at = True, y[i], x[i]
    return found
