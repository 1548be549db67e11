"""The report's tables of AUROC: what each readout gives, on its own folds and on other sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from analysis import results
from analysis import tables as printed
from analysis.report.cases import Case, Tables
from analysis.report.wording import (
    NONE,
    digits,
    interval,
    signed,
    signed_interval,
    with_interval,
)
from analysis.rows import ScoreRow


class Line(NamedTuple):
    """One row of a grid."""

    cells: tuple[str, ...]
    heading: bool = False
    """Whether it is the heading of the rows below it: one cell, across all columns."""
    marked: bool = False
    """Whether a word in it, such as worst, is to be seen from afar."""


class Grid(NamedTuple):
    """A table as the page shows it: text, already worded."""

    caption: str
    head: tuple[str, ...]
    lines: tuple[Line, ...]
    note: str = ""
    texts: int = 1
    """Columns of text from the left; numbers follow, to the right."""


class Section(NamedTuple):
    """The grids under one heading."""

    title: str
    grids: tuple[Grid, ...]
    missing: str = ""
    """What was not computed, where there is no grid."""


def absent(table: str, what: str) -> str:
    """The line that stands where a table was not written."""
    return f"Not computed: {what} (no table {table} among the results)."


def auroc(tables: Tables) -> Section:
    """What `analysis.tables` prints, for each train set and place."""
    return Section(
        "AUROC", tuple(_auroc(part) for _, part in results.slices(tables["scores"]))
    )  # fmt: skip


def _auroc(scores: pd.DataFrame) -> Grid:
    lines: list[Line] = []
    for model, of_model in printed.auroc_table(scores).groupby("model", sort=False):
        layer, n_layers = of_model["layer"].iloc[0], of_model["n_layers"].iloc[0]
        lines.append(Line((f"{model}: layer {layer} of 0-{n_layers - 1}",), heading=True))
        for row in of_model.to_dict("records"):
            bracket = interval(row["auroc_lo"], row["auroc_hi"])
            others = (*printed.READOUTS, "tfidf")
            lines.append(Line((
                row["eval_set"] if row["held_out"] else "in-distribution",
                f"{row['n_pos']}/{row['n_neg']}",
                with_interval(digits(row["auroc"]), bracket),
                *(digits(row[name]) for name in others),
            )))  # fmt: skip
    place = [f"{name.replace('_', ' ')} {scores[name].iloc[0]}"
             for name in ("hook_point", "position", "seed")]  # fmt: skip
    return Grid(
        f"AUROC [95 % interval] of probes trained on {scores['train_set'].iloc[0]}",
        ("evaluated on", "n (+/−)", "best layer", "pooled mean", "pooled concat", "class mean",
         "embedding", "TF-IDF"),
        tuple(lines),
        "The best layer is chosen in-distribution. TF-IDF (the better of words and characters) "
        f"sees the text alone: what a probe has to beat. Read at {', '.join(place)}.",
    )  # fmt: skip


def margins(cases: Sequence[Case], tables: Tables) -> Section:
    """The lead of each frozen probe over the words."""
    title = "Lead over the words"
    if "margins" not in tables:
        return Section(title, (), absent("margins", "how far the probe is above the words"))
    lines = [
        line
        for case in cases
        for line in _under(case, [
            Line((
                row.eval_set if row.held_out else "in-distribution", row.floor,
                with_interval(signed(row.margin), signed_interval(row.margin_lo, row.margin_hi)),
            ))
            for row in case.margins or ()
        ])
    ]  # fmt: skip
    return Section(title, (Grid(
        "AUROC of the probe less that of the best lexical floor [paired 95 % interval]",
        ("evaluated on", "best floor", "lead"), tuple(lines),
        "The floor is the best one on that very set, which favours the words.", texts=2,
    ),))  # fmt: skip


def transfer(cases: Sequence[Case]) -> Section:
    """Train sets across, evaluation sets down; the worst held-out set of each is marked."""
    grids = []
    for model in dict.fromkeys(case.model for case in cases):
        of_model = [case for case in cases if case.model == model]
        by_set: dict[str, dict[str, ScoreRow]] = {}
        for case in of_model:
            for row in case.scores:
                by_set.setdefault(row.eval_set, {})[case.train_set] = row
        low = {case.train_set: _lowest(case.scores) for case in of_model}
        lines = []
        for eval_set, row_of in by_set.items():
            cells = [_transferred(row_of.get(case.train_set), low[case.train_set])
                     for case in of_model]  # fmt: skip
            marked = any("worst" in cell for cell in cells)
            lines.append(Line((eval_set, *cells), marked=marked))
        grids.append(Grid(
            f"Transfer of the frozen probes of {model}: AUROC [95 % interval]",
            ("evaluated on", *(f"trained on {case.train_set}" for case in of_model)),
            tuple(lines),
            "“worst” marks the held-out set of lowest AUROC, “own folds” the train set itself, on "
            "folds that were not fitted on.",
        ))  # fmt: skip
    return Section("Transfer", tuple(grids))


def _lowest(scores: Sequence[ScoreRow]) -> ScoreRow | None:
    known = [row for row in scores if row.held_out and row.auroc == row.auroc]
    return min(known, key=lambda row: row.auroc, default=None)


def _transferred(row: ScoreRow | None, low: ScoreRow | None) -> str:
    if row is None:
        return NONE
    said = with_interval(digits(row.auroc), interval(row.auroc_lo, row.auroc_hi))
    if not row.held_out:
        return f"own folds {said}"
    return f"worst {said}" if row is low else said


def _under(case: Case, lines: Sequence[Line]) -> Iterator[Line]:
    """The rows of one probe under its name."""
    if lines:
        yield Line((f"{case.model}, {case.probe}, trained on {case.train_set}",), heading=True)
        yield from lines


def under(table: pd.DataFrame, lines: Sequence[Line], *columns: str) -> list[Line]:
    """Rows under the values of the columns that tell them apart."""
    found: list[Line] = []
    before: tuple[object, ...] = ()
    for values, line in zip(table[list(columns)].itertuples(index=False), lines, strict=True):
        if (now := tuple(values)) != before:
            words = map(_named, columns, now)
            found.append(Line((", ".join(word for word in words if word),), heading=True))
            before = now
        found.append(line)
    return found


def _named(column: str, value: object) -> str:
    """A value as it stands in a heading; empty where it tells nothing."""
    if (column, value) in (("readout", "layer"), ("layer", -1), ("critic", "none")):
        return ""
    before = {
        "train_set": "trained on ",
        "layer": "layer ",
        "seed": "seed ",
        "attack": "on ",
        "eval_set": "answers to ",
    }
    return f"{before.get(column, '')}{value}"
