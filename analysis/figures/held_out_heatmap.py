"""AUROC of every readout on every evaluation set: layers down, sets across, one panel a model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis import results, style

TABLE = "scores"
GROUPS = (("embedding",), ("layer",), ("pooled-mean", "pooled-concat"), style.FLOORS)
"""Readouts from top to bottom, with a gap between groups."""
BETWEEN = "between"
"""Stands for a readout in the empty row between two groups."""


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The cells: model, readout, layer, eval_set, held_out, auroc."""
    shown = [readout for group in GROUPS for readout in group]
    cells = table[table["readout"].isin(shown)]
    cells = results.unique(cells, ["model", "readout", "layer", "eval_set"])
    if cells["auroc"].isna().all():
        raise results.TableError("column auroc: no value to draw")
    columns = ["model", "readout", "layer", "eval_set", "held_out", "auroc"]
    return cells[columns].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) as colour and number; an undefined one is a dash on white."""
    cells = plotted(table)
    sets = list(style.evaluation_sets(cells))
    names = style.set_labels(cells)
    grids = {model: _grid(of_model, sets) for model, of_model in cells.groupby("model", sort=False)}
    depth = max(len(grid) for grid in grids.values())
    figure, axes = style.panels(
        [style.clip(str(model), 26) for model in grids],
        width=max(3.0, 1.0 + 0.4 * len(sets)), height=1.6 + 0.19 * depth, sharex=True,
    )  # fmt: skip
    scale = Normalize(min(0.5, np.floor(cells["auroc"].min() * 10) / 10), 1)
    for ax, grid in zip(axes, grids.values(), strict=True):
        sns.heatmap(
            grid, ax=ax, norm=scale, cmap="cividis", cbar=False, linewidths=1.2,
            annot=grid.map(_two_digits), fmt="", annot_kws={"fontsize": 7.5},
            xticklabels=[names[name] for name in sets], yticklabels=_row_names(grid),
        )  # fmt: skip
        for row, column in np.argwhere(grid.isna().to_numpy()):
            if grid.index[row][0] != BETWEEN:
                ax.text(column + 0.5, row + 0.5, "–", ha="center", va="center", fontsize=7.5)
        ax.set(xlabel="", ylabel="", ylim=(depth, 0))
        ax.tick_params("x", rotation=90, length=0, labelbottom=True)
        ax.tick_params("y", rotation=0, length=0, labelsize=8)
    bar = figure.colorbar(
        axes[0].collections[0],
        ax=axes, shrink=min(0.5, 3 / figure.get_figheight()), aspect=25, pad=0.02,
    )  # fmt: skip
    bar.set_label("AUROC")
    bar.outline.set_visible(False)
    return figure


def _grid(cells: pd.DataFrame, sets: list[str]) -> pd.DataFrame:
    """One row a readout and layer, one column a set; an empty row between two groups."""
    parts: list[pd.DataFrame] = []
    for group in GROUPS:
        wide = cells.pivot(index=["readout", "layer"], columns="eval_set", values="auroc")
        rows = sorted(
            (row for row in wide.index if row[0] in group),
            key=lambda row: (group.index(row[0]), row[1]),
        )
        if rows and parts:
            between = pd.MultiIndex.from_tuples([(BETWEEN, len(parts))], names=wide.index.names)
            parts.append(pd.DataFrame(np.nan, index=between, columns=sets))
        if rows:
            parts.append(wide.loc[rows].reindex(columns=sets))
    return pd.concat(parts)


def _row_names(grid: pd.DataFrame) -> list[str]:
    layers = [layer for readout, layer in grid.index if readout == "layer"]
    return [
        ("layer " if layer == layers[0] else "") + str(layer)
        if readout == "layer"
        else style.READOUTS.get(readout, "")
        for readout, layer in grid.index
    ]


def _two_digits(auroc: float) -> str:
    """.98; 1.0 is said of nothing but a perfect score."""
    return "1.0" if auroc == 1 else f"{min(auroc, 0.99):.2f}".removeprefix("0")
