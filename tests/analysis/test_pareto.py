"""The Pareto front, against a comparison of every point with every other."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from analysis.pareto import front

SHARE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan]), st.floats(0, 1))
POINTS = st.lists(st.tuples(SHARE, SHARE), max_size=30)


def by_hand(points: list[tuple[float, float]]) -> list[bool]:
    """O(n^2), as the definition says."""

    def dominates(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    return [
        not any(map(math.isnan, one)) and not any(dominates(other, one) for other in points)
        for one in points
    ]


@given(POINTS)
def test_it_is_what_nothing_dominates(points: list[tuple[float, float]]) -> None:
    found = front([x for x, _ in points], [y for _, y in points])
    assert found.tolist() == by_hand(points)


@given(POINTS.filter(lambda points: any(not math.isnan(x + y) for x, y in points)))
def test_something_is_on_it_and_the_order_of_points_does_not_matter(
    points: list[tuple[float, float]],
) -> None:
    x, y = np.array(points).T
    assert front(x, y).any()
    np.testing.assert_array_equal(front(x, y), front(x[::-1], y[::-1])[::-1])


def test_by_eye() -> None:
    more, less = [0.9, 0.8, 0.9, 0.7, 0.95, math.nan], [0.1, 0.0, 0.1, 0.0, 0.5, 0.0]
    assert front(more, less).tolist() == [True, True, True, False, True, False]
    assert front([], []).tolist() == []
