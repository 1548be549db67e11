"""Whether a probability is what it says: one panel a model, without and with Platt's map."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis import results, style

TABLE = "reliability"
SHOWN = {"none": "as fitted", "platt": "Platt, out of fold"}
COLUMNS = [
    "model", "readout", "layer", "eval_set", "held_out", "calibration", "bin", "n",
    "probability", "share", "share_lo", "share_hi",
]  # fmt: skip


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The bins of the linear calibrations, which a frozen probe can have."""
    rows = table[table["calibration"].isin(SHOWN)]
    results.unique(rows, ["model", "eval_set", "calibration", "bin"])
    return rows[COLUMNS].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Share of harmful prompts (percent) against mean probability, in ten bins of equal mass."""
    points = plotted(table)
    marks, labels = style.marks(points), style.set_labels(points)
    panels = {
        f"{style.clip(model)}\n{said}": points[(points["model"] == model) & of_kind]
        for kind, said in SHOWN.items()
        for of_kind in [points["calibration"] == kind]
        for model in dict.fromkeys(points["model"])
    }
    figure, axes = style.panels(
        list(panels),
        width=3.6, height=3.6, sharex=True, sharey=True,
    )  # fmt: skip
    for ax, of_panel in zip(axes, panels.values(), strict=True):
        style.share_axis(ax, "x")
        style.share_axis(ax, "y")
        ax.plot([0, 1], [0, 1], color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
        for name, bins in of_panel.groupby("eval_set", sort=False):
            mark = marks[str(name)]
            look: dict[str, Any] = {"color": mark.colour, "clip_on": False}
            ax.vlines(bins["probability"], bins["share_lo"], bins["share_hi"], **look,
                      lw=0.7, alpha=0.5, zorder=2)  # fmt: skip
            ax.plot(bins["probability"], bins["share"], **look, marker=mark.marker, ms=4,
                    ls=mark.dash, lw=1, zorder=3, label=labels[str(name)])  # fmt: skip
        ax.set(xlabel="probability of harm (%)", ylabel="harmful (%)")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3)
    return figure
