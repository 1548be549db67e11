"""Shuffles of the labels that keep groups whole, for a null distribution.

A group's labels are given, together with the inner folds that the group lies in, to another group
of the same outer fold: to one of its own size or, where those are fewer than `LEAST` or all of one
class, of the next sizes, too. Then they are shuffled among the rows of the group, which is to say
something where it is mixed (both classes, such as twins). A group of one class thus stays one,
with its own label or another's, or becomes mixed as another was. Features, groups, outer folds and
their scalers stay. A smaller group takes a sample of the labels, a larger one repeats them.

The null hypothesis is that the labels of groups are exchangeable just so: that the features tell
nothing of them. A shuffle then leaves the joint distribution of features, labels and folds as it
is, and (1 + k) / (1 + N) is a valid p-value for any score of it (Phipson & Smyth 2010): exactly
where groups exchange with groups of their size. Between sizes it takes for granted, besides, that
a group's size does not go with its class. Rows alone, each a group, are all of a size, and so are
twins. Rows that share a group may be as alike as they please: they are never exchanged for others
one by one, which would count each of them as evidence of its own.
"""

import warnings
from itertools import chain
from math import comb, lgamma, log

import numpy as np
from jaxtyping import Int64, Shaped
from numpy import ndarray

from probes.errors import InputError
from probes.folds import NOT_IN_SPLIT, Folds

HELD = 0.1
"""Share of rows that may keep their label without a warning."""
LEAST = 20
"""Groups that exchange labels: of m, one in m keeps its own by chance, and what the features say of
it with it."""
TRIES = 1000


def shuffles(
    labels: Int64[ndarray, "prompt"],
    groups: Shaped[ndarray, "prompt"],
    folds: Folds,
    n: int,
    seed: int,
) -> Int64[ndarray, "draw prompt"]:
    """From which row each row takes its label and inner folds.

    Warns where many rows cannot but keep their label, or where there are few ways to shuffle: the
    p-value is then larger than it need be, never smaller.

    Args:
        labels: 1 = harmful.
        groups: Rows of one group lie in one fold.
        folds: Of the same rows.
        n: Number of shuffles.
        seed: Draws them.

    Raises:
        InputError: A group straddles folds, or shuffles leave some training rows with one class.
    """
    _, group = np.unique(groups, return_inverse=True)
    order = np.argsort(group, kind="stable")
    size = np.bincount(group)
    start = np.cumsum(size) - size
    fold = folds.fold[order]
    if (np.maximum.reduceat(fold, start) != np.minimum.reduceat(fold, start)).any():
        raise InputError("a group lies in several folds: its labels cannot be shuffled as one")
    harmful = np.bincount(group, labels).astype(np.int64)
    cell = _cells(fold[start], size, harmful)
    _warn(cell, size, harmful, n)
    place = np.arange(len(labels)) - start[group[order]]
    by_cell = np.argsort(cell, kind="stable")
    rng = np.random.default_rng(seed)
    found: list[ndarray] = []
    for _ in range(TRIES + n):
        if len(found) == n:
            break
        source, taken = np.empty_like(size), np.empty_like(order)
        source[by_cell] = np.lexsort((rng.random(len(size)), cell))
        within = np.lexsort((rng.random(len(labels)), group))
        giver = source[group[order]]
        taken[order] = within[start[giver] + place % size[giver]]
        if _has_both_classes(labels[taken], folds.fold, folds.inner[:, taken]):
            found.append(taken)
    else:
        raise InputError(
            "shuffling the labels by group leaves a fold with one class: one class has too few "
            "groups; give more prompts, finer groups or fewer folds"
        )
    return np.stack(found)


def _has_both_classes(labels: ndarray, fold: ndarray, inner: ndarray) -> bool:
    """In each outer fold, and among the rows that each inner fit is trained on."""
    tests = (fold == i for i in np.unique(fold))
    trains = (
        (split != i) & (split != NOT_IN_SPLIT)
        for split in inner[:-1]
        for i in range(split.max() + 1)
    )
    return all(0 < labels[rows].sum() < rows.sum() for rows in chain(tests, trains))


def _cells(
    fold: Int64[ndarray, "group"], size: Int64[ndarray, "group"], harmful: Int64[ndarray, "group"]
) -> Int64[ndarray, "group"]:
    """The groups that exchange labels share a number."""
    cell = np.empty_like(size)
    cells = 0
    for part in np.unique(fold):
        among = np.flatnonzero(fold == part)
        for lengths in _merged(size[among], harmful[among]):
            cell[among[np.isin(size[among], lengths)]] = cells
            cells += 1
    return cell


def _merged(size: Int64[ndarray, "group"], harmful: Int64[ndarray, "group"]) -> list[list[int]]:
    """Sizes that go together: as few neighbours as are enough."""
    sets: list[list[int]] = [[]]
    for length in np.unique(size).tolist():
        sets[-1].append(length)
        of_set = np.isin(size, sets[-1])
        if 0 < harmful[of_set].sum() < size[of_set].sum() and of_set.sum() >= LEAST:
            sets.append([])
    rest = sets.pop()
    if not sets:
        return [rest]
    sets[-1] += rest
    return sets


def _warn(cell: ndarray, size: ndarray, harmful: ndarray, n: int) -> None:
    """Of too few ways to shuffle, and of rows that stay as they are."""
    ways, kept = 0.0, 0
    for one in np.unique(cell):
        sizes, counts = size[cell == one], harmful[cell == one]
        alike = np.unique(counts / sizes, return_counts=True)[1]
        of_cell = lgamma(len(sizes) + 1) - sum(lgamma(k + 1) for k in alike)
        of_cell += sum(log(comb(int(m), int(k))) for m, k in zip(sizes, counts, strict=True))
        ways += of_cell
        kept += int(sizes.sum()) if of_cell < 1e-9 else 0
    if ways < log(10 * n):
        warnings.warn(
            f"labels can be shuffled among these groups in about {np.exp(ways):.0f} ways only: "
            f"{n} shuffles repeat them, and the p-value is coarse",
            RuntimeWarning,
            stacklevel=3,
        )
    if kept > HELD * size.sum():
        warnings.warn(
            f"{kept} of {size.sum()} rows keep their label in every shuffle, since all groups in "
            "their fold are of one class: the null scores lie above chance",
            RuntimeWarning,
            stacklevel=3,
        )
