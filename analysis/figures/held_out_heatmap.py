"""AUROC of every readout on every evaluation set: layers down, sets across, one panel a model."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis import results, style

TABLE = "scores"
GROUPS = (("embedding",), ("layer",), ("pooled-mean", "pooled-concat"), style.FLOORS)
"""Readouts from top to bottom, with a gap between groups."""
GAP = 0.35
"""Height of the gap, in cells."""


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
    models = list(dict.fromkeys(cells["model"]))
    rows = {model: _rows(cells[cells["model"] == model]) for model in models}
    depth = max(bottom for placed in rows.values() for bottom in placed.values()) + 1
    figure, axes = style.panels(
        [style.clip(model, 26) for model in models],
        width=max(3.0, 1.0 + 0.4 * len(sets)), height=1.6 + 0.19 * depth, sharex=True,
    )  # fmt: skip
    scale = Normalize(min(0.5, np.floor(cells["auroc"].min() * 10) / 10), 1)
    colours = mpl.cm.ScalarMappable(scale, "cividis")
    for ax, model in zip(axes, models, strict=True):
        _panel(ax, cells[cells["model"] == model], rows[model], sets, colours)
        ax.set_ylim(depth, 0)
        ax.set_xlim(-0.02, len(sets))
        ax.set_xticks(np.arange(len(sets)) + 0.5, [names[name] for name in sets])
        ax.tick_params("x", rotation=90, length=0, labelbottom=True)
        ax.spines[:].set_visible(False)
    bar = figure.colorbar(
        colours, ax=axes, shrink=min(0.5, 3 / figure.get_figheight()), aspect=25, pad=0.02
    )
    bar.set_label("AUROC")
    bar.outline.set_visible(False)
    return figure


def _rows(cells: pd.DataFrame) -> dict[tuple[str, int], float]:
    """(readout, layer) -> top of its row, in cells from the top of the panel."""
    tops: dict[tuple[str, int], float] = {}
    top = 0.0
    for group in GROUPS:
        for readout in group:
            for layer in sorted(set(cells.loc[cells["readout"] == readout, "layer"])):
                tops[readout, layer] = top
                top += 1
        if tops and top == max(tops.values()) + 1:
            top += GAP
    return tops


def _panel(
    ax: Axes,
    cells: pd.DataFrame,
    rows: dict[tuple[str, int], float],
    sets: list[str],
    colours: mpl.cm.ScalarMappable,
) -> None:
    for cell in cells.to_dict("records"):
        left, top = sets.index(cell["eval_set"]), rows[cell["readout"], cell["layer"]]
        known = not np.isnan(cell["auroc"])
        red, green, blue, _ = colour = colours.to_rgba(cell["auroc"]) if known else (1, 1, 1, 1)
        ax.add_patch(Rectangle((left, top), 0.96, 0.94, facecolor=colour, lw=0))
        bright = 0.299 * red + 0.587 * green + 0.114 * blue > 0.45
        ax.text(
            left + 0.48, top + 0.49, _two_digits(cell["auroc"]), ha="center", va="center",
            fontsize=7.5, color="black" if bright else "white",
        )  # fmt: skip
    top_layer = next((layer for readout, layer in rows if readout == "layer"), None)
    labels = [
        ("layer " if layer == top_layer else "") + str(layer)
        if readout == "layer"
        else style.READOUTS[readout]
        for readout, layer in rows
    ]
    ax.set_yticks([top + 0.47 for top in rows.values()], labels)
    ax.tick_params("y", length=0, labelsize=8)


def _two_digits(auroc: float) -> str:
    """.98; 1.0 is said of nothing but a perfect score."""
    if np.isnan(auroc):
        return "–"
    return "1.0" if auroc == 1 else f"{min(auroc, 0.99):.2f}".removeprefix("0")
