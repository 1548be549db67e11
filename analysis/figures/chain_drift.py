"""Does a defence last? What became of the model after each of a chain of fine-tunings.

One panel a measure, one line a chain: solid with a fixed reference (the first model), dashed with
one that moves along; 95 % bands over seeds.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis import chains, results, style

TABLE = "chains"
PANELS = {
    "attack_success": ("attack success", "% of harmful prompts\n(lower is safer)"),
    "new_task": ("new task", "% right"),
    "utility": ("what it could do before", "% right"),
    "over_refusal": ("over-refusal", "% of look-alikes"),
    "probe_tpr": ("the frozen probe flags", "% of harmful prompts"),
    "drift": ("drift from the first model", "KL on safe prompts\n(nats per answer token)"),
}  # fmt: skip
"""Metric -> title and axis."""
SMALL = 0.01
"""Nats below which the axis of the drift is linear, so that it can start from 0."""
APART = 0.025
"""Links between the marks of neighbouring lines, so that equal values are all seen."""


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the chain, link, metric, mean over seeds and its interval.

    Raises:
        NothingToDraw: nothing was trained.
    """
    found = chains.chain_table(table)
    found = found[found["metric"].isin(PANELS)].dropna(subset="mean")
    if found["link"].nunique() < 2:
        raise results.NothingToDraw("column link: nothing was trained")
    return found.drop(columns="line").reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Each measure (percent, but for the drift, in nats) by the number of fine-tunings."""
    points = chains.chain_table(table).dropna(subset="mean")
    plotted(table)
    lines = list(dict.fromkeys(points["line"]))
    looks = chains.looks(lines)
    measured = {name: said for name, said in PANELS.items() if (points["metric"] == name).any()}
    figure, axes = style.panels([title for title, _ in measured.values()], width=3.7, height=3.2)
    for ax, (metric, (_, label)) in zip(axes, measured.items(), strict=True):
        if metric == "drift":
            ax.set_yscale("symlog", linthresh=SMALL)
            ax.set_ylim(0, None)
        else:
            style.share_axis(ax, "y")
        ax.set(ylabel=label, xlabel="fine-tunings")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        of_metric = points[points["metric"] == metric]
        for i, line in enumerate(lines):
            run = of_metric[of_metric["line"] == line].sort_values("link")
            colour, dash = looks[line]
            x = run["link"] + APART * (i - (len(lines) - 1) / 2)
            ax.plot(x, run["mean"], color=colour, ls=dash, marker="o", ms=3.5, lw=1.3,
                    clip_on=False, zorder=3)  # fmt: skip
            if not np.isnan(run["lo"]).all():
                ax.fill_between(x, run["lo"], run["hi"], color=colour, lw=0, alpha=0.1)
        if metric == "drift":
            ax.set_ylim(0, 1.1 * of_metric["mean"].max() or 1)
    handles = [
        Line2D([], [], color=looks[line][0], ls=looks[line][1], marker="o", ms=3.5,
               label=line.label)
        for line in lines
    ]  # fmt: skip
    columns = 2
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5)
    models = ", ".join(map(str, dict.fromkeys(points["model"])))
    figure.suptitle(models, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure
