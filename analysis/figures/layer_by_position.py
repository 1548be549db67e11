"""AUROC by layer and position: layers down, positions across, one panel a model.

On the left in-distribution, on the right the mean over the held-out sets. The embedding, on top, is
what the token read, or the words' mean, tells before the model has computed anything; the floors,
below, see the words alone and are the same for all positions.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import heatmaps, results, style

TABLE = "scores"
TOGETHER = ("position",)
CELL = ["model", "position", "readout", "layer", "held_out"]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The cells: model, position, readout, layer, held_out, auroc (a mean), sets (over how many).

    A mean over sets of which one is undefined is undefined.

    Raises:
        NothingToDraw: no model was read at two positions.
    """
    shown = [readout for group in heatmaps.GROUPS for readout in group]
    cells = results.unique(table[table["readout"].isin(shown)], [*CELL, "eval_set"])
    if cells["auroc"].isna().all():
        raise results.TableError("column auroc: no value to draw")
    several = cells.groupby("model")["position"].transform("nunique") > 1
    if not several.any():
        raise results.NothingToDraw("column position: no model was read at two positions")
    by_cell = cells[several].groupby(CELL, sort=False)["auroc"]
    means = by_cell.agg(auroc=lambda values: values.mean(skipna=False), sets="size")
    return means.reset_index()


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) as colour and number; an undefined one is a dash on white."""
    cells = plotted(table)
    positions = list(dict.fromkeys(cells["position"]))
    columns: list[str] = []
    labels: list[str] = []
    for held_out in sorted(set(cells["held_out"])):
        if columns:
            columns.append(heatmaps.BETWEEN)
            labels.append("")
        columns += [_column(position, held_out) for position in positions]
        labels += [position.replace("-", " ") for position in positions]
    cells["column"] = [
        _column(position, held_out)
        for position, held_out in zip(cells["position"], cells["held_out"], strict=True)
    ]
    grids = {
        model: heatmaps.grid(of_model, "column", columns)
        for model, of_model in cells.groupby("model", sort=False)
    }
    depth = max(len(grid) for grid in grids.values())
    figure, axes = style.panels(
        [f"{style.clip(str(model), 26)}\n" for model in grids],
        width=max(3.0, 1.0 + 0.36 * len(columns)), height=2.2 + 0.19 * depth, sharex=True,
    )  # fmt: skip
    norm = heatmaps.scale(cells["auroc"])
    for ax, (model, grid) in zip(axes, grids.items(), strict=True):
        heatmaps.draw(ax, grid, labels, norm, depth)
        of_model = cells[cells["model"] == model]
        for held_out, of_group in of_model.groupby("held_out"):
            first = columns.index(_column(positions[0], bool(held_out)))
            n = of_group["sets"].max()
            what = f"held out\n(mean of {n})" if n > 1 else "held out"
            ax.text(
                first + len(positions) / 2, -0.3, what if held_out else "in-distribution",
                ha="center", va="bottom", fontsize=8,
            )  # fmt: skip
    heatmaps.colour_bar(figure, axes)
    return figure


def _column(position: str, held_out: bool) -> str:
    return f"{position} {'held out' if held_out else 'inside'}"
