"""Cosine between the directions of two positions' probes by layer: one panel a model."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from analysis import results, style

TABLE = "cosines"


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: model, layer, position, other, cosine."""
    points = results.unique(table, ["model", "layer", "position", "other"])
    if points["cosine"].isna().all():
        raise results.TableError("column cosine: no value to draw")
    columns = ["model", "layer", "position", "other", "cosine"]
    return points[columns].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Cosine (-1 to 1) by layer (block index), one line a pair of positions."""
    points = plotted(table)
    pairs = list(dict.fromkeys(zip(points["position"], points["other"], strict=True)))
    models = list(dict.fromkeys(points["model"]))
    figure, axes = style.panels(
        [style.clip(model) for model in models],
        width={1: 6.5, 2: 4.8}.get(len(models), 3.9), height=3.6, sharey=True,
    )  # fmt: skip
    for ax, model in zip(axes, models, strict=True):
        of_model = points[points["model"] == model]
        ax.axhline(0, color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
        for i, (position, other) in enumerate(pairs):
            of_pair = (of_model["position"] == position) & (of_model["other"] == other)
            line = of_model[of_pair].sort_values("layer")
            ax.plot(
                line["layer"], line["cosine"], color=style.COLOURS[i % len(style.COLOURS)],
                marker=style.MARKERS[i % len(style.MARKERS)],
                ls=(0, style.DASHES[i % len(style.DASHES)]), ms=4.5,
                label=f"{position} / {other}".replace("-", " "),
            )  # fmt: skip
        ticks = sorted(set(of_model["layer"]))
        ax.set_xticks(ticks[:: max(1, -(-len(ticks) // 8))])
        ax.set_xlabel("layer")
    axes[0].set_ylim(min(-0.2, points["cosine"].min() - 0.05), 1.03)
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("cosine of the directions")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = max(1, int(figure.get_figwidth() / 3.2))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    return figure
