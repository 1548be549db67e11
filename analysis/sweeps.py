"""Attack success along one part of the setting: what the figures `attack_by_*` have in common."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import arms, defences, results, style

METRIC = "attack_success"
COLUMNS = [*defences.RUN, "seeds", METRIC, f"{METRIC}_lo", f"{METRIC}_hi"]


def plotted(evaluations: pd.DataFrame, along: str) -> pd.DataFrame:
    """The points of each model's longest sweep, and the untrained model.

    Raises:
        NothingToDraw: no model was attacked at two values of `along`.
    """
    lines = defences.measured(evaluations, METRIC)
    parts = []
    for _, of_model in lines.groupby("model", sort=False):
        untrained = of_model["defence"] == arms.BEFORE
        sweep = arms.longest_sweep(of_model[~untrained], along)
        if not sweep.empty:
            parts += [of_model[untrained], sweep]
    if not parts:
        raise results.NothingToDraw(f"column {along}: no two values under one attack")
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def draw(evaluations: pd.DataFrame, along: str) -> tuple[Figure, list[Axes]]:
    """Attack success (percent) along a column: one panel a model, one numbered line an arm."""
    points = plotted(evaluations, along)
    looks = arms.arms(evaluations)
    models = dict(list(points.groupby("model", sort=False)))
    figure, axes = style.panels(
        list(map(str, models)),
        width={1: 6.5, 2: 4.8}.get(len(models), 4.0),
        height=4.4,
        sharey=True,
    )
    ends = []
    for ax, (model, of_model) in zip(axes, models.items(), strict=True):
        arms.head(ax, str(model), of_model)
        style.share_axis(ax, "y")
        lines = {arm: arms.of(of_model, pair).sort_values(along) for pair, arm in looks.items()}
        ends.append({
            # Where the line ends: the untrained model has no place on the axis, but at its end.
            arm: (line[along].fillna(of_model[along].max()).iloc[-1], line[METRIC].iloc[-1])
            for arm, line in lines.items() if not line.empty
        })  # fmt: skip
        for arm in ends[-1]:
            _line(ax, lines[arm], along, arm)
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("attack success (%; lower is safer)")
    arms.legend(figure, {arm for of_panel in ends for arm in of_panel})
    figure.draw_without_rendering()  # Which gives the panels their size.
    for ax, of_panel in zip(axes, ends, strict=True):
        arms.number_ends(ax, of_panel)
    return figure, axes


def _line(ax: Axes, line: pd.DataFrame, along: str, arm: arms.Arm) -> None:
    """One arm's line and band; of the untrained model a line across."""
    x, y, mark = line[along], line[METRIC], arm.mark
    if x.isna().all():
        ax.axhline(y.iloc[0], color=mark.colour, lw=1, zorder=2, label=arm.label)
        return
    ax.plot(x, y, color=mark.colour, marker=mark.marker, ls=mark.dash, lw=1.3, clip_on=False,
            zorder=3, label=arm.label)  # fmt: skip
    ax.fill_between(x, line[f"{METRIC}_lo"], line[f"{METRIC}_hi"], color=mark.colour, lw=0,
                    alpha=0.1)  # fmt: skip
