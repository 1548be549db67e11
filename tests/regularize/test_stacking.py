"""Two opinions of one risk: where the judge is asked, and how both are weighed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from scipy.special import expit, logit

from regularize import stacking


def opinions(n: int = 400, seed: int = 0):
    """Labels, a fair probe, and a judge that errs at a tenth."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    p = expit(1.5 * rng.standard_normal(n) + 1.2 * (2 * labels - 1))
    s = np.where(rng.random(n) < 0.1, 1 - labels, labels).astype(float)
    return labels, p, s


def test_the_weights_are_those_of_penalised_logistic_regression():
    """Against the objective itself, written down anew and minimised without gradients."""
    labels, p, s = opinions()
    found = stacking.fit(labels, p, s)

    def objective(theta):
        z = theta[0] * logit(p) + theta[1] * s + theta[2]
        return (
            stacking.STRENGTH * (np.logaddexp(0, z) - labels * z).sum() + (theta[:2] ** 2).sum() / 2
        )

    wanted = minimize(objective, np.zeros(3), method="Nelder-Mead",
                      options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000}).x  # fmt: skip
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    np.testing.assert_allclose(
        found(p, s), expit(logit(p) * wanted[0] + s * wanted[1] + wanted[2]), atol=1e-4
    )
    assert found.probe > 0.5 and found.judge > 1  # both tell something here


def test_a_judge_that_says_nothing_weighs_nothing():
    labels, p, s = opinions(4000)
    blind = np.random.default_rng(1).permutation(s)
    assert abs(stacking.fit(labels, p, blind).judge) < 0.3 < stacking.fit(labels, p, s).judge


def test_of_one_class_there_are_no_weights():
    with pytest.raises(ValueError, match="0 harmful and 3 harmless"):
        stacking.fit(np.zeros(3, dtype=np.int64), np.full(3, 0.5), np.zeros(3))


shares = st.floats(0, 1, allow_subnormal=False)


@given(arrays(np.float64, 20, elements=shares), arrays(np.float64, 20, elements=shares), shares)
def test_only_what_is_asked_changes(p, s, lo):
    lo, hi = min(lo, 1 - lo), max(lo, 1 - lo)
    asked = stacking.unsure(p, lo, hi)
    np.testing.assert_array_equal(asked, [lo <= one <= hi for one in p])
    for weights in (None, stacking.Weights(1.0, 2.0, -1.0)):
        before = p.copy()
        found = stacking.combined(p, s[asked], asked, weights)
        np.testing.assert_array_equal(p, before)
        np.testing.assert_array_equal(found[~asked], p[~asked])
        wanted = s if weights is None else weights(p, s)
        np.testing.assert_array_equal(found[asked], wanted[asked])
        assert ((found >= 0) & (found <= 1)).all()
