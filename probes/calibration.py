"""Calibration: a probe's probability of harm made to be what it says, and how far it is.

Platt's map (Platt 1999) sends log-odds t to a t + c, with a and c fitted by logistic regression on
log-odds that the probe gave to prompts it was not fitted on. Being linear it folds into the probe.
Its targets are drawn in by one row of each class, (n_1 + 1) / (n_1 + 2) and 1 / (n_0 + 2), so that
classes that lie apart do not make a infinite. The isotonic map is what any monotone one could do;
it is no linear map, and stands in the tables alone.

On the train set itself each fold is judged by the map fitted on the other folds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from probes import metrics

Calibration = Literal["none", "platt", "isotonic"]
CALIBRATIONS: tuple[Calibration, ...] = get_args(Calibration)
BINS = 10
CLIP = 1e-6
"""A probability of 0 or 1 for what then happens would cost infinitely many nats."""

Map = Callable[[Float64[ndarray, "prompt"]], Float64[ndarray, "prompt"]]
"""Log-odds -> probability of harm."""


class Platt(NamedTuple):
    """t -> slope t + intercept."""

    slope: float
    intercept: float


class Bin(NamedTuple):
    """Prompts of like probability."""

    n: int
    probability: float
    """Mean."""
    share: metrics.Interval
    """Of harmful ones; Clopper-Pearson interval."""


def platt(labels: Int64[ndarray, "prompt"], logits: Float64[ndarray, "prompt"]) -> Platt:
    """Platt's map, from log-odds of prompts that the probe was not fitted on.

    Raises:
        ValueError: There is one class only.
    """
    n_1, n_0 = int((labels == 1).sum()), int((labels == 0).sum())
    if not n_1 or not n_0:
        raise ValueError(f"calibration needs both classes, not {n_1} harmful and {n_0} harmless")
    target = np.where(labels == 1, (n_1 + 1) / (n_1 + 2), 1 / (n_0 + 2))
    scale = float(np.std(logits)) or 1.0  # scikit-learn's solver likes numbers near 1
    t = np.tile(logits / scale, 2)[:, None]
    fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
        t,
        np.repeat([1, 0], len(labels)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    return Platt(float(fit.coef_[0, 0]) / scale, float(fit.intercept_[0]))


def fitted(
    kind: Calibration, labels: Int64[ndarray, "prompt"], logits: Float64[ndarray, "prompt"]
) -> Map:
    """A calibration as a map to probabilities."""
    if kind == "none":
        return expit
    if kind == "platt":
        slope, intercept = platt(labels, logits)
        return lambda t: expit(slope * t + intercept)
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(logits, labels)
    return isotonic.predict


def out_of_fold(
    kind: Calibration,
    labels: Int64[ndarray, "prompt"],
    logits: Float64[ndarray, "prompt"],
    fold: Int64[ndarray, "prompt"],
) -> Float64[ndarray, "prompt"]:
    """Each fold's probabilities by the map that was fitted on the other folds."""
    found = np.empty(len(labels))
    for one in np.unique(fold):
        here = fold == one
        found[here] = fitted(kind, labels[~here], logits[~here])(logits[here])
    return found


def nats(labels: Int64[ndarray, "prompt"], probabilities: Float[ndarray, "prompt"]) -> float:
    """Mean negative log-likelihood; NaN where a probability is."""
    if np.isnan(probabilities).any() or not len(labels):
        return float("nan")
    return float(log_loss(labels, np.clip(probabilities, CLIP, 1 - CLIP), labels=[0, 1]))


def bins(
    labels: Int64[ndarray, "prompt"], probabilities: Float[ndarray, "prompt"]
) -> Sequence[Bin]:
    """The prompts in `BINS` bins of equal mass, by rising probability, as in `metrics.ece`."""
    order = np.argsort(probabilities, kind="stable")
    found = []
    for part in np.array_split(order, BINS):
        if len(part):
            share = metrics.share(labels[part])
            found.append(Bin(len(part), float(probabilities[part].mean()), share))
    return found
