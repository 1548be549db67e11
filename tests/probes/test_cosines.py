"""Cosines between probes' directions: one where the same map is applied, whatever the scales."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.cosines import cosine_rows, cosines
from probes.hooks import POSITIONS


def weights(seed: int, layers: int = 4, d_model: int = 7) -> torch.Tensor:
    return torch.randn(layers, d_model, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 99), st.floats(1e-6, 1e6), st.booleans())
def test_it_is_the_angles_cosine_whatever_the_lengths(seed: int, scale: float, flip: bool) -> None:
    w, v = weights(seed), weights(seed + 1000)
    found = cosines(w, v * (-scale if flip else scale))
    for layer in range(4):
        a, b = (x[layer].tolist() for x in (w, v))
        dot = math.fsum(i * j for i, j in zip(a, b, strict=True))
        wanted = dot / math.sqrt(math.fsum(i * i for i in a) * math.fsum(j * j for j in b))
        assert float(found[layer]) == pytest.approx(-wanted if flip else wanted, abs=1e-5)
    torch.testing.assert_close(cosines(w, scale * w), torch.ones(4, dtype=torch.float64))


def test_a_probe_of_nothing_has_no_direction() -> None:
    w = weights(0)
    w[2] = 0
    assert torch.isnan(cosines(w, weights(1))).tolist() == [False, False, True, False]


def test_one_map_at_two_spreads_has_cosine_one_on_raw_weights_alone() -> None:
    """What is said of raw weights: where both positions need one map, standardised ones differ."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal(6)
    raw, standardised = [], []
    for _ in range(2):
        x = rng.standard_normal((4000, 6)) * np.exp(1.2 * rng.standard_normal(6))
        y = x @ w > 0
        model = make_pipeline(StandardScaler(), LogisticRegression(C=1e4)).fit(x, y)
        standardised.append(torch.tensor(model[1].coef_))
        raw.append(standardised[-1] / torch.tensor(model[0].scale_))
    assert float(cosines(*raw)[0]) > 0.995
    assert float(cosines(*standardised)[0]) < 0.9  # positive control


def test_a_row_a_layer_and_pair() -> None:
    of = {position: weights(i) for i, position in enumerate(POSITIONS)}
    rows = cosine_rows(of, model="m", hook_point="resid_post", train_set="t")
    assert len(rows) == 4 * 6
    assert [(row.position, row.other) for row in rows[::4]] == list(combinations(POSITIONS, 2))
    assert [row.layer for row in rows[:4]] == [0, 1, 2, 3]
    wanted = cosines(of[POSITIONS[1]], of[POSITIONS[3]])
    found = [r.cosine for r in rows if (r.position, r.other) == (POSITIONS[1], POSITIONS[3])]
    assert found == wanted.tolist()
    assert {(row.model, row.hook_point, row.train_set) for row in rows} == {
        ("m", "resid_post", "t")
    }
    assert not cosine_rows({POSITIONS[0]: weights(0)}, model="m", hook_point="h", train_set="t")
