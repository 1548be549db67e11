"""Which betas? Attack success against new-task accuracy of a grid of them: one panel a model.

The lower right is good. The line joins what no other setting dominates: the Pareto front. A
setting's colour says whether its betas are fixed or follow from a budget, its marker whether the
risk is a probability or sharpened; a star is the paper's. Bars are 95 % intervals over seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from analysis import arms, betas, defences, results, style

TABLE = "evaluations"
X, Y = betas.MORE, betas.LESS
COLUMNS = [*defences.RUN, "seeds", "kind", "sharpened", "low", "high", "budget", "label", "front",
           X, f"{X}_lo", f"{X}_hi", Y, f"{Y}_lo", f"{Y}_hi"]  # fmt: skip
COLOURS = {"fixed": style.COLOURS[0], "automatic": style.COLOURS[1]}
APART = 11.0
"""Points (1/72 inch) between two lines of text."""


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, what its betas are, whether it is on the front, shares."""
    results.unique(table, [*defences.RUN, "seed", "metric"])
    return betas.compared(table)[COLUMNS]


def draw(table: pd.DataFrame) -> Figure:
    """Attack success (percent, down is safe) against new-task accuracy (percent)."""
    points = plotted(table)
    models = dict(list(points.groupby("model", sort=False)))
    figure, axes = style.panels(
        list(map(str, models)), width={1: 7.2, 2: 5.4}.get(len(models), 4.6), height=5.0,
    )  # fmt: skip
    for ax, (model, of_model) in zip(axes, models.items(), strict=True):
        arms.head(ax, str(model), of_model)
        style.share_axis(ax, "y")
        ax.set_xlabel("new-task accuracy (%; higher is better)")
        _panel(ax, of_model[of_model["defence"] != arms.BEFORE])
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("attack success (%; lower is safer)")
    _legend(figure)
    figure.draw_without_rendering()  # Where labels fit is known once the panels have their size.
    for ax, of_model in zip(axes, models.values(), strict=True):
        _label(ax, of_model[of_model["front"]])
    return figure


def _panel(ax: Axes, points: pd.DataFrame) -> None:
    for _, row in points.iterrows():
        colour = COLOURS.get(row["kind"], arms.PINNED["none"])
        look: dict[str, Any] = {"color": colour, "lw": 0.8, "alpha": 0.35, "clip_on": False}
        ax.plot([row[f"{X}_lo"], row[f"{X}_hi"]], [row[Y]] * 2, **look)
        ax.plot([row[X]] * 2, [row[f"{Y}_lo"], row[f"{Y}_hi"]], **look)
        marker, size = _marker(row)
        # Hollow, so that what lies under it is seen: the shapes often end alike.
        edge: dict[str, Any] = (
            {"mfc": "none", "mew": 1.2} if marker == "D" else {"mec": "white", "mew": 0.5}
        )
        ax.plot(row[X], row[Y], color=colour, marker=marker, ls="", ms=size, clip_on=False,
                zorder=3 + (size > 7), **edge)  # fmt: skip
    front = points[points["front"]].sort_values(X)
    ax.plot(front[X], front[Y], color=style.QUIET, lw=1, ls=(0, (4, 2)), zorder=1, clip_on=False)
    # The settings lie close together: the axis shows what they span.
    ends = points[[f"{X}_lo", f"{X}_hi"]].to_numpy()
    low, high = np.nanmin(ends), np.nanmax(ends)
    room = 0.05 * (high - low) + 1e-3
    ax.set_xlim(max(0, low - room), min(1, high + room))
    ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}")


def _marker(row: pd.Series) -> tuple[str, float]:
    if row["defence"] == betas.PAPER:
        return "*", 12.0
    if row["kind"] == "reference":
        return "X", 7.0
    return ("D", 8.5) if row["sharpened"] else ("o", 6.0)


def _label(ax: Axes, front: pd.DataFrame) -> None:
    """The betas of the settings on the front, in a column beside the panel, in their order."""
    if front.empty:
        return
    found = front.sort_values([Y, X], ascending=[True, False])
    to_points = 72 / ax.figure.dpi
    height = ax.get_window_extent().height * to_points
    middles = ax.transData.transform(found[[X, Y]].to_numpy())
    y = ax.transAxes.inverted().transform(middles)[:, 1]
    step = APART / height
    places = np.maximum.accumulate(y - np.arange(len(y)) * step) + np.arange(len(y)) * step
    for (_, row), place in zip(found.iterrows(), places, strict=True):
        text = f"{row['label']}{' sharp' if row['sharpened'] else ''}"
        ax.annotate(
            text, (row[X], row[Y]), (1.03, place), textcoords="axes fraction", fontsize=8,
            va="center", color=COLOURS[row["kind"]], annotation_clip=False, zorder=4,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": COLOURS[row["kind"]], "lw": 0.5, "alpha": 0.6,
                        "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)},
        )  # fmt: skip


def _legend(figure: Figure) -> None:
    def mark(label: str, colour: str, marker: str, **look: Any) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, label=label, **{"ls": "", **look})

    handles = [
        mark("fixed betas (min-max)", COLOURS["fixed"], "o"),
        mark("the paper's, 0.1-0.9", COLOURS["fixed"], "*", ms=11),
        mark("betas by a budget (nats)", COLOURS["automatic"], "o"),
        mark("risk sharpened", style.QUIET, "D", mfc="none", ms=7),
        mark(arms.NAMES["none"], arms.PINNED["none"], "X"),
        mark("Pareto front", style.QUIET, "", ls=(0, (4, 2)), lw=1),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
