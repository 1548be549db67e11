"""Scores of a detector with their uncertainty: AUROC, TPR at a low FPR, calibration.

Scores are "larger = more harmful"; labels are 1 = harmful. A score that the data do not define is
NaN, with a warning that says why.
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from scipy.special import expit, logit
from scipy.stats import binomtest, norm
from sklearn.metrics import brier_score_loss, roc_auc_score

LEVEL = 0.95
DRAWS = 1000


class Interval(NamedTuple):
    """An estimate within its 95 % interval."""

    estimate: float
    lo: float
    hi: float


UNDEFINED = Interval(np.nan, np.nan, np.nan)


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
    fold = np.zeros(len(labels), dtype=np.int64) if fold is None else fold
    if not _defined(labels, scores, "AUROC"):
        return UNDEFINED
    rng = np.random.default_rng(seed)
    draws, estimate, pairs = np.zeros(DRAWS), 0.0, 0
    parts = np.unique(fold)
    for part in parts:
        rows = fold == part
        y, s = labels[rows], scores[rows]
        if not _defined(y, s, f"AUROC of fold {part}"):
            return UNDEFINED
        _, group = np.unique(groups[rows], return_inverse=True)
        estimate += auroc(y, s) / len(parts)
        draws += _drawn_aurocs(y, s, group, _resampled(y, group, rng)) / len(parts)
        pairs += min(len(np.unique(group[y == 0])), len(np.unique(group[y == 1])))
    lo = hi = estimate
    if 0 < estimate < 1:
        error = draws.std(ddof=1) / (estimate * (1 - estimate))
        lo, hi = expit(logit(estimate) + norm.ppf(LEVEL / 2 + 0.5) * error * np.array([-1, 1]))
    room = ((1 - LEVEL) / 2) ** (1 / pairs)
    return Interval(estimate, float(min(lo, room)), float(max(hi, 1 - room)))


def weighted_auroc(
    labels: Int[ndarray, "prompt"],
    scores: Float[ndarray, "prompt"],
    weights: Float[ndarray, "draw prompt"],
) -> Float[ndarray, "draw"]:
    """AUROC of rows that count more or less than once, for many weightings of the same rows."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of runs of ties
    positive = np.add.reduceat((weights * labels)[:, order], starts, axis=1)
    negative = np.add.reduceat((weights * (1 - labels))[:, order], starts, axis=1)
    below = negative.cumsum(1) - negative / 2
    return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def _drawn_aurocs(
    labels: ndarray, scores: ndarray, group: ndarray, times: Float[ndarray, "draw group"]
) -> Float[ndarray, "draw"]:
    """AUROC of each draw; some draws at a time, for each takes a number a row."""
    parts = np.array_split(times, 50)
    return np.concatenate([weighted_auroc(labels, scores, part[:, group]) for part in parts])


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


def operating_point(
    labels: Int[ndarray, "prompt"], scores: Float[ndarray, "prompt"], threshold: float
) -> OperatingPoint:
    """Rates at a threshold that was set elsewhere. Assumes independent rows."""
    if np.isnan(threshold) or not _defined(labels, scores, "rates at a threshold"):
        return OperatingPoint(threshold, UNDEFINED, UNDEFINED)
    flagged = scores > threshold
    return OperatingPoint(threshold, _share(flagged[labels == 1]), _share(flagged[labels == 0]))


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
) -> Float[ndarray, "draw group"]:
    """How often each group counts in each draw."""
    n = group.max() + 1
    harmful = np.bincount(group, labels, n) > 0
    harmless = np.bincount(group, 1 - labels, n) > 0
    times = np.empty((DRAWS, n))
    for kind in ([True, False], [False, True], [True, True]):
        of_kind = np.flatnonzero((harmful == kind[0]) & (harmless == kind[1]))
        if len(of_kind):
            size = max(len(of_kind) - 1, 1)
            picks = rng.multinomial(size, np.full(len(of_kind), 1 / len(of_kind)), DRAWS)
            times[:, of_kind] = picks * (len(of_kind) / size)
    return times


def _share(flagged: ndarray) -> Interval:
    test = binomtest(int(flagged.sum()), len(flagged))
    lo, hi = test.proportion_ci(LEVEL, method="exact")
    return Interval(float(flagged.mean()), float(lo), float(hi))
