"""From which prompts to which: train sets down, evaluation sets across, one panel a model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis import heatmaps, results, style, tables

TABLE = "scores"
TOGETHER = ("train_set",)
COLUMNS = ["model", "train_set", "eval_set", "held_out", "layer", "auroc", "auroc_lo", "auroc_hi"]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """AUROC at each train set's own best layer; `worst` is a model's lowest held-out one.

    Raises:
        NothingToDraw: no model was fitted on two sets.
    """
    results.unique(table, ["model", "train_set", "readout", "layer", "eval_set"])
    parts = []
    for _, of_model in table.groupby("model", sort=False):
        if of_model["train_set"].nunique() < 2:
            continue
        cells = []
        for _, fitted in of_model.groupby("train_set", sort=False):
            best = tables.best_layer(fitted)
            cells.append(fitted[(fitted["readout"] == "layer") & (fitted["layer"] == best)])
        found = pd.concat(cells, ignore_index=True)[COLUMNS]
        lowest = found["auroc"].where(found["held_out"]).min()
        parts.append(found.assign(worst=found["held_out"] & (found["auroc"] == lowest)))
    if not parts:
        raise results.NothingToDraw("column train_set: no model was fitted on two sets")
    return pd.concat(parts, ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) as colour and number; out of fold in italics, the worst case framed."""
    cells = plotted(table)
    down, across = (list(dict.fromkeys(cells[name])) for name in ("train_set", "eval_set"))
    models = dict(list(cells.groupby("model", sort=False)))
    figure, axes = style.panels(
        [style.clip(str(model), 26) for model in models],
        width=max(3.2, 2.0 + 0.5 * len(across)), height=2.0 + 0.32 * len(down),
        sharex=True, sharey=True,
    )  # fmt: skip
    norm = heatmaps.scale(cells["auroc"])
    for ax, of_model in zip(axes, models.values(), strict=True):
        grid = of_model.pivot(index="train_set", columns="eval_set", values="auroc")
        grid = grid.reindex(index=down, columns=across)
        sns.heatmap(
            grid, ax=ax, norm=norm, cmap="cividis", cbar=False, linewidths=1.2,
            annot=grid.map(heatmaps.two_digits).where(grid.notna(), ""), fmt="",
            annot_kws={"fontsize": 8}, xticklabels=[style.clip(name, 24) for name in across],
            yticklabels=[style.clip(name, 24) for name in down],
        )  # fmt: skip
        for text in ax.texts:
            column, row = (int(np.floor(place)) for place in text.get_position())
            text.set_fontstyle("italic" if down[row] == across[column] else "normal")
        for _, cell in of_model[of_model["worst"]].iterrows():
            place = (across.index(cell["eval_set"]), down.index(cell["train_set"]))
            ax.add_patch(Rectangle(place, 1, 1, fill=False, ec="#D55E00", lw=2, clip_on=False))
        ax.set(xlabel="", ylabel="")
        ax.tick_params("x", rotation=90, length=0, labelbottom=True)
        ax.tick_params("y", rotation=0, length=0, labelsize=8)
    axes[0].set_ylabel("fitted on")
    heatmaps.colour_bar(figure, axes)
    return figure
