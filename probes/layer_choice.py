"""Which layer to probe: how sure the choice is, and what it is worth on rows that had no say in it.

The sweep reports the layer of highest in-distribution AUROC, and that AUROC is flattered by having
been the highest (Cawley & Talbot 2010). Nested, each outer fold is scored by the layer that the
same rule picks by the inner folds of its training rows, which choose C as well; they were fitted
anyway, so that nesting costs no fit more.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from numpy import ndarray

from analysis.evidence_rows import LayerRow, NestedRow
from probes import metrics
from probes.errors import InputError
from probes.probe import CrossValidated
from probes.scoring import Captured, Where


def layer_choice(
    where: Where, train: Captured, layers: Sequence[CrossValidated]
) -> tuple[list[LayerRow], list[NestedRow]]:
    """Rows of every layer, and a row of the choice among them.

    Args:
        where: Goes into every row; its seed draws the bootstrap.
        train: What the probes were fitted on.
        layers: By layer, the cross-validated probe of the readout `layer`, on the same folds.

    Raises:
        InputError: No layer is given, or they are not of these rows and of one set of folds.
    """
    labels, groups = train.prompts.labels, train.prompts.groups
    if not layers or any(
        one.inner is None or not np.array_equal(one.fold, layers[0].fold) for one in layers
    ):
        raise InputError("a layer is chosen among probes of single layers, on the same folds")
    fold, seed = layers[0].fold, where.seed
    if len(fold) != len(labels):
        raise InputError(f"probes of {len(fold)} prompts, but the set has {len(labels)}")
    inner = np.stack([one.inner for one in layers if one.inner is not None])
    picked = _picked(inner)
    logits = [one.logits for one in layers]
    nested = _nested(logits, fold, picked)
    draws = metrics.auroc_draws(labels, logits, groups, fold=fold, seed=seed)
    best = _argmax(draws.estimates)
    selected, whole = metrics.auroc_intervals(
        labels, [logits[max(best, 0)], nested], groups, fold=fold, seed=seed
    )
    return _layers(where, train, draws, best), [_row(where, train, selected, whole, picked)]


def _argmax(aurocs: Float64[ndarray, "layer"]) -> int:
    """The earlier of equals, as `analysis.tables.best_layer`; -1 where none is defined."""
    return -1 if np.isnan(aurocs).all() else int(np.nanargmax(aurocs))


def _picked(inner: Float64[ndarray, "layer fold"]) -> list[int]:
    """The layer of highest AUROC on the inner folds of each outer fold; -1 for none."""
    picked = [_argmax(aurocs) for aurocs in inner.T]
    if -1 in picked:
        warnings.warn(
            f"the nested AUROC is undefined: of {picked.count(-1)} of {len(picked)} training parts "
            "no inner fold holds both classes, to choose the layer by",
            RuntimeWarning,
            stacklevel=3,
        )
    return picked


def _nested(
    logits: Sequence[Float64[ndarray, "prompt"]],
    fold: Int64[ndarray, "prompt"],
    picked: Sequence[int],
) -> Float64[ndarray, "prompt"]:
    """Each row's logit by the layer picked without its fold; NaN where there is none."""
    found = np.full(len(fold), np.nan)
    for part, layer in enumerate(picked):
        if layer >= 0:
            found[fold == part] = logits[layer][fold == part]
    return found


def _layers(where: Where, train: Captured, drawn: metrics.Draws, best: int) -> list[LayerRow]:
    """How far each layer is from the best one, in standard errors of their difference.

    Both are scored on the same draws of groups. `chosen` counts the draws in which it is the best,
    the earlier of equals.
    """
    gap = drawn.estimates[best] - drawn.estimates
    error = (drawn.draws - drawn.draws[best]).std(1, ddof=1)
    if best < 0:  # all are NaN, and so are their errors
        chosen = np.full(len(gap), np.nan)
    else:
        winner = np.where(np.isnan(drawn.draws), -np.inf, drawn.draws).argmax(0)
        chosen = np.bincount(winner, minlength=len(gap)) / len(winner)
    return [
        LayerRow(
            model=where.model,
            hook_point=where.hook_point,
            position=where.position,
            train_set=train.prompts.name,
            layer=layer,
            auroc=float(drawn.estimates[layer]),
            error=float(error[layer]),
            chosen=float(chosen[layer]),
            # A layer as good as the best one on every draw is as good.
            within_one_error=bool(gap[layer] < error[layer] or gap[layer] == 0),
            best=layer == best,
            seed=where.seed,
        )
        for layer in range(len(gap))
    ]


def _row(
    where: Where,
    train: Captured,
    selected: metrics.Interval,
    nested: metrics.Interval,
    picked: Sequence[int],
) -> NestedRow:
    return NestedRow(
        model=where.model,
        hook_point=where.hook_point,
        position=where.position,
        train_set=train.prompts.name,
        selected=float(selected.estimate),
        selected_lo=float(selected.lo),
        selected_hi=float(selected.hi),
        nested=float(nested.estimate),
        nested_lo=float(nested.lo),
        nested_hi=float(nested.hi),
        optimism=float(selected.estimate - nested.estimate),
        layers=" ".join(str(layer) for layer in picked),
        seed=where.seed,
    )
