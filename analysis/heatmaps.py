"""AUROC as colour and number, readouts down: what the heat maps have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from analysis import style

GROUPS = (("embedding",), ("layer",), ("pooled-mean", "pooled-concat"), style.FLOORS)
"""Readouts from top to bottom, with a gap between groups."""
BETWEEN = "between"
"""Stands for a readout in the empty row between two groups, and for a column between two others."""


def grid(cells: pd.DataFrame, across: str, columns: list[str]) -> pd.DataFrame:
    """One row a readout and layer, one column a value of `across`; empty rows between groups."""
    parts: list[pd.DataFrame] = []
    for group in GROUPS:
        wide = cells.pivot(index=["readout", "layer"], columns=across, values="auroc")
        rows = sorted(
            (row for row in wide.index if row[0] in group),
            key=lambda row: (group.index(row[0]), row[1]),
        )
        if rows and parts:
            between = pd.MultiIndex.from_tuples([(BETWEEN, len(parts))], names=wide.index.names)
            parts.append(pd.DataFrame(np.nan, index=between, columns=columns))
        if rows:
            parts.append(wide.loc[rows].reindex(columns=columns))
    return pd.concat(parts)


def scale(aurocs: pd.Series) -> Normalize:
    """From chance, or from below it where a value is, to 1."""
    return Normalize(min(0.5, np.floor(aurocs.min() * 10) / 10), 1)


def draw(ax: Axes, grid: pd.DataFrame, labels: Sequence[str], norm: Normalize, depth: int) -> None:
    """One panel, `depth` rows high; an undefined AUROC is a dash on white."""
    sns.heatmap(
        grid, ax=ax, norm=norm, cmap="cividis", cbar=False, linewidths=1.2,
        annot=grid.map(two_digits), fmt="", annot_kws={"fontsize": 7.5},
        xticklabels=labels, yticklabels=_row_names(grid),
    )  # fmt: skip
    for row, column in np.argwhere(grid.isna().to_numpy()):
        if BETWEEN not in (grid.index[row][0], grid.columns[column]):
            ax.text(column + 0.5, row + 0.5, "–", ha="center", va="center", fontsize=7.5)
    ax.set(xlabel="", ylabel="", ylim=(depth, 0))
    ax.tick_params("x", rotation=90, length=0, labelbottom=True)
    ax.tick_params("y", rotation=0, length=0, labelsize=8)


def colour_bar(figure: Figure, axes: Sequence[Axes]) -> None:
    """What the colours mean, right of all panels."""
    panels: Any = axes
    bar = figure.colorbar(
        axes[0].collections[0],
        ax=panels, shrink=min(0.5, 3 / figure.get_figheight()), aspect=25, pad=0.02,
    )  # fmt: skip
    bar.set_label("AUROC")
    bar.outline.set_visible(False)


def two_digits(auroc: float) -> str:
    """.98; 1.0 is said of nothing but a perfect score."""
    return "1.0" if auroc == 1 else f"{min(auroc, 0.99):.2f}".removeprefix("0")


def _row_names(grid: pd.DataFrame) -> list[str]:
    layers = [layer for readout, layer in grid.index if readout == "layer"]
    return [
        ("layer " if layer == layers[0] else "") + str(layer)
        if readout == "layer"
        else style.READOUTS.get(readout, "")
        for readout, layer in grid.index
    ]
