"""Choosing C and fitting, beside scikit-learn's LogisticRegression at the accuracy reached."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from probes.features import Features, Stacked
from probes.solver import solve
from tests.benchmarks.interleave import Case

N, FOLDS, CS = 1600, 5, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TOLERANCE = 1e-6
"""Of scikit-learn's lbfgs: about where its probabilities are within 1e-3 of the optimum."""


def cases() -> Iterator[Case]:
    """5 folds x 5 C at the widths of a small and of a 3B model."""
    for width in (512, 3072):
        yield _case(width)


def _case(width: int) -> Case:
    rng = np.random.default_rng(0)
    # Correlated features with a power-law spectrum, as activations have.
    X = rng.standard_normal((N, width)) * np.arange(1, width + 1) ** -0.7
    X = X @ rng.standard_normal((width, width))
    X = (X - X.mean(0)) / X.std(0)
    signal = X @ rng.standard_normal(width)
    y = (signal / signal.std() + rng.standard_normal(N) > 0).astype(np.int64)
    fold = rng.permutation(N) % FOLDS
    column = np.repeat(np.arange(FOLDS), len(CS))
    acts = Stacked(torch.from_numpy(X)[:, None])

    def ours() -> np.ndarray:
        features = Features.of(acts, [0], np.ones(N, dtype=bool), "concat")
        rotated = features.design()
        fits = solve(
            rotated.design,
            torch.from_numpy(y),
            torch.from_numpy((fold[:, None] != column).astype(np.float64)),
            torch.tensor(CS, dtype=torch.float64).repeat(FOLDS),
        )
        logits = torch.from_numpy(X) @ rotated.weight(fits.weight) + fits.bias
        return torch.sigmoid(logits).numpy()

    def theirs() -> np.ndarray:
        out = np.empty((N, FOLDS * len(CS)))
        for i in range(FOLDS):
            model = LogisticRegression(tol=TOLERANCE, max_iter=10_000, warm_start=True)
            for j, C in enumerate(CS):
                model.set_params(C=C).fit(X[fold != i], y[fold != i])
                out[:, i * len(CS) + j] = model.predict_proba(X)[:, 1]
        return out

    return Case(
        "fit", f"{N} rows of {width}, {FOLDS} folds x {len(CS)} C", "scikit-learn, warm path",
        ours, theirs,
    )  # fmt: skip
