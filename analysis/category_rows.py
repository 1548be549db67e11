"""Rows of the table of categories of harm."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CategoryRow:
    """How well one category is told from all the rest, on one evaluation set."""

    model: str
    """The model as named on the command line."""
    hook_point: str
    """As in `ScoreRow`."""
    position: str
    """As in `ScoreRow`."""
    layer: int
    """Block index from 0; -1 of a floor, which sees the words alone."""
    readout: str
    """layer, or a floor: tfidf-word, tfidf-char or length."""
    category: str
    """Its name; max and noisy-or are of all categories together, against the harmless rows."""
    train_set: str
    """The prompt set that it was fitted on."""
    eval_set: str
    """The prompt set that it was scored on."""
    held_out: bool
    """False for the train set itself, scored on folds that were not trained on."""
    n_pos: int
    """Prompts of the category in the evaluation set."""
    n_neg: int
    """All other prompts of it."""
    auroc: float
    """Area under the ROC curve, 0 to 1; NaN where it is undefined."""
    auroc_lo: float
    """Lower end of the 95 % interval."""
    auroc_hi: float
    """Upper end of it."""
    seed: int
    """Seed of folds, samples and bootstrap."""


TABLES: dict[str, type] = {"categories": CategoryRow}
"""File stem -> row."""
