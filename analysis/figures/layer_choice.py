"""How sure the choice of the layer is: one panel a model, AUROC above, frequency below.

Filled points are the layers within one standard error of the best one, the error being that of
their difference on the same draws of groups; the star is the layer that is chosen. The bars show in
which share of the draws each layer is the best.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from analysis import results, style

TABLE = "layers"
COLUMNS = ["model", "layer", "auroc", "error", "chosen", "within_one_error", "best"]
WITHIN, BEYOND, BARS = style.COLOURS[0], "white", style.COLOURS[5]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The layers, as in the table."""
    kept = results.unique(table, ["model", "layer"]).dropna(subset="auroc")
    if kept.empty:
        raise results.NothingToDraw("column auroc: no value to draw")
    return kept[COLUMNS].sort_values(["model", "layer"], kind="stable").reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) and share of draws (percent) by layer (block index), one column a model."""
    points = plotted(table)
    models = list(dict.fromkeys(table[table["model"].isin(points["model"])]["model"]))
    columns = min(style.IN_A_ROW, len(models))
    lines = -(-len(models) // columns)
    width = {1: 6.0, 2: 4.6}.get(len(models), 3.8)
    figure = Figure(figsize=(width * columns, 3.9 * lines))
    axes = figure.subplots(
        2 * lines, columns, squeeze=False, sharex="col", height_ratios=(2.4, 1) * lines
    )
    for i in range(lines * columns):
        upper, lower = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        if i >= len(models):
            upper.remove()
            lower.remove()
            continue
        of_model = points[points["model"] == models[i]]
        upper.set_title(style.clip(models[i]))
        _curve(upper, of_model)
        lower.bar(of_model["layer"], of_model["chosen"], color=BARS, width=0.8)
        lower.set_ylim(0, 1)
        lower.set_xlabel("layer (block)")
        lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
        n_layers = int(of_model["layer"].max()) + 1
        ticks = range(0, n_layers, max(1, -(-n_layers // 8)))
        lower.set_xticks([*ticks], [str(tick) for tick in ticks])
        lower.set_xlim(-0.7, n_layers - 0.3)
        if i % columns == 0:
            upper.set_ylabel("AUROC")
            lower.set_ylabel("best in\n% of draws")
    figure.legend(handles=_handles(), loc="outside lower center", ncols=min(2 * columns, 4))
    return figure


def _curve(ax: Axes, points: pd.DataFrame) -> None:
    ax.plot(points["layer"], points["auroc"], color=style.QUIET, lw=1.2, label="auroc")
    within, best = points["within_one_error"], points["best"]
    for name, which, colour, marker, size in (
        ("beyond", ~within, BEYOND, "o", 5),
        ("within", within & ~best, WITHIN, "o", 6),
        ("best", best, WITHIN, "*", 13),
    ):
        if not which.any():  # nothing drawn outside of the axes would confuse the layout
            continue
        of_kind = points[which]
        ax.plot(of_kind["layer"], of_kind["auroc"], color=WITHIN, markerfacecolor=colour,
                marker=marker, ms=size, ls="", label=name, zorder=3, clip_on=False)  # fmt: skip
    # A layer whose error reaches up to the line is within it.
    for top in points[best]["auroc"]:
        ax.axhline(top, color=WITHIN, lw=0.7, ls=(0, (4, 3)), zorder=1)
    reach = (points["auroc"] + points["error"]).clip(upper=1)
    ax.vlines(points["layer"], points["auroc"], reach, color=WITHIN, lw=1, alpha=0.6, zorder=2)
    low, high = points["auroc"].min(), points["auroc"].max()
    room = max(high - low, 0.02)
    ax.set_ylim(low - 0.1 * room, min(high + 0.12 * room, 1 + 0.05 * room))


def _handles() -> list[Line2D | Patch]:
    point: dict[str, Any] = {"color": WITHIN, "ls": ""}
    return [
        Line2D([], [], marker="*", ms=13, label="chosen", **point),
        Line2D([], [], marker="o", ms=6, label="within one standard error of it", **point),
        Line2D([], [], marker="o", ms=5, markerfacecolor=BEYOND, label="beyond", **point),
        Patch(color=BARS, label="how often it is best"),
    ]
