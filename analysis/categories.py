"""The table of categories of harm: one row a category, one column an evaluation set."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Group

from analysis import results, style, typeset

TOGETHER = {"max": "any of them (highest)", "noisy-or": "any of them (noisy-or)"}
"""How all categories together are called."""
BY = ["model", "train_set", "position"]
CAPTION = (
    "AUROC [95 % interval] of one category against all other rows, on folds that were not trained "
    "on and on held-out sets; in brackets the rows of the category. Words: what sees the text "
    "alone, on the same folds."
)


def label(category: str) -> str:
    """How a category is called in tables and pictures."""
    return TOGETHER.get(category, category)


def render(table: pd.DataFrame) -> Group:
    """For a terminal: one table a model, train set and position."""
    results.unique(table, [*BY, "eval_set", "readout", "category"])
    shown = []
    for (model, train, position), rows in table.groupby(BY, sort=False):
        sets = list(style.evaluation_sets(rows))
        names = style.set_labels(rows)
        head = ["category", *(f"{names[one]}{of}" for one in sets for of in ("", " words"))]
        layer = rows.loc[rows["readout"] == "layer", "layer"].iloc[0]
        shown.append(
            typeset.terminal(
                head, _lines(rows, sets), f"{model}, {train}, {position}, layer {layer}"
            )
        )
    return Group(*shown, CAPTION)


def _lines(rows: pd.DataFrame, sets: list[str]) -> list[list[str]]:
    found = []
    for category, of in rows.groupby("category", sort=False):
        cells = [label(str(category))]
        for one in sets:
            here = of[of["eval_set"] == one]
            probe, words = here[here["readout"] == "layer"], here[here["readout"] != "layer"]
            cells += [_cell(probe, counted=True), _cell(words, counted=False)]
        found.append(cells)
    return found


def _cell(rows: pd.DataFrame, *, counted: bool) -> str:
    if rows.empty or math.isnan(rows["auroc"].iloc[0]):
        return "–"
    row = rows.iloc[0]
    interval = f"{row['auroc']:.3f} [{row['auroc_lo']:.2f}, {row['auroc_hi']:.2f}]"
    return f"{interval} ({row['n_pos']})" if counted else f"{row['auroc']:.3f}"
