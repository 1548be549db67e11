"""Seeds as a sample: the mean over them, and how well they know it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95


def over_seeds(
    rows: pd.DataFrame, by: Sequence[str], bounds: tuple[float, float] = (0.0, 1.0)
) -> pd.DataFrame:
    """The mean over seeds of `value`, with a 95 % interval; seeds without a value do not count.

    With k seeds of standard deviation s the interval is Student's, mean -+ t(k-1) s / sqrt(k), cut
    at the bounds. Where the seeds do not differ (one alone, or all equal) s is unknown or says
    nothing of the prompts: there it is the interval that the seeds came with, `lo` to `hi`.

    Args:
        rows: with the columns `by`, value, lo, hi; one row a group and seed.
        by: columns of a group; NaN is a value of its own.
        bounds: the least and the greatest possible value.

    Returns:
        One row a group, in order of appearance: `by`, mean, lo, hi.
    """
    found = rows.groupby(list(by), sort=False, dropna=False).agg(
        mean=("value", "mean"), lo=("lo", "min"), hi=("hi", "max"),
        known=("value", "count"), deviation=("value", "std"),
        least=("value", "min"), most=("value", "max"),
    ).reset_index()  # fmt: skip
    half = stats.t.ppf((1 + LEVEL) / 2, found["known"] - 1) * found["deviation"]
    half /= np.sqrt(found["known"])
    differ = found["most"] > found["least"]
    found["lo"] = found["lo"].mask(differ, (found["mean"] - half).clip(*bounds))
    found["hi"] = found["hi"].mask(differ, (found["mean"] + half).clip(*bounds))
    return found[[*by, "mean", "lo", "hi"]]
