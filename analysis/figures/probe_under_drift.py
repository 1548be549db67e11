"""The frozen probe on the model in training: AUROC by optimizer step, one panel a model."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import arms, defences, results, style

TABLE = "drift"
COLUMNS = [*defences.RUN, "seed", "step", "auroc", "auroc_lo", "auroc_hi", "tpr", "fpr"]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The looks at each run.

    Raises:
        NothingToDraw: there was one look at each, which is no line.
    """
    results.unique(table, [*defences.RUN, "seed", "step"])
    if table["step"].nunique() < 2:
        raise results.NothingToDraw("column step: no two looks at one run")
    return table[COLUMNS].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) above, and below what the frozen threshold flags (percent).

    Dashed is the reference. The harmful prompts' shares are lines with marks, the harmless ones'
    are dotted.
    """
    points = plotted(table)
    looks = arms.arms(table)
    models = dict(list(points.groupby("model", sort=False)))
    figure = Figure(figsize=({1: 6.5}.get(len(models), 4.4) * len(models), 5.6))
    grid = figure.subplots(2, len(models), squeeze=False, sharex="col", sharey="row")
    ends: list[dict[arms.Arm, tuple[float, float]]] = []
    for (above, below), (model, of_model) in zip(grid.T, models.items(), strict=True):
        above.set_title(style.clip(str(model)))
        lines = {arm: arms.of(of_model, pair).sort_values("step") for pair, arm in looks.items()}
        for arm, line in lines.items():
            for _, run in line.groupby([*defences.RUN, "seed"], dropna=False):
                _lines(above, below, run, arm.mark)
        below.set_xlabel("optimizer step (0: the reference)")
        ends.append({
            arm: (float(line["step"].iloc[-1]), float(line["tpr"].iloc[-1]))
            for arm, line in lines.items() if not line["tpr"].isna().all()
        })  # fmt: skip
    for ax in grid[1]:
        style.share_axis(ax, "y")
    grid[0, 0].set(ylabel="AUROC of the frozen probe", ylim=(min(0.9, points["auroc"].min()), 1))
    grid[1, 0].set_ylabel("flagged at its threshold (%)")
    arms.legend(figure, set(looks.values()))
    figure.draw_without_rendering()  # Which gives the panels their size.
    for ax, of_panel in zip(grid[1], ends, strict=True):
        arms.number_ends(ax, of_panel)
    return figure


def _lines(above: Axes, below: Axes, run: pd.DataFrame, mark: style.Mark) -> None:
    """One run: its AUROC with the interval, and what is flagged of each class."""
    for ax, column in ((above, "auroc"), (below, "tpr")):
        ax.axhline(run[column].iloc[0], color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
        ax.plot(run["step"], run[column], color=mark.colour, marker=mark.marker, ls=mark.dash,
                lw=1.2, ms=3.5, clip_on=False)  # fmt: skip
    above.fill_between(run["step"], run["auroc_lo"], run["auroc_hi"], lw=0, color=mark.colour,
                       alpha=0.1)  # fmt: skip
    below.plot(run["step"], run["fpr"], color=mark.colour, ls=":", lw=1.2, clip_on=False)
