"""Folds shared by every layer, readout and lexical floor: outer ones to score, inner ones for C.

Rows of one group never straddle two folds. The inner folds of a split divide its training rows
only, so that C is chosen without the rows that it is scored on.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Shaped
from numpy import ndarray
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from probes.errors import InputError

NOT_IN_SPLIT = -1


@dataclass(frozen=True)
class Folds:
    """Split s = 0..n-1 trains on all rows outside fold s; split n trains on all rows."""

    fold: Int64[ndarray, "prompt"]
    """The outer fold of each row."""
    inner: Int64[ndarray, "split prompt"]
    """The inner fold of each row within each split; -1 for rows that are not trained on."""

    @classmethod
    def of(
        cls,
        labels: Int64[ndarray, "prompt"],
        groups: Shaped[ndarray, "prompt"],
        *,
        folds: int = 5,
        seed: int = 0,
    ) -> "Folds":
        """Stratified by label, whole groups together.

        Where a training split has fewer groups of a class than `folds`, its inner folds are fewer.

        Raises:
            InputError: Labels are not 0 or 1, there is one class only, or too few groups of a class
                to put some into every fold.
        """
        unknown = set(np.unique(labels).tolist()) - {0, 1}
        if unknown:
            raise InputError(f"labels must be 0 or 1, but there is also {sorted(unknown)[0]!r}")
        if folds < 2:
            raise InputError(f"{folds} folds: cross-validation needs at least 2")
        _, group = np.unique(groups, return_inverse=True)
        # A fold less to train on must leave two groups a class, for C's own cross-validation.
        needed = max(folds, 3)
        counts = _groups_of_class(labels, group)
        if min(counts) < needed:
            raise InputError(
                f"{folds} folds need {needed} groups with harmful rows and {needed} with harmless "
                f"rows, but there are {counts[1]} and {counts[0]} among {len(labels)} rows "
                f"({len(set(group))} groups); give more prompts, finer groups or fewer folds"
            )
        fold = assign(labels, group, folds, seed)
        empty = [f for f in range(folds) if len(np.unique(labels[fold == f])) < 2]
        if empty:
            raise InputError(
                f"{len(empty)} of {folds} folds would hold one class only, since the "
                f"{len(set(group))} groups are of very unequal size; give finer groups or fewer "
                "folds"
            )
        inner = np.full((folds + 1, len(labels)), NOT_IN_SPLIT)
        for split in range(folds + 1):
            rows = fold != split
            most = max(2, min(folds, *_groups_of_class(labels[rows], group[rows])))
            inner[split, rows] = assign(labels[rows], group[rows], most, seed)
            if any(len(np.unique(labels[rows & (inner[split] != i)])) < 2 for i in range(most)):
                raise InputError(
                    f"the training rows of split {split} cannot be divided again to choose C: one "
                    "class has too few groups, or groups of very unequal size; give more prompts, "
                    "finer groups or fewer folds"
                )
        return cls(fold, inner)

    @property
    def n(self) -> int:
        """Number of outer folds; also the index of the split that trains on all rows."""
        return len(self.inner) - 1

    def train(self, split: int) -> Bool[ndarray, "prompt"]:
        """The rows that a split trains on."""
        return self.inner[split] != NOT_IN_SPLIT


def _groups_of_class(labels: ndarray, group: ndarray) -> tuple[int, int]:
    return len(set(group[labels == 0])), len(set(group[labels == 1]))


def assign(labels: ndarray, group: ndarray, folds: int, seed: int) -> Int64[ndarray, "prompt"]:
    """The fold of each row: stratified by label, of however many, whole groups together."""
    fold = np.empty(len(labels), dtype=np.int64)
    splits = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(
        labels, labels, group
    )
    if len(np.unique(group)) == len(group):  # the same thing, a hundred times as fast
        splits = StratifiedKFold(folds, shuffle=True, random_state=seed).split(labels, labels)
    for i, (_, test) in enumerate(splits):
        fold[test] = i
    return fold
