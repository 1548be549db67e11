"""Two opinions of one risk: where the cheap one is unsure, and how both are weighed there.

    sigma(a logit(p) + b s + c)     p: the probe's probability, s: the judge's risk

with a, b, c by logistic regression on labelled rows (stacking; Wolpert 1992).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from probes.calibration import CLIP

STRENGTH = 1.0
"""C of the L2 penalty on a and b, as in scikit-learn: rows that lie apart leave both finite."""


class Weights(NamedTuple):
    """How two opinions become one."""

    probe: float
    """a."""
    judge: float
    """b."""
    bias: float
    """c."""

    def __call__(
        self, p: Float64[np.ndarray, "row"], s: Float64[np.ndarray, "row"]
    ) -> Float64[np.ndarray, "row"]:
        """The risk of rows of which the probe says p and the judge s."""
        return expit(self.probe * _log_odds(p) + self.judge * s + self.bias)


def fit(
    labels: Int64[np.ndarray, "row"],
    p: Float64[np.ndarray, "row"],
    s: Float64[np.ndarray, "row"],
) -> Weights:
    """The weights of labelled rows, 1 = harmful.

    Raises:
        ValueError: There is one class only.
    """
    n_1, n_0 = int((labels == 1).sum()), int((labels == 0).sum())
    if not n_1 or not n_0:
        raise ValueError(f"stacking needs both classes, not {n_1} harmful and {n_0} harmless rows")
    found = LogisticRegression(C=STRENGTH, tol=1e-8, max_iter=10_000).fit(
        np.stack([_log_odds(p), s], axis=1), labels
    )
    a, b = map(float, found.coef_[0])
    return Weights(a, b, float(found.intercept_[0]))


def unsure(p: Float64[np.ndarray, "row"], lo: float, hi: float) -> Bool[np.ndarray, "row"]:
    """Where the probe's probability lies in the band, its ends included."""
    return (p >= lo) & (p <= hi)


def combined(
    p: Float64[np.ndarray, "row"],
    s: Float64[np.ndarray, "asked"],
    asked: Bool[np.ndarray, "row"],
    weights: Weights | None,
) -> Float64[np.ndarray, "row"]:
    """The probe's probability, and where the judge was asked what it is with the judge's risk.

    Args:
        p: Of all rows.
        s: The judge's risk of those that it was asked about.
        asked: Which these are.
        weights: None where the judge alone decides about them.
    """
    found = p.copy()
    found[asked] = s if weights is None else weights(p[asked], s)
    return found


def _log_odds(p: Float64[np.ndarray, "row"]) -> Float64[np.ndarray, "row"]:
    return logit(np.clip(p, CLIP, 1 - CLIP))
