"""What the procedure gives where there is nothing to find: shuffled labels, random directions.

Shuffled labels (by group, see `probes.permutations`) go through all that the true ones go through:
the choice of C on the inner folds, the fit, the score on unseen folds and, for layer -1, the choice
of the layer of highest AUROC. All shuffles share the principal axes of a split and layer. What is
observed is computed among them, as a shuffle that changes nothing.

A random direction is isotropic among the features as standardised on the training rows. It is
turned so that on those rows its AUROC is at least .5, as a probe would be; it is not fitted
otherwise. Few features that differ much between the classes suffice to make most directions good.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy import ndarray
from scipy.stats import rankdata
from torch import Tensor
from tqdm import tqdm

from analysis.evidence_rows import ControlRow
from probes.features import MEMORY, Features, pieces
from probes.folds import Folds
from probes.permutations import shuffles
from probes.probe import held
from probes.scoring import Captured, Where
from probes.tuning import tune

LOGITS = 1e-3
"""Error that a shuffle's logits may have: far below what moves an AUROC."""
LEVEL = 0.95


def controls(
    where: Where,
    train: Captured,
    *,
    folds: int,
    Cs: Sequence[float],
    permutations: int = 100,
    memory: int = MEMORY,
    progress: bool = False,
) -> list[ControlRow]:
    """Null bands per layer, of the whole procedure (layer -1), and of random directions.

    Args:
        where: Goes into every row; its seed draws folds, shuffles and directions.
        train: What the probes are fitted on.
        folds: Cross-validation folds, as in the sweep.
        Cs: Inverse strengths of the L2 penalty to choose from.
        permutations: Shuffles of the labels, and random directions.
        memory: Bytes of features, and of the shuffles' weights, to hold at a time.
        progress: Whether to show a bar over layers and folds.

    Raises:
        InputError: The train set has too few groups for the folds, or one class only.
    """
    labels, groups = train.prompts.labels, train.prompts.groups
    split = Folds.of(labels, groups, folds=folds, seed=where.seed)
    taken = shuffles(labels, groups, split, permutations, where.seed)
    taken = np.concatenate([np.arange(len(labels))[None], taken])
    n_layers = train.acts.n_layers
    shuffled = np.zeros((n_layers, 1 + permutations))
    random = np.zeros((n_layers, permutations))
    bar = tqdm(total=n_layers * folds, desc="  controls", unit="fold", disable=not progress)
    for layer in range(n_layers):
        source, columns = held(train.acts, [layer], memory)
        rng = np.random.default_rng([where.seed, layer])
        directions = torch.from_numpy(rng.standard_normal((source.d_model, permutations)))
        for part in range(folds):
            features = Features.of(source, columns, split.train(part), "concat")
            found = _shuffled(features, labels, split, part, taken, Cs, memory)
            shuffled[layer] += found / folds
            random[layer] += _random(features, labels, split.fold == part, directions) / folds
            bar.update()
    bar.close()
    rows = [
        _row(where, train, layer, "permuted-labels", shuffled[layer, 1:], shuffled[layer, 0])
        for layer in range(n_layers)
    ]
    best = shuffled.max(0)
    rows.append(_row(where, train, -1, "permuted-labels", best[1:], best[0]))
    rows += [
        _row(where, train, layer, "random-direction", random[layer], shuffled[layer, 0])
        for layer in range(n_layers)
    ]
    return rows


def p_value(null: Float64[ndarray, "draw"], observed: float) -> float:
    """(1 + draws of at least the observed score) / (1 + draws): Phipson & Smyth 2010."""
    # Scores that are equal but for the order of their sums are equal.
    return float((1 + (null >= observed - 1e-12).sum()) / (1 + len(null)))


def _row(
    where: Where,
    train: Captured,
    layer: int,
    control: str,
    null: Float64[ndarray, "draw"],
    observed: float,
) -> ControlRow:
    lo, hi = np.quantile(null, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return ControlRow(
        model=where.model,
        hook_point=where.hook_point,
        position=where.position,
        train_set=train.prompts.name,
        layer=layer,
        control=control,
        draws=len(null),
        auroc=float(null.mean()),
        auroc_lo=float(lo),
        auroc_hi=float(hi),
        observed=float(observed),
        p_value=p_value(null, observed),
        seed=where.seed,
    )


def _shuffled(
    features: Features,
    labels: Int64[ndarray, "prompt"],
    folds: Folds,
    part: int,
    taken: Int64[ndarray, "draw prompt"],
    Cs: Sequence[float],
    memory: int,
) -> Float64[ndarray, "draw"]:
    """AUROC on one outer fold of each shuffle, fitted and tuned on the others."""
    train = folds.train(part)
    rotated = features.design(memory)
    columns = (int(folds.inner[part].max()) + 2) * len(Cs)
    # A column holds labels and mask, twice, and weights twice; the features' weights are fewer.
    bytes_each = columns * (4 * features.n + 16 * len(rotated.design.curvature))
    found = []
    for which in _parts(len(taken), max(memory // bytes_each, 1)):
        drawn = taken[which]
        tuned = tune(
            rotated.design,
            torch.from_numpy(labels[drawn][:, train].T.astype(bool)),
            torch.from_numpy(folds.inner[part][drawn][:, train].T.copy()),
            Cs,
            tolerance=LOGITS,
        )
        scores = _scores(features, rotated.weight(tuned.weight), folds.fold == part)
        found.append(_aurocs(labels[drawn][:, folds.fold == part].T, scores))
    return np.concatenate(found)


def _random(
    features: Features,
    labels: Int64[ndarray, "prompt"],
    test: Bool[ndarray, "prompt"],
    directions: Float64[Tensor, "feature draw"],
) -> Float64[ndarray, "draw"]:
    """AUROC of each direction on the test rows, turned by the others."""
    inside = _aurocs(labels[~test, None], _scores(features, directions, ~test))
    outside = _aurocs(labels[test, None], _scores(features, directions, test))
    return np.where(inside < 0.5, 1 - outside, outside)


def _scores(
    features: Features, weight: Float64[Tensor, "feature column"], which: Bool[ndarray, "prompt"]
) -> Float64[ndarray, "row column"]:
    """Some rows, standardised like the training rows, along weights of a single layer."""
    mean, inverse = features.scaler.mean, features.scaler.inverse
    found = []
    for rows, block in pieces(features.acts, features.layers):
        x = block[torch.from_numpy(which[rows])].double()
        found.append(((x - mean) * inverse)[:, 0] @ weight)
    return torch.cat(found).numpy()


def _aurocs(
    labels: Int64[ndarray, "row #column"], scores: Float64[ndarray, "row column"]
) -> Float64[ndarray, "column"]:
    """AUROC of each column of scores, a tie counting half; NaN where a class is missing."""
    n_pos = labels.sum(0)
    n_neg = len(labels) - n_pos
    above = (rankdata(scores, axis=0) * labels).sum(0) - n_pos * (n_pos + 1) / 2
    with np.errstate(invalid="ignore"):
        return above / (n_pos * n_neg)


def _parts(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
