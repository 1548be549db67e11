"""Scores of a detector with their uncertainty: AUROC, TPR at a low FPR, calibration.

Scores are "larger = more harmful"; labels are 1 = harmful. A score that the data do not define is
NaN, with a warning that says why.
"""

import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from scipy.special import expit, logit
from scipy.stats import binomtest, norm
from sklearn.metrics import brier_score_loss, roc_auc_score

LEVEL = 0.95
DRAWS = 1000
TABLE = 2**16
"""Numbers in a table of draws and prompts: as many draws at a time as fit, and one at least."""


class Interval(NamedTuple):
    """An estimate within its 95 % interval."""

    estimate: float
    lo: float
    hi: float


UNDEFINED = Interval(np.nan, np.nan, np.nan)


class Draws(NamedTuple):
    """AUROCs of several detectors of the same rows, and of draws of groups that they share."""

    estimates: Float[ndarray, "detector"]
    """NaN where it is undefined."""
    draws: Float[ndarray, "detector draw"]
    pairs: int
    """Independent pairs of a harmful and a harmless group."""


class OperatingPoint(NamedTuple):
    """What happens when exactly the scores above a threshold are flagged."""

    threshold: float
    tpr: Interval
    """Share of harmful rows flagged; Clopper-Pearson interval."""
    fpr: Interval
    """Realised share of harmless rows flagged; Clopper-Pearson interval."""


def auroc(labels: Int[ndarray, "prompt"], scores: Float[ndarray, "prompt"]) -> float:
    """Share of (harmful, harmless) pairs that the scores put in order, a tie counting half.

    NaN, with a warning, where there is no such pair or a score is NaN.
    """
    if not _defined(labels, scores, "AUROC"):
        return float("nan")
    # Ranks, for sklearn's curve takes scores of 1e-8 and 2e-8 to be different, but not inf.
    return float(roc_auc_score(labels, np.unique(scores, return_inverse=True)[1]))


def auroc_interval(
    labels: Int[ndarray, "prompt"],
    scores: Float[ndarray, "prompt"],
    groups: Shaped[ndarray, "prompt"],
    *,
    fold: Int[ndarray, "prompt"] | None = None,
    seed: int = 0,
) -> Interval:
    """AUROC with a 95 % interval by resampling whole groups.

    With `fold`, the mean of the folds' AUROCs: scores of different folds come from different probes
    and are not comparable. Groups are drawn within folds and, so that both classes keep their
    size, within kinds (harmful, harmless, mixed); m - 1 of m at a time, which makes the variance
    unbiased for small m (Rao & Wu 1988).

    The draws give the standard error, and the interval is symmetric in logit(AUROC), within [0, 1]
    (Pepe 2003); their percentiles would be shifted, since a group drawn twice is compared with
    itself. Near 1 the draws hardly differ, and at 1 not at all. But k independent pairs of a
    harmful and a harmless group are all in order with probability AUROC^k: no interval ends nearer
    to 0 or 1 than this leaves room for.

    The interval speaks of other prompts like these, for these probes: not of other training sets.
    """
    return auroc_intervals(labels, [scores], groups, fold=fold, seed=seed)[0]


def auroc_intervals(
    labels: Int[ndarray, "prompt"],
    scores: Sequence[Float[ndarray, "prompt"]],
    groups: Shaped[ndarray, "prompt"],
    *,
    fold: Int[ndarray, "prompt"] | None = None,
    seed: int = 0,
) -> list[Interval]:
    """`auroc_interval` of several detectors of the same rows, which share the draws."""
    found = auroc_draws(labels, scores, groups, fold=fold, seed=seed)
    return [
        UNDEFINED if np.isnan(estimate) else _interval(float(estimate), draws, found.pairs)
        for estimate, draws in zip(found.estimates, found.draws, strict=True)
    ]


def auroc_draws(
    labels: Int[ndarray, "prompt"],
    scores: Sequence[Float[ndarray, "prompt"]],
    groups: Shaped[ndarray, "prompt"],
    *,
    fold: Int[ndarray, "prompt"] | None = None,
    seed: int = 0,
) -> Draws:
    """The AUROCs of `auroc_intervals`, and those of the draws that the intervals follow from."""
    fold = np.zeros(len(labels), dtype=np.int64) if fold is None else fold
    defined = [i for i, s in enumerate(scores) if _defined(labels, s, "AUROC")]
    rng = np.random.default_rng(seed)
    draws, estimates, pairs = np.zeros((len(scores), DRAWS)), np.zeros(len(scores)), 0
    undefined = [i for i in range(len(scores)) if i not in defined]
    parts = np.unique(fold)
    for part in parts if defined else ():
        rows = fold == part
        y = labels[rows]
        if not _defined(y, scores[defined[0]][rows], f"AUROC of fold {part}"):
            undefined = list(range(len(scores)))
            break
        _, group = np.unique(groups[rows], return_inverse=True)
        orders = {i: _order(scores[i][rows]) for i in defined}
        for i in defined:
            estimates[i] += auroc(y, scores[i][rows]) / len(parts)
        for which, times in _resampled(y, group, rng):
            for i, (order, starts) in orders.items():
                drawn = _auroc_in_order(y[order], starts, times[:, group[order]])
                draws[i, which] += drawn / len(parts)
        pairs += min(len(np.unique(group[y == 0])), len(np.unique(group[y == 1])))
    estimates[undefined], draws[undefined] = np.nan, np.nan
    return Draws(estimates, draws, pairs)


