"""What is flagged at the frozen threshold: one panel a model, one row an evaluation set."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import results, style

TABLE = "operating"
HARMFUL, HARMLESS = "#D55E00", "#0072B2"
COLUMNS = [
    "model", "readout", "layer", "eval_set", "held_out", "fpr", "n_pos", "n_neg",
    "tpr", "tpr_lo", "tpr_hi", "realised_fpr", "realised_fpr_lo", "realised_fpr_hi",
]  # fmt: skip


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The chosen probe's rates, and the best floor's, at the highest rate that was asked for.

    Raises:
        NothingToDraw: the harmless prompts were too few for a threshold at that rate.
    """
    rows = table[table["fpr"] == table["fpr"].max()].dropna(subset="threshold")
    results.unique(rows, ["model", "readout", "layer", "eval_set"])
    parts = []
    for (model, _), cells in rows.groupby(["model", "eval_set"], sort=False):
        chosen = table.loc[table["model"] == model, "readout"].iloc[0]
        floors = cells[cells["readout"].isin(style.FLOORS)]
        parts += [
            cells[cells["readout"] == chosen],
            floors[floors["tpr"] == floors["tpr"].max()].head(1),
        ]
    if not parts:
        raise results.NothingToDraw("column threshold: no threshold at the rate asked for")
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def draw(table: pd.DataFrame) -> Figure:
    """Share flagged (percent) of the harmful and of the harmless prompts, with exact intervals."""
    points = plotted(table)
    sets = list(style.evaluation_sets(points))
    labels = style.set_labels(points)
    models = dict(list(points.groupby("model", sort=False)))
    figure, axes = style.panels(
        [style.clip(str(model)) for model in models],
        width=4.2, height=2.4 + 0.4 * len(sets), sharex=True, sharey=True,
    )  # fmt: skip
    asked = points["fpr"].iloc[0]
    for ax, of_model in zip(axes, models.values(), strict=True):
        style.share_axis(ax, "x")
        ax.axvline(asked, color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
        for row, name in enumerate(sets):
            _row(ax, row, of_model[of_model["eval_set"] == name])
        ax.set_yticks(range(len(sets)), [labels[name] for name in sets])
        ax.set_ylim(len(sets) - 0.4, -0.6)
        ax.set_xlabel("flagged (%)")
    figure.legend(
        handles=[
            _mark("o", HARMFUL, "harmful prompts, probe"),
            _mark("|", HARMFUL, "harmful prompts, words alone"),
            _mark("s", HARMLESS, "harmless prompts, probe"),
            Line2D([], [], color=style.QUIET, lw=0.8, ls=(0, (4, 3)),
                   label=f"false-positive rate asked for: {100 * asked:g} %"),
        ],
        loc="outside lower center", ncols=min(2, len(models)),
    )  # fmt: skip
    return figure


def _row(ax: Axes, row: int, cells: pd.DataFrame) -> None:
    """One evaluation set: the probe's two rates, and the floor's true positives."""
    for _, cell in cells.iterrows():
        if cell["readout"] in style.FLOORS:
            ax.plot(cell["tpr"], row, "|", color=HARMFUL, ms=9, mew=1.4, clip_on=False, zorder=2)
            continue
        for rate, marker, colour, shift in (
            ("tpr", "o", HARMFUL, -0.12),
            ("realised_fpr", "s", HARMLESS, 0.12),
        ):
            ends = [cell[f"{rate}_lo"], cell[f"{rate}_hi"]]
            ax.plot(ends, [row + shift] * 2, color=colour, lw=1.2, clip_on=False, zorder=2)
            ax.plot(cell[rate], row + shift, marker, color=colour, ms=5, clip_on=False, zorder=3)


def _mark(marker: str, colour: str, label: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, ls="", ms=6, label=label)
