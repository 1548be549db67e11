"""The mean over seeds and its interval: the textbook's, done by hand and row by row."""

import math
import statistics

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.seeds import over_seeds

T = {2: 12.706204736, 3: 4.302652730, 4: 3.182446305, 5: 2.776445105}
"""97.5 % points of Student's t with k-1 degrees of freedom, from a printed table."""
SHARE = st.floats(0, 1, allow_subnormal=False)


def rows(values, group="a", lo=0.0, hi=1.0):
    return pd.DataFrame({
        "group": group, "seed": range(len(values)), "value": values, "lo": lo, "hi": hi
    })  # fmt: skip


@given(st.lists(SHARE, min_size=2, max_size=5).filter(lambda values: len(set(values)) > 1))
@settings(deadline=None)
def test_it_is_students_interval_within_the_bounds(values):
    found = over_seeds(rows(values), ["group"]).iloc[0]
    mean = statistics.fmean(values)
    half = T[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    assert found["mean"] == pytest.approx(mean)
    assert found["lo"] == pytest.approx(max(0, mean - half), abs=1e-9)
    assert found["hi"] == pytest.approx(min(1, mean + half), abs=1e-9)
    free = over_seeds(rows(values), ["group"], bounds=(-math.inf, math.inf)).iloc[0]
    assert free["lo"] == pytest.approx(mean - half, abs=1e-9)


def test_it_holds_the_mean_of_another_sample_95_times_of_100():
    rng = np.random.default_rng(0)
    table = pd.concat([rows(rng.normal(0.5, 0.01, 4), group=i) for i in range(2000)])
    found = over_seeds(table, ["group"])
    inside = (found["lo"] <= 0.5) & (found["hi"] >= 0.5)
    assert inside.mean() == pytest.approx(0.95, abs=0.015)
    # The control: an interval of two standard errors is too narrow for four seeds.
    errors = table.groupby("group")["value"].sem().to_numpy()
    assert (abs(found["mean"] - 0.5) < 1.96 * errors).mean() < 0.92


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1, 0.1], [0.0, 0.0], [0.1, math.nan]])
def test_seeds_that_do_not_differ_keep_the_interval_that_they_came_with(values):
    found = over_seeds(rows(values, lo=0.04, hi=0.2), ["group"]).iloc[0]
    assert found[["mean", "lo", "hi"]].tolist() == pytest.approx([values[0], 0.04, 0.2])


def test_a_seed_without_a_value_does_not_count():
    with_hole, without = (
        over_seeds(rows(v), ["group"]) for v in ([0.1, math.nan, 0.3], [0.1, 0.3])
    )
    pd.testing.assert_frame_equal(with_hole, without)
    nothing = over_seeds(rows([math.nan] * 2, lo=math.nan, hi=math.nan), ["group"]).iloc[0]
    assert nothing[["mean", "lo", "hi"]].isna().all()


def test_groups_come_in_order_of_appearance_and_nan_is_one_of_them():
    table = pd.concat([rows([0.1, 0.2], group=g) for g in (0.3, math.nan, 0.1)])
    assert over_seeds(table, ["group"])["group"].tolist() == pytest.approx(
        [0.3, math.nan, 0.1], nan_ok=True
    )