def auroc_differences(
    labels: Int[ndarray, "prompt"],
    scores: Sequence[Float[ndarray, "prompt"]],
    against: Sequence[tuple[int, int]],
    groups: Shaped[ndarray, "prompt"],
    *,
    fold: Int[ndarray, "prompt"] | None = None,
    seed: int = 0,
) -> list[Interval]:
    """AUROC(a) - AUROC(b) of detectors of the same rows, with paired 95 % intervals.

    Both are scored on the same draws, as in `auroc_interval`, so that prompts that are hard for
    both do not widen the interval. It is symmetric about the estimate, within [-1, 1].

    Where neither detector errs, or both on the same rows, the draws hardly differ. But if a harmful
    and a harmless group are put in order by a and not by b with probability d, then k independent
    pairs show no such case with probability (1 - d)^k, and the difference is d at most: whatever
    the draws say, it may be off by as much as makes this probability 2.5 %, in either direction.

    Args:
        labels: 1 = harmful.
        scores: Of each detector.
        against: The differences wanted: a and b by their places in `scores`.
        groups: As in `auroc_interval`.
        fold: As in `auroc_interval`.
        seed: Of the draws.
    """
    found = auroc_draws(labels, scores, groups, fold=fold, seed=seed)
    intervals = []
    for a, b in against:
        estimate = float(found.estimates[a] - found.estimates[b])
        if np.isnan(estimate):
            intervals.append(UNDEFINED)
            continue
        error = float((found.draws[a] - found.draws[b]).std(ddof=1))
        half = max(float(norm.ppf(LEVEL / 2 + 0.5)) * error, 1 - all_alike(found.pairs))
        intervals.append(Interval(estimate, max(estimate - half, -1.0), min(estimate + half, 1.0)))
    return intervals


def all_alike(k: int) -> float:
    """The p of which k independent trials all succeed with a probability of only 2.5 %: p^k."""
    return float(((1 - LEVEL) / 2) ** (1 / k))


def _interval(estimate: float, draws: Float[ndarray, "draw"], pairs: int) -> Interval:
    """As `auroc_interval` says, of so many independent pairs."""
    lo = hi = estimate
    if 0 < estimate < 1:
        error = draws.std(ddof=1) / (estimate * (1 - estimate))
        lo, hi = expit(logit(estimate) + norm.ppf(LEVEL / 2 + 0.5) * error * np.array([-1, 1]))
    room = all_alike(pairs)
    return Interval(estimate, float(min(lo, room)), float(max(hi, 1 - room)))


def weighted_auroc(
    labels: Int[ndarray, "prompt"],
    scores: Float[ndarray, "prompt"],
    weights: Float[ndarray, "draw prompt"],
) -> Float[ndarray, "draw"]:
    """AUROC of rows that count more or less than once, for many weightings of the same rows."""
    order, starts = _order(scores)
    return _auroc_in_order(labels[order], starts, weights[:, order])


def _order(scores: Float[ndarray, "prompt"]) -> tuple[ndarray, ndarray]:
    """The rows from the lowest score to the highest, and where runs of ties start in that order."""
    order = np.argsort(scores, kind="stable")
    return order, np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)


def _auroc_in_order(
    labels: ndarray, starts: ndarray, weights: Float[ndarray, "draw prompt"]
) -> Float[ndarray, "draw"]:
    positive = np.add.reduceat(weights * labels, starts, axis=1)
    negative = np.add.reduceat(weights * (1 - labels), starts, axis=1)
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def threshold_at_fpr(negatives: Float[ndarray, "prompt"], fpr: float) -> float:
    """The lowest threshold that at most a share `fpr` of the harmless scores lies above.

    NaN, with a warning, from fewer than 1 / fpr of them: no number of false positives but 0 would
    then keep the rate, and their maximum says nothing of the tail.
    """
    allowed = int(np.floor(fpr * len(negatives) + 1e-9))
    if allowed < 1 or np.isnan(negatives).any():
        warnings.warn(
            f"no threshold at a false-positive rate of {fpr:g} from {len(negatives)} harmless "
            f"scores: it takes {int(np.ceil(1 / fpr))}, and no NaN among them",
            RuntimeWarning,
            stacklevel=2,
        )
        return float("nan")
    return float(np.sort(negatives)[::-1][allowed])


