"""Ours beside what one would use instead: one line a baseline, grouped by job.

A dot is the time of ours over the baseline's, with the quartiles over interleaved rounds, and an
open square the peak memory, likewise; both stand in figures on the right. Left of the line at 1
ours takes less. Where the baseline is a bound, a bar shows the ratio that is aimed at. What was not
measured says why.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from analysis import results, style

TABLE = "bench"
LINE = 0.158
"""Inches."""
MANY = 24
"""Lines from which on there are two columns."""
TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
TIME, MEMORY, GOAL, WRONG = style.COLOURS[0], "#A35F00", style.COLOURS[2], "#B00020"
SMALL = 7.2
"""Points."""
FIGURES = {"time": 27, "memory": 65}
"""Where the figures end, points right of the panel."""


Row = dict[Hashable, Any]
"""Column -> value."""


class Line(NamedTuple):
    """One line of a column: a heading, or a baseline with its numbers."""

    y: float
    heading: str
    row: Row


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows as they are, those of one job together.

    Raises:
        NothingToDraw: nothing was measured.
    """
    rows = results.unique(table, ["bench", "case", "baseline"])
    if rows["time_ratio"].isna().all():
        raise results.NothingToDraw("column time_ratio: nothing was measured")
    order = rows[["bench", "case"]].drop_duplicates()
    return order.merge(rows, on=["bench", "case"]).reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Time and peak memory of ours over the baseline's."""
    jobs = [
        of.to_dict("records") for _, of in plotted(table).groupby(["bench", "case"], sort=False)
    ]
    columns = [_lines(part) for part in _split(jobs)]
    height = max(lines[-1].y for lines in columns) + 0.9
    figure = Figure(figsize=(4.75 * len(columns), 0.75 + LINE * height))
    axes = figure.subplots(1, len(columns), squeeze=False)[0]
    for ax, lines in zip(axes, columns, strict=True):
        _column(ax, lines, height)
    handles = [
        Line2D([], [], color=TIME, marker="o", ms=4.2, lw=2, label="time, with quartiles"),
        Line2D([], [], color=MEMORY, marker="s", ms=4, mfc="none", ls="", label="peak memory"),
    ]
    if table["goal"].notna().any():
        goal = Line2D([], [], color=GOAL, marker="|", ms=9, mew=1.6, ls="", label="goal")
        handles.append(goal)
    where = [place for place in dict.fromkeys(table["where"]) if place]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=3, fontsize=8.5,
        title="; ".join(where) or None, title_fontsize=8,
    )  # fmt: skip
    return figure


def _split(jobs: list[list[Row]]) -> list[list[list[Row]]]:
    """Into two columns that are about as long, if there are many lines."""
    lengths = [len(job) + 1.35 for job in jobs]
    if sum(lengths) <= MANY or len(jobs) == 1:
        return [jobs]
    cuts = range(1, len(jobs))
    at = min(cuts, key=lambda cut: max(sum(lengths[:cut]), sum(lengths[cut:])))
    return [jobs[:at], jobs[at:]]


def _lines(jobs: list[list[Row]]) -> list[Line]:
    """A heading above each job, and a little room before it."""
    y, lines = 0.0, []
    for job in jobs:
        lines.append(Line(y, f"{job[0]['bench']}: {job[0]['case']}", {}))
        lines += [Line(y + 1 + i, "", row) for i, row in enumerate(job)]
        y += len(job) + 1.35
    return lines


def _column(ax: Axes, lines: list[Line], height: float) -> None:
    of_rows = [line for line in lines if not line.heading]
    ax.set_xscale("log")
    ax.axvline(1, color="black", lw=0.9, zorder=1)
    ax.grid(axis="x", lw=0.4, alpha=0.5)
    ax.set_xlabel("ours / theirs", fontsize=9)
    ax.set_ylim(height - 0.4, -0.9)  # the columns' names stand at the top
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_yticks([line.y for line in of_rows], [_name(line.row) for line in of_rows],
                  fontsize=SMALL)  # fmt: skip
    _axis(ax, [line.row for line in of_rows])
    for name in FIGURES:
        _figure(ax, -0.9, name, name)
    for line in lines:
        if line.heading:
            # On a white ground of its own: it is longer than the names are wide.
            ax.text(-0.02, line.y, line.heading, transform=ax.get_yaxis_transform(), ha="center",
                    va="center", fontsize=7.6, fontweight="bold", zorder=4,
                    bbox={"fc": "white", "ec": "none", "pad": 0.6})  # fmt: skip
        else:
            _row(ax, line.y, line.row)


def _row(ax: Axes, y: float, row: Row) -> None:
    if row["failed"]:
        ax.text(0.02, y, style.clip(row["failed"], 44), transform=ax.get_yaxis_transform(),
                va="center", fontsize=SMALL, zorder=4,
                color=style.QUIET if row["failed"].startswith("not measured") else WRONG,
                bbox={"fc": "white", "ec": "none", "pad": 0.4})  # fmt: skip
        return
    ax.hlines(y, row["time_ratio_lo"], row["time_ratio_hi"], color=TIME, lw=2, alpha=0.45)
    ax.plot(row["memory_ratio"], y, color=MEMORY, marker="s", ms=4, mfc="none", ls="", zorder=3)
    ax.plot(row["time_ratio"], y, color=TIME, marker="o", ms=4.2, ls="", zorder=3)
    ax.plot(1 / row["goal"], y, color=GOAL, marker="|", ms=9, mew=1.6, ls="", zorder=2)
    for name in FIGURES:
        value = row[f"{name}_ratio"]
        if not math.isnan(value):
            _figure(ax, y, name, _figures(value))


def _figure(ax: Axes, y: float, kind: str, text: str) -> None:
    """Right of the panel, in the column of its kind."""
    ax.annotate(
        text, (1, y), xycoords=("axes fraction", "data"), xytext=(FIGURES[kind], 0), ha="right",
        textcoords="offset points", va="center", fontsize=SMALL, annotation_clip=False,
        color={"time": TIME, "memory": MEMORY}[kind],
    )  # fmt: skip


def _axis(ax: Axes, rows: list[Row]) -> None:
    """Room for all that is drawn."""
    kinds = ("time_ratio_lo", "time_ratio_hi", "memory_ratio")
    known = np.array([row[kind] for row in rows for kind in kinds] + [1.0, 0.8, 1.25])
    goals = np.array([1 / row["goal"] for row in rows if not row["failed"]])
    known = np.concatenate([known, goals])
    lo, hi = np.nanmin(known) / 1.15, np.nanmax(known) * 1.15
    ax.set_xlim(lo, hi)
    every = [tick for tick in TICKS if lo <= tick <= hi]
    ax.xaxis.set_major_locator(FixedLocator(every if len(every) < 8 else every[::2]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter("{x:g}")
    ax.tick_params(axis="x", labelsize=8)


def _figures(value: float) -> str:
    return f"{value:.2f}" if value < 9.95 else f"{value:.0f}"


def _name(row: Row) -> str:
    """The baseline, and of a bound what is reached of it."""
    if math.isnan(row["goal"]):
        return str(row["baseline"])
    reached = "" if math.isnan(row["time_ratio"]) else f" {1 / row['time_ratio']:.0%},"
    return f"{row['baseline']}:{reached} goal {row['goal']:.0%}"
