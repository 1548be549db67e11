"""NLL and KL by optimizer step: one column a model, one line an arm, mean over seeds, 95 % bands.

A step's loss is that of a few examples: what is drawn is the mean over blocks of steps. Of each
model the setting is shown in which most was tried, and that of the mixed attack if there is one.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import arms, defences, results, seeds, style

TABLE = "steps"
BLOCKS = 40
"""Points of a line, at the most."""
ROWS = {"nll": "NLL (nats per answer token)", "kl": "KL to the reference\n(nats per answer token)"}
"""Columns of the table, from top to bottom."""
SMALL = 0.01
"""Nats below which the axis of the KL is linear, so that it can start from 0."""


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, step (middle of its block), quantity, mean, lo, hi."""
    results.unique(table, [*defences.RUN, "seed", "step"])
    rows = table.dropna(subset=list(ROWS), how="all").reset_index(drop=True)
    if rows.empty:
        raise results.NothingToDraw("columns nll and kl: no value to draw")
    cells = [arms.common_cell(of_model) for _, of_model in rows.groupby("model", sort=False)]
    rows = pd.concat(cells, ignore_index=True)
    width = -(-rows.groupby("model")["step"].transform("max") // BLOCKS)
    rows["step"] = (rows["step"] - 1) // width * width + (width + 1) / 2
    long = rows.melt([*defences.RUN, "seed", "step"], list(ROWS), "quantity")
    points = [*defences.RUN, "quantity", "step"]
    by_seed = long.groupby([*points, "seed"], sort=False, dropna=False)["value"].mean()
    # A single run has no interval here: that of one step's few examples is not known.
    of_seeds = by_seed.reset_index().assign(lo=np.nan, hi=np.nan)
    return seeds.over_seeds(of_seeds, points, bounds=(0.0, np.inf))


def draw(table: pd.DataFrame) -> Figure:
    """NLL above and KL below (nats per answer token; KL linear below `SMALL`, then logarithmic)."""
    points = plotted(table)
    looks = arms.arms(table)
    models = dict(list(points.groupby("model", sort=False)))
    measured = set(points.dropna(subset="mean")["quantity"])
    rows = {quantity: label for quantity, label in ROWS.items() if quantity in measured}
    width = {1: 6.5, 2: 4.8}.get(len(models), 4.0)
    figure = Figure(figsize=(width * len(models), 3.3 * len(rows)))
    grid = figure.subplots(len(rows), len(models), squeeze=False, sharex="col", sharey="row")
    for ax, quantity in zip(grid[:, 0], rows, strict=True):
        if quantity == "kl":
            ax.set_yscale("symlog", linthresh=SMALL)
    ends: dict[Axes, dict[arms.Arm, tuple[float, float]]] = {}
    for column, (model, of_model) in zip(grid.T, models.items(), strict=True):
        arms.head(column[0], str(model), of_model)
        column[-1].set_xlabel("optimizer step")
        for ax, quantity in zip(column, rows, strict=True):
            of_row = of_model[of_model["quantity"] == quantity].dropna(subset="mean")
            lines = {arm: arms.of(of_row, pair).sort_values("step") for pair, arm in looks.items()}
            drawn = {arm: line for arm, line in lines.items() if not line.empty}
            for arm, line in drawn.items():
                _line(ax, line, arm.mark)
            ends[ax] = {arm: _last(line) for arm, line in drawn.items()}
    for ax, label in zip(grid[:, 0], rows.values(), strict=True):
        ax.set(ylabel=label, ylim=(0, None))
    arms.legend(figure, {arm for of_panel in ends.values() for arm in of_panel})
    figure.draw_without_rendering()  # Which gives the panels their size.
    for ax, of_panel in ends.items():
        arms.number_ends(ax, of_panel)
    return figure


def _line(ax: Axes, line: pd.DataFrame, mark: style.Mark) -> None:
    ax.plot(line["step"], line["mean"], color=mark.colour, marker=mark.marker, ls=mark.dash,
            lw=1.2, ms=3.5, markevery=max(1, len(line) // 6))  # fmt: skip
    ax.fill_between(line["step"], line["lo"], line["hi"], color=mark.colour, lw=0, alpha=0.1)


def _last(line: pd.DataFrame) -> tuple[float, float]:
    return line["step"].iloc[-1], line["mean"].iloc[-1]
