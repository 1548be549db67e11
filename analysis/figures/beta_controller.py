"""Betas that follow from a budget: the drift above, beta below, by optimizer step.

One column a model, one line a run of each seed. Above, the mean KL to the reference on safe prompts
when it was measured last, with its budget dashed; below, beta of the riskiest and, where it moves
too, of the least risky rows.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import arms, defences, results, style

TABLE = "betas"
COLUMNS = [*defences.RUN, "seed", "step", "drift", "budget", "beta_min", "beta_max"]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """Drift (nats per answer token), budget and both betas of each step of the common setting."""
    results.unique(table, [*defences.RUN, "seed", "step"])
    cells = [arms.common_cell(of_model) for _, of_model in table.groupby("model", sort=False)]
    return pd.concat(cells, ignore_index=True)[COLUMNS]


def draw(table: pd.DataFrame) -> Figure:
    """Drift (nats per answer token) against its budget, and beta (0 to 1)."""
    points = plotted(table)
    looks = _looks(points)
    models = dict(list(points.groupby("model", sort=False)))
    width = {1: 6.5, 2: 4.8}.get(len(models), 4.0)
    figure = Figure(figsize=(width * len(models), 5.6))
    grid = figure.subplots(2, len(models), squeeze=False, sharex="col", sharey="row")
    for (above, below), (model, of_model) in zip(grid.T, models.items(), strict=True):
        arms.head(above, str(model), of_model)
        below.set_xlabel("optimizer step")
        for pair, mark in looks.items():
            for _, run in arms.of(of_model, pair).groupby("seed"):
                _lines(above, below, run.sort_values("step"), mark)
    grid[0, 0].set(ylabel="drift: KL on safe prompts\n(nats per answer token)", ylim=(0, None))
    grid[1, 0].set(ylabel="beta", ylim=(0, 1))
    for ax in grid[1]:
        ax.spines["bottom"].set_position(("outward", 4))
    _legend(figure, looks, moves=_moves(points))
    return figure


def _looks(points: pd.DataFrame) -> dict[tuple[str, str], style.Mark]:
    """A colour an arm, the tightest budget first."""
    order = points.sort_values("budget", kind="stable")
    pairs = list(dict.fromkeys(zip(order["defence"], order["critic"], strict=True)))
    return {
        pair: style.Mark(
            arms.COLOURS[i % len(arms.COLOURS)], "", "-" if i < len(arms.COLOURS) else (0, (3, 1))
        )
        for i, pair in enumerate(pairs)
    }


def _lines(above: Axes, below: Axes, run: pd.DataFrame, mark: style.Mark) -> None:
    budget = run["budget"].iloc[0]
    if budget < float("inf"):
        above.axhline(budget, color=mark.colour, lw=0.8, ls=(0, (4, 3)), alpha=0.7)
    look: dict[str, Any] = {"color": mark.colour, "ls": mark.dash, "lw": 1.1, "alpha": 0.8}
    above.plot(run["step"], run["drift"], drawstyle="steps-post", **look)
    below.plot(run["step"], run["beta_max"], drawstyle="steps-post", clip_on=False, **look)
    if run["beta_min"].nunique() > 1:
        below.plot(run["step"], run["beta_min"], drawstyle="steps-post", clip_on=False,
                   **{**look, "ls": ":"})  # fmt: skip


def _moves(points: pd.DataFrame) -> bool:
    """Whether beta_min moves in any run."""
    runs = points.groupby([*defences.RUN, "seed"], dropna=False)["beta_min"]
    return bool((runs.nunique() > 1).any())


def _legend(figure: Figure, looks: dict[tuple[str, str], style.Mark], *, moves: bool) -> None:
    handles = [
        Line2D([], [], color=mark.colour, ls=mark.dash, label=arms.label(*pair))
        for pair, mark in looks.items()
    ]
    handles.append(Line2D([], [], color=style.QUIET, lw=0.8, ls=(0, (4, 3)), label="its budget"))
    if moves:
        handles.append(Line2D([], [], color=style.QUIET, ls=":", label="beta_min"))
    columns = max(1, int(figure.get_figwidth() / 2.6))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5)
