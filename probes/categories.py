"""A probe of each category of harm, one against all the rest, on folds that all of them share.

A row may be of several categories. Each probe is an L2 logistic regression as in `probes.probe`;
together they say of a row the highest of their probabilities, or that of any of them if they were
independent: 1 - prod_c (1 - s_c) (noisy-or; Pearl 1988).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import softplus

from probes import folds as folding
from probes import metrics
from probes.errors import InputError
from probes.features import Layers
from probes.folds import Folds
from probes.probe import LinearReadout, cross_validate, fit
from probes.prompts import PromptSet

Combine = Literal["max", "noisy-or"]
COMBINES: tuple[Combine, ...] = get_args(Combine)
NONE = ""
"""What rows of no category are called where rows are divided into folds."""


class Heads(NamedTuple):
    """The probes of one layer."""

    layer: int
    probes: list[LinearReadout]
    """One a category, fitted on all rows."""
    out_of_fold: Float64[ndarray, "prompt category"]
    """Log-odds, by the probes that did not see the row's fold."""
    aurocs: list[metrics.Interval]
    """Of each category, over the folds."""


def combined(logits: Float[Tensor, "*batch category"], how: Combine) -> Float[Tensor, "*batch"]:
    """Log-odds of harm of any category.

    noisy-or: of p = 1 - prod_c (1 - s_c); with S = sum_c softplus(z_c) = -log(1 - p) it is
    log(e^S - 1).
    """
    if how == "max":
        return logits.amax(-1)
    total = softplus(logits).sum(-1)
    # softplus is 0 below z = -745 or so; p is then 0 as well.
    return total + torch.log(-torch.expm1(-total))


def check(prompts: PromptSet) -> None:
    """Refuse a set that a probe of categories cannot be fitted on.

    Raises:
        InputError: There is no category, or a harmful row is of none.
    """
    if not prompts.categories:
        raise InputError(
            f"{prompts.name}: no row has a category; give harmful rows a field 'category', or say "
            f"which field holds it: '{prompts.name}?category=FIELD'"
        )
    bare = [prompt for prompt in prompts.prompts if prompt.label and not prompt.categories]
    if bare:
        raise InputError(
            f"{prompts.name}, field 'category': {len(bare)} of the harmful rows have none, such as "
            f"{bare[0].text[:60]!r}; name one, or leave the rows out"
        )


def folds_of(prompts: PromptSet, *, folds: int, seed: int) -> Folds:
    """Folds in which every category is, whole groups together.

    Rows are divided by their first category alone.

    Raises:
        InputError: A category, or the harmless rows, have too few groups.
    """
    classes = np.array([(*prompt.categories, NONE)[0] for prompt in prompts.prompts])
    _, of = np.unique(classes, return_inverse=True)
    _, group = np.unique(prompts.groups, return_inverse=True)
    needed = max(folds, 3)  # a fold less to train on must leave two, for C's own folds
    for name in (NONE, *prompts.categories):
        rows = prompts.of_category(name) == 1 if name else prompts.labels == 0
        if (n := len(set(group[rows]))) < needed:
            raise InputError(
                f"{prompts.name}: {f'category {name!r} has' if name else 'harmless rows have'} {n} "
                f"groups, and {folds} folds need {needed}; give more rows, finer groups or fewer "
                "folds, or leave the category out"
            )
    fold = folding.assign(of, group, folds, seed)
    inner = np.full((folds + 1, len(prompts)), folding.NOT_IN_SPLIT)
    for split in range(folds + 1):
        rows = fold != split
        inner[split, rows] = folding.assign(of[rows], group[rows], min(folds, needed - 1), seed)
    found = Folds(fold, inner)
    for name in prompts.categories:
        _both_classes(prompts, name, found)
    return found


def _both_classes(prompts: PromptSet, name: str, folds: Folds) -> None:
    y = prompts.of_category(name)
    parts = [y[folds.fold == k] for k in range(folds.n)]
    for split in range(folds.n + 1):
        rows, of = folds.train(split), folds.inner[split]
        parts += [y[rows & (of != k)] for k in range(of.max() + 1)]
    if any(len(np.unique(part)) < 2 for part in parts):
        raise InputError(
            f"{prompts.name}: a fold would be without category {name!r}, or with nothing else, "
            "since groups are of very unequal size; give finer groups or fewer folds"
        )


def heads(
    acts: Layers, prompts: PromptSet, folds: Folds, *, layer: int, Cs: Sequence[float], seed: int
) -> Heads:
    """A probe of each category on one layer.

    Args:
        acts: Of the prompts.
        prompts: The train set.
        folds: Of the same rows (`folds_of`).
        layer: Block to read.
        Cs: Inverse strengths of the penalty to choose from, for each category by itself.
        seed: Of the bootstrap.
    """
    probes, logits, aurocs = [], [], []
    for name in prompts.categories:
        y = prompts.of_category(name)
        options = {"readout": "layer", "layers": [layer], "Cs": Cs}
        logits.append(cross_validate(acts, y, folds, **options).logits)  # type: ignore[arg-type]
        probes.append(fit(acts, y, folds, **options))  # type: ignore[arg-type]
        aurocs.append(
            metrics.auroc_interval(y, logits[-1], prompts.groups, fold=folds.fold, seed=seed)
        )
    return Heads(layer, probes, np.stack(logits, axis=1), aurocs)


def best(found: Sequence[Heads]) -> Heads:
    """Those of the layer of highest mean in-distribution AUROC; of equals the earliest."""
    return max(found, key=lambda one: np.mean([auroc.estimate for auroc in one.aurocs]))


def any_of(prompts: PromptSet) -> Int64[ndarray, "prompt"]:
    """1 = of any category."""
    return np.array([bool(prompt.categories) for prompt in prompts.prompts], dtype=np.int64)
