"""AUROC of each category against all the rest: one panel an evaluation set, with the words' own."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import categories, results, style

TABLE = "categories"
COLUMNS = ["model", "readout", "layer", "category", "train_set", "eval_set", "held_out", "n_pos",
           "n_neg", "auroc", "auroc_lo", "auroc_hi"]  # fmt: skip
PROBE, WORDS = "#0072B2", "#8a8a8a"


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points.

    Raises:
        NothingToDraw: no AUROC is defined.
    """
    results.unique(table, ["model", "readout", "category", "eval_set"])
    found = table.dropna(subset="auroc")
    if found.empty:
        raise results.NothingToDraw("column auroc: none is defined")
    return found[COLUMNS].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) with 95 % intervals, by category; the probe in colour, the words in grey."""
    found = plotted(table)
    sets = {
        (str(model), name): found[(found["model"] == model) & (found["eval_set"] == name)]
        for model in dict.fromkeys(found["model"]) for name in style.evaluation_sets(found)
    }  # fmt: skip
    sets = {key: rows for key, rows in sets.items() if not rows.empty}
    names, labels = list(dict.fromkeys(found["category"])), style.set_labels(found)
    several = found["model"].nunique() > 1
    figure, axes = style.panels(
        [f"{style.clip(model)}, {labels[one]}" if several else labels[one] for model, one in sets],
        width=4.4, height=1.4 + 0.32 * len(names), sharex=True, sharey=True,
    )  # fmt: skip
    least = min(0.5, float(found["auroc_lo"].min()))
    for ax, rows in zip(axes, sets.values(), strict=True):
        ax.axvline(0.5, color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
        for _, cell in rows.iterrows():
            probe = cell["readout"] == "layer"
            ax.errorbar(
                cell["auroc"], names.index(cell["category"]) + (-0.14 if probe else 0.14),
                xerr=[[cell["auroc"] - cell["auroc_lo"]], [cell["auroc_hi"] - cell["auroc"]]],
                color=PROBE if probe else WORDS, marker="o" if probe else "s", ms=5, lw=1,
                clip_on=False, zorder=3,
            )  # fmt: skip
        ax.set_yticks(range(len(names)), [categories.label(name) for name in names])
        ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(least, 1), xlabel="AUROC")
        ax.spines[["left", "bottom"]].set_position(("outward", 6))
    floors = [name for name in style.FLOORS if name in set(found["readout"])]
    handles = [Line2D([], [], color=PROBE, marker="o", ls="", label="frozen probe")]
    handles += [
        Line2D([], [], color=WORDS, marker="s", ls="",
               label=f"the words alone ({style.READOUTS[floors[0]]})")
    ] if floors else []  # fmt: skip
    handles += [Line2D([], [], color=style.QUIET, lw=0.8, ls=(0, (4, 3)), label="chance")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure
