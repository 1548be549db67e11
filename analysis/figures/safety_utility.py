"""Attack success against new-task accuracy: one panel a model, one numbered point an arm.

The lower right is good: the new task is learnt and the model still refuses. Of each model the
setting is shown in which most was tried, and that of the mixed attack if there is one; beside it
the untrained model. Bars are 95 % intervals. How few anchors are enough is `anchors_needed`'s.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from analysis import arms, defences, results, style

TABLE = "evaluations"
X, Y = "new_task", "attack_success"
COLUMNS = [*defences.RUN, "seeds", X, f"{X}_lo", f"{X}_hi", Y, f"{Y}_lo", f"{Y}_hi"]
APART = 9.5
"""Points (1/72 inch) between the middles of two numbers, or of a number and a marker."""


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, both shares and the ends of their intervals."""
    lines = defences.measured(table, X, Y)
    numbered = lines["defence"].str.contains(arms.NUMBERED)
    if not (numbered | (lines["defence"] == arms.BEFORE)).all():
        lines = lines[~numbered]
    parts = []
    for _, of_model in lines.groupby("model", sort=False):
        untrained = of_model["defence"] == arms.BEFORE
        if not untrained.all():
            parts += [of_model[untrained], arms.common_cell(of_model[~untrained])]
    if not parts:
        raise results.NothingToDraw(f"column defence: nothing but {arms.BEFORE}")
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def draw(table: pd.DataFrame) -> Figure:
    """Attack success (percent, down is safe) against new-task accuracy (percent)."""
    points = plotted(table)
    looks = arms.arms(table)
    models = dict(list(points.groupby("model", sort=False)))
    figure, axes = style.panels(
        list(map(str, models)),
        width={1: 6.5, 2: 4.8}.get(len(models), 4.4),
        height=4.8,
        sharey=True,
    )
    shown = [
        [looks[pair] for pair in zip(of_model["defence"], of_model["critic"], strict=True)]
        for of_model in models.values()
    ]
    for ax, (model, of_model), of_panel in zip(axes, models.items(), shown, strict=True):
        arms.head(ax, str(model), of_model)
        style.share_axis(ax, "x")
        style.share_axis(ax, "y")
        ax.set_xlabel("new-task accuracy (%; higher is better)")
        for (_, row), arm in zip(of_model.iterrows(), of_panel, strict=True):
            _point(ax, row, arm)
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("attack success (%; lower is safer)")
    arms.legend(figure, {arm for of_panel in shown for arm in of_panel}, lines=False)
    figure.draw_without_rendering()  # Where numbers fit is known once the panels have their size.
    for ax, of_model, of_panel in zip(axes, models.values(), shown, strict=True):
        _number(ax, of_model[[X, Y]].to_numpy(), of_panel)
    return figure


def _point(ax: Axes, row: pd.Series, arm: arms.Arm) -> None:
    """A marker on a thin cross of its intervals."""
    look: dict[str, Any] = {"color": arm.mark.colour, "lw": 0.8, "alpha": 0.45, "clip_on": False}
    ax.plot([row[f"{X}_lo"], row[f"{X}_hi"]], [row[Y]] * 2, **look)
    ax.plot([row[X]] * 2, [row[f"{Y}_lo"], row[f"{Y}_hi"]], **look)
    ax.plot(row[X], row[Y], color=arm.mark.colour, marker=arm.mark.marker, ls="", ms=5.5,
            mec="white", mew=0.5, clip_on=False, zorder=3, label=arm.label)  # fmt: skip


def _number(ax: Axes, points: np.ndarray, shown: list[arms.Arm]) -> None:
    """Each arm's number beside its marker, at the nearest place that is free."""
    to_points = 72 / ax.figure.dpi
    middles = ax.transData.transform(points) * to_points
    (left, bottom), (right, top) = ax.get_window_extent().get_points() * to_points
    angles, radii = np.linspace(0, 2 * np.pi, 24, endpoint=False), APART * np.linspace(1, 6, 11)
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    offsets = (radii[:, None, None] * ring).reshape(-1, 2)
    # Near before far; rather not along the arms of the cross.
    cost = (radii[:, None] / APART + 0.2 * np.cos(2 * angles) ** 2).ravel()
    taken = list(middles)
    for middle, point, arm in zip(middles, points, shown, strict=True):
        places = middle + offsets
        room = np.linalg.norm(places[:, None] - np.array(taken), axis=2).min(axis=1)
        inside = (places > (left, bottom)).all(axis=1) & (places < (right + 9, top + 9)).all(axis=1)
        taken_up = 10 * (room < 0.999 * APART) + 10 * ~inside
        best = (cost + taken_up - 0.3 * np.minimum(room / APART, 2)).argmin()
        taken.append(places[best])
        ax.annotate(
            str(arm.number), point, offsets[best], textcoords="offset points", fontsize=7.5,
            color=arm.mark.colour, ha="center", va="center", annotation_clip=False, zorder=4,
            path_effects=[withStroke(linewidth=1.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": arm.mark.colour, "lw": 0.5, "alpha": 0.6,
                        "shrinkA": 3, "shrinkB": 2},
        )  # fmt: skip