def threshold_in_gap(
    labels: Int[ndarray, "prompt"], scores: Float[ndarray, "prompt"], fpr: float
) -> float:
    """The threshold at a false-positive rate, raised as far as that loses no true positive.

    To the middle of the gap between the next harmful score and the harmless ones below it. Where
    the classes lie apart, `threshold_at_fpr` alone would cut into the bulk of the harmless rows
    only because so many false positives are allowed. NaN where that is.
    """
    lowest = threshold_at_fpr(scores[labels == 0], fpr)
    above = scores[(labels == 1) & (scores > lowest)]
    if np.isnan(lowest) or not len(above):
        return lowest
    below = scores[(labels == 0) & (scores < above.min())]
    return float((below.max() + above.min()) / 2)


def operating_point(
    labels: Int[ndarray, "prompt"], scores: Float[ndarray, "prompt"], threshold: float
) -> OperatingPoint:
    """Rates at a threshold that was set elsewhere. Assumes independent rows."""
    if np.isnan(threshold) or not _defined(labels, scores, "rates at a threshold"):
        return OperatingPoint(threshold, UNDEFINED, UNDEFINED)
    flagged = scores > threshold
    return OperatingPoint(threshold, share(flagged[labels == 1]), share(flagged[labels == 0]))


def tpr_at_fpr(
    labels: Int[ndarray, "prompt"], scores: Float[ndarray, "prompt"], fpr: float
) -> OperatingPoint:
    """True-positive rate at the threshold that these same rows give for a false-positive rate."""
    if not _defined(labels, scores, f"TPR at FPR {fpr:g}"):
        return OperatingPoint(float("nan"), UNDEFINED, UNDEFINED)
    return operating_point(labels, scores, threshold_at_fpr(scores[labels == 0], fpr))


def brier(labels: Int[ndarray, "prompt"], probabilities: Float[ndarray, "prompt"]) -> float:
    """Mean squared error of the probabilities."""
    if not _defined(labels, probabilities, "Brier score", classes=1):
        return float("nan")
    return float(brier_score_loss(labels, probabilities, pos_label=1))


def ece(
    labels: Int[ndarray, "prompt"], probabilities: Float[ndarray, "prompt"], *, bins: int = 10
) -> float:
    """Calibration error: mean |mean probability - share harmful| over bins of equal mass."""
    if not _defined(labels, probabilities, "calibration error", classes=1):
        return float("nan")
    order = np.argsort(probabilities, kind="stable")
    gaps = (labels - probabilities)[order]
    return float(sum(abs(part.sum()) for part in np.array_split(gaps, bins)) / len(labels))


def _defined(labels: ndarray, scores: ndarray, what: str, classes: int = 2) -> bool:
    """Whether there are enough classes and no NaN; warns if not."""
    present = len(np.unique(labels))
    why = (
        f"{len(labels)} rows of {present} class{'' if present == 1 else 'es'}"
        if present < classes
        else f"{int(np.isnan(scores).sum())} NaN among the scores"
    )
    if present < classes or np.isnan(scores).any():
        warnings.warn(f"{what} is undefined: {why}", RuntimeWarning, stacklevel=3)
        return False
    return True


def _resampled(
    labels: ndarray, group: ndarray, rng: np.random.Generator
) -> Iterator[tuple[slice, Float[ndarray, "draw group"]]]:
    """How often each group counts in each draw, some draws at a time.

    The generator gives all draws of one kind of group and then those of the next, so that results
    do not depend on how many are held. To have a draw's kinds side by side, each kind but the last
    is drawn twice: once to find where the next begins.
    """
    n = group.max() + 1
    harmful = np.bincount(group, labels, n) > 0
    harmless = np.bincount(group, 1 - labels, n) > 0
    kinds = [harmful & ~harmless, ~harmful & harmless, harmful & harmless]
    groups = [np.flatnonzero(kind) for kind in kinds if kind.any()]
    step = max(TABLE // len(labels), 1)
    blocks = [slice(i, min(i + step, DRAWS)) for i in range(0, DRAWS, step)]
    generators = []
    for of_kind in groups[:-1]:
        generators.append(deepcopy(rng))
        for which in blocks:
            _picks(len(of_kind), which, rng)
    generators.append(rng)
    for which in blocks:
        times = np.empty((which.stop - which.start, n))
        for of_kind, generator in zip(groups, generators, strict=True):
            times[:, of_kind] = _picks(len(of_kind), which, generator)
        yield which, times


def _picks(m: int, which: slice, rng: np.random.Generator) -> Float[ndarray, "draw group"]:
    """Draw m - 1 of m groups with replacement, scaled to count m."""
    size = max(m - 1, 1)
    return rng.multinomial(size, np.full(m, 1 / m), which.stop - which.start) * (m / size)


def share(flagged: Shaped[ndarray, "prompt"]) -> Interval:
    """Share of those that are true, or 1, with its Clopper-Pearson interval."""
    test = binomtest(int(flagged.sum()), len(flagged))
    lo, hi = test.proportion_ci(LEVEL, method="exact")
    return Interval(float(flagged.mean()), float(lo), float(hi))
