"""What each defence costs beside plain fine-tuning: one line a defence.

Left the time of an optimizer step (ratio of medians with its 95 % interval), in the middle the peak
memory of the steps, both over plain fine-tuning's; right a whole training: what comes before it,
its steps, and what comes after it, in trainings of plain fine-tuning. The lines at 1 are plain
fine-tuning.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from analysis import arms, costs, results, style

TABLE = "costs"
LABELS = ("time of a step,\nSFT = 1", "peak memory of the steps,\nSFT = 1",
          "time of a whole training,\nSFT = 1")  # fmt: skip
PARTS = {"before": "before the first step", "in_steps": "steps", "after": "after the last step"}
COLOURS = dict(zip(PARTS, ("#E69F00", "#0072B2", "#CC79A7"), strict=True))
WIDE = 4.0
"""Times SFT's from which on an axis is logarithmic."""


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of the defences that were measured, with `in_steps` and `whole`, in trainings.

    Raises:
        NothingToDraw: none was.
    """
    measured = table[table["failed"] == ""].drop(columns="failed").reset_index(drop=True)
    if measured.empty:
        raise results.NothingToDraw("column time_ratio: no defence was measured")
    results.unique(measured, ["model", "defence", "critic"])
    lines = costs.cost_table(measured)
    return lines.assign(in_steps=lines["time_ratio"] * lines["steps"])


def draw(table: pd.DataFrame) -> Figure:
    """Time of a step, peak memory, time of a whole training: over plain fine-tuning's."""
    lines = plotted(table)
    figure = Figure(figsize=(9.4, 1.7 + 0.28 * max(3, len(lines))))
    axes = figure.subplots(1, len(LABELS), sharey=True, width_ratios=(1, 1, 1.35))
    places = np.arange(len(lines))
    for ax, label in zip(axes, LABELS, strict=True):
        ax.set_xlabel(label)
        ax.grid(axis="x", lw=0.4, alpha=0.5)
        for y in places[::2]:
            ax.axhspan(y - 0.5, y + 0.5, color="black", alpha=0.035, lw=0)
        ax.axvline(1, color=arms.PINNED["none"], lw=1, ls=":")
    time, memory, whole = axes
    ratio, lo, hi = (lines[f"time_ratio{end}"] for end in ("", "_lo", "_hi"))
    time.hlines(places, lo, hi, color=style.COLOURS[0], lw=1.2, alpha=0.6)
    time.plot(ratio, places, color=style.COLOURS[0], marker="o", ms=4, ls="", zorder=3)
    memory.plot(lines["memory_ratio"], places, color=style.COLOURS[2], marker="s", ms=4, ls="")
    _axis(time, lo, hi)
    _axis(memory, lines["memory_ratio"], lines["memory_ratio"])
    _bars(whole, lines, places)
    names = zip(lines["defence"], lines["critic"], strict=True)
    time.set_yticks(places, [arms.label(*pair) for pair in names])
    time.set_ylim(len(lines) - 0.5, -0.5)
    time.set_title(style.clip(str(lines["model"].iloc[0])), fontsize=9)
    handles = [Patch(color=COLOURS[part], label=label) for part, label in PARTS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _axis(ax: Axes, lo: pd.Series, hi: pd.Series) -> None:
    """Room for all of it and for 1; logarithmic where something is many times SFT's."""
    if lo.isna().all():
        ax.set_xlim(0, 2)
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color=style.QUIET)
        return
    least, most = min(1.0, lo.min()), max(1.0, hi.max())
    if most > WIDE:
        ax.set_xscale("log")
        ax.set_xlim(least / 1.15, most * 1.15)
        ax.xaxis.set_major_locator(FixedLocator(style.RATIOS))
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        room = 0.06 * max(most - least, 0.1)
        ax.set_xlim(least - room, most + room)
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter("{x:g}")


def _bars(ax: Axes, lines: pd.DataFrame, places: np.ndarray) -> None:
    """Parts end to end, and the sum in figures. Bars are cut where one is far longer than others.

    A part below zero is chance, as its line in the table says, and is not drawn.
    """
    whole = lines["whole"]
    end = 1.35 * min(whole.max(), max(1.5, 3 * float(whole.median())))
    ax.set_xlim(0, end)
    start = np.zeros(len(lines))
    for part in PARTS:
        width = lines[part].clip(lower=0).to_numpy()
        ax.barh(places, width, left=start, height=0.6, color=COLOURS[part], zorder=2)
        start = start + width
    last = 0.85 * end
    for y, (drawn, total) in enumerate(zip(start, whole, strict=True)):
        text = ax.text(min(drawn, last) + 0.01 * end, y, f"{total:.2f}", va="center", fontsize=8)
        if drawn > last:  # on the bar, which goes on beyond the axis
            text.set(text=f"{total:.2f} →", bbox={"fc": "white", "ec": "none", "pad": 0.8})
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter("{x:g}")
