"""AUROC by layer: one panel a model, one curve an evaluation set, each with its 95 % band.

Left of block 0 stands the embedding; right of the last block the readouts that are not of one
layer: pooled over layers, then the lexical floors, which see the words alone. A thin line carries
their in-distribution value across the panel, so that the curves can be read against it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import blended_transform_factory

from analysis import results, style

TABLE = "scores"
COLUMNS = [
    "model", "readout", "layer", "eval_set", "held_out", "auroc", "auroc_lo", "auroc_hi",
]  # fmt: skip
BESIDE = ("pooled-mean", "pooled-concat", "class-mean", *style.FLOORS)
"""Readouts right of the last block, where they are not of one layer."""
EARLY = 3
"""Blocks 0-2 are the early ones."""
CLASS_MEAN: dict[str, Any] = {"color": "#555555", "lw": 1.0, "ls": (0, (7, 2, 1, 2, 1, 2))}
POOLED: dict[str, Any] = {"color": "black", "lw": 0.9, "ls": (0, (1, 2))}
FLOOR: dict[str, Any] = {"color": style.QUIET, "lw": 0.8, "ls": "-"}


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: curves and points of each set, and the class mean's curve in-distribution."""
    known = table[table["readout"].isin(style.READOUTS)]
    # One more curve a set would hide the ones that matter: the class mean has its own once.
    crowding = (known["readout"] == "class-mean") & (known["layer"] >= 0) & known["held_out"]
    kept = results.unique(known[~crowding], ["model", "readout", "layer", "eval_set"])
    if kept["auroc"].isna().all():
        raise results.TableError("column auroc: no value to draw")
    return kept[COLUMNS].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) by layer (block index), one panel a model."""
    points = plotted(table)
    marks = style.marks(points)
    models = list(dict.fromkeys(points["model"]))
    figure, axes = style.panels(
        [style.clip(model) for model in models],
        width={1: 6.5, 2: 4.8}.get(len(models), 3.9), height=4.0, sharey=True,
    )  # fmt: skip
    for ax, model in zip(axes, models, strict=True):
        _panel(ax, points[points["model"] == model], marks)
    axes[0].set_ylim(min(0.4, points["auroc"].min() - 0.02), 1.01)
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("AUROC")
    _legend(figure, points, marks)
    return figure


def _panel(ax: Axes, points: pd.DataFrame, marks: dict[str, style.Mark]) -> None:
    single = points[points["readout"].isin(["layer", "class-mean"]) & (points["layer"] >= 0)]
    n_layers = int(single["layer"].max()) + 1 if len(single) else 1
    step = max(1.0, n_layers / 9)
    beside = style.in_order(points[points["layer"] < 0]["readout"], BESIDE)
    places = {
        name: n_layers - 1 + step * (1.4 + i + 0.5 * (name in style.FLOORS))
        for i, name in enumerate(beside)
    }
    if (points["readout"] == "embedding").any():
        places["embedding"] = -1.4 * step

    _zones(ax, n_layers)
    quiet = single[single["readout"] == "class-mean"].sort_values("layer")
    ax.plot(quiet["layer"], quiet["auroc"], **CLASS_MEAN, label="class-mean")
    for i, (name, mark) in enumerate(marks.items()):
        of_set = points[points["eval_set"] == name]
        curve = of_set[of_set["readout"] == "layer"].sort_values("layer")
        inside = not curve["held_out"].any()
        every = max(1, round(n_layers / 8))
        ax.plot(
            curve["layer"], curve["auroc"], color=mark.colour, marker=mark.marker, ls=mark.dash,
            markevery=(i % every, every), label=name,
            # Broad and below, so that curves that coincide near 1 are all seen.
            lw=2.4 if inside else 1.4, ms=6.5 if inside else 4.5, zorder=3 if inside else 4,
        )  # fmt: skip
        ax.fill_between(
            curve["layer"], curve["auroc_lo"], curve["auroc_hi"], color=mark.colour, lw=0,
            alpha=0.18 if inside else max(0.07, 0.18 - 0.02 * len(marks)),
        )  # fmt: skip
        shift = step * 0.7 * ((i + 0.5) / len(marks) - 0.5)
        for readout, place in places.items():
            _point(ax, of_set[of_set["readout"] == readout], place + shift, mark)

    ticks = range(0, n_layers, max(1, -(-n_layers // 8)))
    ax.set_xticks([*ticks], [str(tick) for tick in ticks])
    ax.set_xlim(-2.1 * step, max([n_layers - 1, *places.values()]) + 0.6 * step)
    below = blended_transform_factory(ax.transData, ax.transAxes)
    ax.annotate("layer (block)", ((n_layers - 1) / 2, 0), xycoords=below, xytext=(0, -20),
                textcoords="offset points", ha="center", va="top")  # fmt: skip
    for readout, place in places.items():
        ax.annotate(
            style.READOUTS[readout], (place, 0), xycoords=below, xytext=(0, -5),
            textcoords="offset points", rotation=90, ha="center", va="top", fontsize=8.5,
        )  # fmt: skip


def _point(ax: Axes, rows: pd.DataFrame, x: float, mark: style.Mark) -> None:
    """A readout that is not of one layer: a point with its interval; a line in-distribution."""
    for row in rows.dropna(subset="auroc").to_dict("records"):
        auroc = row["auroc"]
        ax.plot([x], [auroc], color=mark.colour, marker=mark.marker, ls="", zorder=5,
                label=row["eval_set"])  # fmt: skip
        ax.vlines(x, row["auroc_lo"], row["auroc_hi"], color=mark.colour, lw=1, alpha=0.7)
        if not row["held_out"] and row["readout"] != "embedding":
            look = FLOOR if row["readout"] in style.FLOORS else POOLED
            ax.plot([0, x], [auroc, auroc], **look, zorder=1.5)


def _zones(ax: Axes, n_layers: int) -> None:
    """Chance, and the early and the final blocks."""
    ax.axhline(0.5, color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
    ax.text((n_layers - 1) / 2, 0.497, "chance", fontsize=8, color="#666666", ha="center",
            va="top")  # fmt: skip
    final = min(EARLY, n_layers // 3)
    zones = {"early": (0, min(EARLY, n_layers) - 1), "final": (n_layers - final, n_layers - 1)}
    for name, (first, last) in zones.items():
        if last < first or (name == "final" and first < EARLY):
            continue
        ax.axvspan(first - 0.4, last + 0.4, color="black", alpha=0.055, lw=0, zorder=0)
        ax.text(
            (first + last) / 2, 0.015, name, transform=ax.get_xaxis_transform(), fontsize=8,
            ha="center", va="bottom", color="#444444",
        )  # fmt: skip


def _legend(figure: Figure, points: pd.DataFrame, marks: dict[str, style.Mark]) -> None:
    labels = {
        name: label if label != "in-distribution" else f"{label} ({style.clip(name)})"
        for name, label in style.set_labels(points).items()
    }
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=mark.colour, marker=mark.marker, ls=mark.dash, label=labels[name])
        for name, mark in marks.items()
    ]
    readouts = set(points["readout"])
    handles.append(Patch(color="black", alpha=0.15, lw=0, label="95 % interval"))
    if "class-mean" in readouts:
        handles.append(Line2D([], [], **CLASS_MEAN, label="class mean, in-distr."))
    if readouts & {"pooled-mean", "pooled-concat"}:
        handles.append(Line2D([], [], **POOLED, label="pooled, in-distr."))
    if readouts & set(style.FLOORS):
        handles.append(Line2D([], [], **FLOOR, label="lexical floor, in-distr."))
    columns = max(2, int(figure.get_figwidth() / 2.7))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
