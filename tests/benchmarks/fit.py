"""Choosing C and fitting, beside scikit-learn's LogisticRegression at the accuracy reached."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from probes.features import Features, Stacked
from probes.solver import solve
from tests.benchmarks.cases import Against, Baseline, Group

N, FOLDS, CS = 1600, 5, (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TOLERANCE = 1e-6
"""Of scikit-learn's lbfgs: about where its probabilities are within 1e-3 of the optimum."""
PERMUTATIONS, SAMPLED = 100, 2
"""Shuffles of the labels, and those of them that scikit-learn fits and that are compared."""
TOLERATED = 2e-3
"""Difference of probabilities: both stop short of the optimum, by up to 1e-3 each."""
LOGITS = 1e-3
"""Error of a logit allowed with shuffled labels: of a probability, a quarter of it."""


class Data:
    """Features, labels and folds of one width; `N` rows unless told."""

    def __init__(self, width: int, n: int | None = None) -> None:
        n = n or N
        rng = np.random.default_rng(0)
        # Correlated features with a power-law spectrum, as activations have.
        X = rng.standard_normal((n, width)) * np.arange(1, width + 1) ** -0.7
        X = X @ rng.standard_normal((width, width))
        self.X = (X - X.mean(0)) / X.std(0)
        signal = self.X @ rng.standard_normal(width)
        self.y = signal / signal.std() + rng.standard_normal(n) > 0
        self.fold = rng.permutation(n) % FOLDS
        self.shuffled = np.stack([rng.permutation(self.y) for _ in range(PERMUTATIONS)], axis=1)

    def ours(self, labels: np.ndarray, compared: int, **options: float) -> np.ndarray:
        """Probabilities for the first `compared` vectors of labels, after solving for all."""
        acts = Stacked(torch.from_numpy(self.X)[:, None])
        rotated = Features.of(acts, [0], np.ones(len(self.y), dtype=bool), "concat").design()
        vectors = labels.shape[1]
        column = np.tile(np.repeat(np.arange(FOLDS), len(CS)), vectors)
        y = torch.from_numpy(labels)
        fits = solve(
            rotated.design,
            y[:, 0].long() if vectors == 1 else y.repeat_interleave(FOLDS * len(CS), dim=1),
            torch.from_numpy(self.fold[:, None] != column),
            torch.tensor(CS, dtype=torch.float64).repeat(FOLDS * vectors),
            **options,
        )
        weight = rotated.weight(fits.weight[:, : compared * FOLDS * len(CS)])
        logits = torch.from_numpy(self.X) @ weight + fits.bias[: weight.shape[1]]
        return torch.sigmoid(logits).numpy()

    def theirs(self, labels: np.ndarray) -> np.ndarray:
        """Fit by fit, each C from the solution of the one before."""
        out = []
        for y in labels.T:
            for i in range(FOLDS):
                model = LogisticRegression(tol=TOLERANCE, max_iter=10_000, warm_start=True)
                for C in CS:
                    model.set_params(C=C).fit(self.X[self.fold != i], y[self.fold != i])
                    out.append(model.predict_proba(self.X)[:, 1])
        return np.stack(out, axis=1)


def groups() -> tuple[Group, ...]:
    """5 folds x 5 C at the widths of a small and of a 3B model; the small one shuffled, too."""
    return (one(512), one(3072), shuffled(512))


def one(width: int) -> Group:
    """The labels as they are."""
    name = f"{N} rows of {width}, {FOLDS} folds x {len(CS)} C"

    def theirs(data: Data) -> Against:
        return Against(lambda: data.theirs(data.y[:, None]))

    return Group(
        "fit", name, partial(Data, width), lambda data: partial(data.ours, data.y[:, None], 1),
        (Baseline("scikit-learn, warm path", theirs),), TOLERATED,
    )  # fmt: skip


def shuffled(width: int) -> Group:
    """Scikit-learn's whole would take minutes a round: it does a part, and its time is scaled."""
    name = (
        f"{N} rows of {width}, {FOLDS} folds x {len(CS)} C, {PERMUTATIONS} shuffles of the labels"
    )

    def theirs(data: Data) -> Against:
        share = SAMPLED / PERMUTATIONS
        return Against(lambda: data.theirs(data.shuffled[:, :SAMPLED]), share=share)

    return Group(
        "fit", name, partial(Data, width),
        lambda data: partial(data.ours, data.shuffled, SAMPLED, tolerance=LOGITS),
        (Baseline(f"scikit-learn, warm path; {SAMPLED} shuffles timed", theirs),), TOLERATED,
    )  # fmt: skip
