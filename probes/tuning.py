"""The choice of C on the inner folds of one training split, for one vector of labels or many.

All their fits share the features of the split, and with them the principal axes: what many
vectors of labels cost beside one is their own steps alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor
from torch.nn.functional import softplus

from probes.solver import LOGIT_TOLERANCE, Design, solve


class Tuned(NamedTuple):
    """For each vector of labels the fit on all rows at the C that its inner folds chose."""

    C: Float64[Tensor, "vector"]
    weight: Float64[Tensor, "feature vector"]
    bias: Float64[Tensor, "vector"]
    logits: Float64[Tensor, "row vector"]
    """At that C, of the inner fit that was not trained on the row."""


def tune(
    design: Design,
    labels: Bool[Tensor, "row vector"],
    inner: Int64[Tensor, "row vector"],
    Cs: Sequence[float],
    *,
    tolerance: float = LOGIT_TOLERANCE,
) -> Tuned:
    """The C of least mean log-loss on the inner folds, the smallest of equals; its fit on all rows.

    For each C, all rows go along as the training rows of one fold more, which tests none: where
    features are streamed, it is the passes over them that cost.

    Args:
        design: Features of the training rows.
        labels: True = harmful.
        inner: The inner fold of each row, from 0.
        Cs: To choose from.
        tolerance: Of the solver.
    """
    ordered = torch.tensor(sorted(Cs), dtype=torch.float64)
    n, vectors = int(inner.max()) + 1, labels.shape[1]
    # Columns: by vector, then fold, then C.
    counts = inner[:, :, None, None] != torch.arange(n + 1)[:, None].expand(n + 1, len(ordered))
    y = labels.repeat_interleave((n + 1) * len(ordered), dim=1)
    fits = solve(
        design,
        labels[:, 0].long() if vectors == 1 else y,
        counts.flatten(1),
        ordered.repeat(vectors * (n + 1)),
        tolerance=tolerance,
    )
    logits = torch.empty(*labels.shape, len(ordered), dtype=torch.float64)
    for rows, z in design.blocks():
        every = torch.addmm(fits.bias, z, fits.weight).reshape(len(z), vectors, n + 1, -1)
        fold = inner[rows, :, None, None].expand(-1, -1, 1, len(ordered))
        logits[rows] = every.gather(2, fold)[:, :, 0]
    loss = (softplus(logits) - labels[:, :, None] * logits).sum(0)
    best = loss.argmin(1)
    vector = torch.arange(vectors)
    chosen = (vector * (n + 1) + n) * len(ordered) + best
    return Tuned(ordered[best], fits.weight[:, chosen], fits.bias[chosen], logits[:, vector, best])
