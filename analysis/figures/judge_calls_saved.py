"""Recall and false alarms by the share of rows that a judge reads: one column a probe.

At the left end no row is judged (the probe alone), at the right end every row is.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import judge_calls, results, style

TABLE = "judge_calls"
COLUMNS = [
    *judge_calls.BY, "judged", "recall", "recall_lo", "recall_hi", "fpr", "fpr_lo", "fpr_hi"
]  # fmt: skip
LINES = {
    "hybrid": ("#0072B2", "o", "-"),
    "stacked": ("#009E73", "D", (0, style.DASHES[0])),
    "random": (style.QUIET, "x", (0, style.DASHES[1])),
}
ENDS = {"probe": ("black", "s"), "judge": ("#D55E00", "^")}
RATES = {"recall": "harmful rows flagged (%)", "fpr": "harmless rows flagged (%)"}


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: means over seeds with their intervals.

    Raises:
        NothingToDraw: there is one class only, or no band.
    """
    found = judge_calls.points(table)[COLUMNS]
    found = found.dropna(subset=["recall", "fpr"])
    if not (found["critic"] == "hybrid").any():
        raise results.NothingToDraw("column critic: no hybrid on rows of both classes")
    return found.reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Recall above, false alarms below (percent), by the share of the rows that is judged."""
    found = plotted(table)
    probes = dict(list(found.groupby("probe", sort=False)))
    wide = {1: 6.0, 2: 4.4}.get(len(probes), 3.7)
    figure = Figure(figsize=(wide * len(probes), 6.4))
    grid = figure.subplots(2, len(probes), squeeze=False, sharex=True, sharey="row")
    for column, (probe, of_probe) in zip(grid.T, probes.items(), strict=True):
        column[0].set_title(style.clip(str(probe)))
        for ax, rate in zip(column, RATES, strict=True):
            _panel(ax, of_probe, rate)
        column[1].set_xlabel("rows that the judge reads (%)")
    limits = ((_down(found["recall_lo"].min()), 1), (0, 1 - _down(1 - found["fpr_hi"].max())))
    for row, label, limit in zip(grid, RATES.values(), limits, strict=True):
        row[0].set_ylabel(label)
        for ax in row:
            ax.set(xlim=(0, 1), ylim=limit)
            ax.spines[["left", "bottom"]].set_position(("outward", 6))
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(lambda share, _: f"{100 * share:.3g}")
    first = found.iloc[0]
    figure.suptitle(f"{judge_calls.of(first['data'])}, judge {judge_calls.of(first['judge'])}")
    present = set(found["critic"])
    handles = [
        Line2D([], [], color=colour, marker=marker, ls="", label=judge_calls.CRITICS[name])
        for name, (colour, marker) in ENDS.items() if name in present
    ] + [
        Line2D([], [], color=colour, marker=marker, ls=dash, label=judge_calls.CRITICS[name])
        for name, (colour, marker, dash) in LINES.items() if name in present
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, max(len(probes), 2)))
    return figure


def _down(share: float) -> float:
    """The tenth below."""
    return math.floor(10 * share) / 10


def _panel(ax: Axes, rows: pd.DataFrame, rate: str) -> None:
    """One probe's curves of one rate."""
    for name, (colour, marker, dash) in LINES.items():
        # Where no row is judged, each of them is the probe.
        line = rows[rows["critic"].isin(("probe", name))].sort_values("judged", kind="stable")
        ax.plot(line["judged"], line[rate], color=colour, marker=marker, ls=dash, lw=1.3, ms=4,
                clip_on=False, zorder=3)  # fmt: skip
        ax.fill_between(line["judged"], line[f"{rate}_lo"], line[f"{rate}_hi"], color=colour,
                        lw=0, alpha=0.12)  # fmt: skip
    for name, (colour, marker) in ENDS.items():
        end = rows[rows["critic"] == name]
        off = [end[rate] - end[f"{rate}_lo"], end[f"{rate}_hi"] - end[rate]]
        ax.errorbar(end["judged"], end[rate], yerr=off, color=colour, marker=marker, ls="", ms=7,
                    lw=1, clip_on=False, zorder=4)  # fmt: skip
