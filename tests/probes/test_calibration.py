"""Calibration: Platt's map against its own objective, and what it does to probabilities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from sklearn.metrics import log_loss

from probes import calibration, metrics


def drawn(n: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and log-odds from which a map makes the ones they were drawn with."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n)
    return (rng.random(n) < expit(slope * logits + intercept)).astype(np.int64), logits


def objective(theta: np.ndarray, labels: np.ndarray, logits: np.ndarray) -> float:
    """Platt's: cross-entropy to targets drawn in by a row of each class."""
    n_1, n_0 = labels.sum(), (1 - labels).sum()
    target = np.where(labels == 1, (n_1 + 1) / (n_1 + 2), 1 / (n_0 + 2))
    t = theta[0] * logits + theta[1]
    return float(-(target * log_expit(t) + (1 - target) * log_expit(-t)).sum())


@settings(max_examples=25, deadline=None)
@given(
    slope=st.floats(0.2, 4), intercept=st.floats(-2, 2), scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_platt_is_the_minimum_of_its_objective(
    slope: float, intercept: float, scale: float, seed: int
) -> None:
    """scipy finds none lower, whatever the log-odds are measured in."""
    labels, logits = drawn(80, slope, intercept, seed)
    if len(np.unique(labels)) < 2:
        return
    found = calibration.platt(labels, logits * scale)
    ours = objective(np.array([found.slope * scale, found.intercept]), labels, logits)
    best = minimize(objective, [1.0, 0.0], (labels, logits), method="Nelder-Mead",
                    options={"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000})  # fmt: skip
    assert ours <= best.fun + 1e-6
    assert ours < objective(np.array([found.slope * scale * 1.3, found.intercept]), labels, logits)


def test_what_was_calibrated_stays_so_and_what_was_not_becomes_so() -> None:
    labels, logits = drawn(20_000, 1.0, 0.0)
    assert calibration.platt(labels, logits) == pytest.approx((1, 0), abs=0.06)
    labels, logits = drawn(20_000, 0.3, 1.0)
    assert calibration.platt(labels, logits) == pytest.approx((0.3, 1), abs=0.06)
    probability = calibration.fitted("platt", labels, logits)(logits)
    assert metrics.ece(labels, probability) < 0.02 < 0.1 < metrics.ece(labels, expit(logits))


def test_classes_that_lie_apart_give_a_finite_map() -> None:
    labels = np.repeat([0, 1], 50)
    found = calibration.platt(labels, np.where(labels == 1, 5.0, -5.0))
    assert expit(found.slope * 5 + found.intercept) == pytest.approx(51 / 52, abs=1e-3)
    assert expit(-found.slope * 5 + found.intercept) == pytest.approx(1 / 52, abs=1e-3)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="0 harmful and 4 harmless"):
        calibration.platt(np.zeros(4, dtype=np.int64), np.arange(4.0))


def test_no_fold_is_judged_by_a_map_that_saw_it() -> None:
    """Isotonic maps fit noise; a fold's own rows would make its loss nearly nothing."""
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(0, 2, 400), rng.normal(size=400)
    fold = np.arange(400) % 5
    own = calibration.fitted("isotonic", labels, logits)(logits)
    unseen = calibration.out_of_fold("isotonic", labels, logits, fold)
    assert metrics.brier(labels, own) < 0.25 < metrics.brier(labels, unseen)
    for one in range(5):
        here = fold == one
        alone = calibration.fitted("isotonic", labels[~here], logits[~here])(logits[here])
        np.testing.assert_array_equal(unseen[here], alone)


def test_bins_hold_every_prompt_and_add_up_to_the_calibration_error() -> None:
    labels, logits = drawn(503, 0.4, 0.5)
    probability = expit(logits)
    found = calibration.bins(labels, probability)
    assert sum(one.n for one in found) == 503 and len(found) == calibration.BINS
    error = sum(one.n * abs(one.probability - one.share.estimate) for one in found) / 503
    assert error == pytest.approx(metrics.ece(labels, probability, bins=calibration.BINS))
    assert [one.probability for one in found] == sorted(one.probability for one in found)
    assert all(one.share.lo <= one.share.estimate <= one.share.hi for one in found)


def test_few_prompts_have_fewer_bins_and_a_certain_error_is_no_infinity() -> None:
    labels = np.array([0, 1, 1])
    assert [one.n for one in calibration.bins(labels, np.array([0.1, 0.5, 0.9]))] == [1, 1, 1]
    assert calibration.nats(labels, np.array([1.0, 1.0, 1.0])) < 10
    expected = log_loss(labels, [0.2, 0.6, 0.7])
    assert calibration.nats(labels, np.array([0.2, 0.6, 0.7])) == pytest.approx(expected)
    assert np.isnan(calibration.nats(labels, np.array([0.2, np.nan, 0.7])))
