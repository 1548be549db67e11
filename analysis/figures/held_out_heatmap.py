"""AUROC of every readout on every evaluation set: layers down, sets across, one panel a model."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import heatmaps, results, style

TABLE = "scores"


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The cells: model, readout, layer, eval_set, held_out, auroc."""
    shown = [readout for group in heatmaps.GROUPS for readout in group]
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
    grids = {
        model: heatmaps.grid(of_model, "eval_set", sets)
        for model, of_model in cells.groupby("model", sort=False)
    }
    depth = max(len(grid) for grid in grids.values())
    figure, axes = style.panels(
        [style.clip(str(model), 26) for model in grids],
        width=max(3.0, 1.0 + 0.4 * len(sets)), height=1.6 + 0.19 * depth, sharex=True,
    )  # fmt: skip
    norm = heatmaps.scale(cells["auroc"])
    for ax, grid in zip(axes, grids.values(), strict=True):
        heatmaps.draw(ax, grid, [names[name] for name in sets], norm, depth)
    heatmaps.colour_bar(figure, axes)
    return figure
