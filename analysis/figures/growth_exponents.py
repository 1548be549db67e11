"""How time and memory grow: one panel a quantity, both axes logarithmic.

Dots are time and squares peak memory, each over that of the smallest size; the lines are the fitted
powers, whose exponents stand in the panel with what must be, or may be at most. The grey line grows
as the time must. An exponent that is clearly above stands in red.
"""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis import results, style
from analysis.exponents import Exponent, in_words, too_fast

TABLE = "growth"
COLOURS = {"time": style.COLOURS[0], "memory": "#A35F00"}
MARKERS = {"time": "o", "memory": "s"}
FAST = "#B00020"
WORDS = {"time": "must be", "memory": "at most"}
TICKS = [digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5)]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows, with `memory_ratio`, the peak over that of the smallest size."""
    rows = results.unique(table, ["bench", "quantity", "size"])
    rows = rows.sort_values("size", kind="stable")
    first = rows.groupby(["bench", "quantity"])["memory_mb"].transform("first")
    order = table[["bench", "quantity"]].drop_duplicates()
    with_ratio = rows.assign(memory_ratio=rows["memory_mb"] / first)
    return order.merge(with_ratio, on=["bench", "quantity"]).reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Time and peak memory over those of the smallest size, against the size."""
    points = plotted(table)
    parts = list(points.groupby(["bench", "quantity"], sort=False))
    titles = [f"{bench} against {quantity}" for (bench, quantity), _ in parts]
    figure, axes = style.panels(titles, width=3.15, height=2.55)
    for ax, title, (_, part) in zip(axes, titles, parts, strict=True):
        ax.set_title(title, fontsize=9.5)
        _panel(ax, part)
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("over the smallest size")
    handles = [
        Line2D([], [], color=COLOURS["time"], marker="o", label="time"),
        Line2D([], [], color=COLOURS["memory"], marker="s", label="peak memory, without output"),
        Line2D([], [], color=style.QUIET, ls="--", label="as the time must grow"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _panel(ax: Axes, part: pd.DataFrame) -> None:
    ax.set(xscale="log", yscale="log")
    first = part.iloc[0]
    sizes = part["size"].to_numpy()
    ax.plot(sizes, (sizes / sizes[0]) ** first["time_expected"], color=style.QUIET, ls="--", lw=1)
    for kind in ("time", "memory"):
        ratio = part[f"{kind}_ratio"].to_numpy()
        if not math.isnan(first[f"{kind}_exponent"]):
            slope = float(first[f"{kind}_exponent"])
            _fitted(ax, pd.Series(sizes), pd.Series(ratio), slope, COLOURS[kind])
        ax.plot(sizes, ratio, color=COLOURS[kind], marker=MARKERS[kind], ls="", zorder=3)
    ax.vlines(sizes, part["time_ratio_lo"], part["time_ratio_hi"], color=COLOURS["time"], lw=1.2)
    _limits(ax, part)
    for line, kind in enumerate(("time", "memory")):
        _exponent(ax, first, kind, line)


def _fitted(ax: Axes, size: pd.Series, ratio: pd.Series, slope: float, colour: str) -> None:
    """The least-squares line: through the means of the logarithms."""
    known = ratio > 0
    if known.sum() == 0:
        return
    shift = (ratio[known].map(math.log) - slope * size[known].map(math.log)).mean()
    ax.plot(size, math.exp(shift) * size**slope, color=colour, lw=1.1, alpha=0.7)


def _limits(ax: Axes, part: pd.DataFrame) -> None:
    """Room above for the two lines of text; at least one octave."""
    must = (part["size"] / part["size"].iloc[0]) ** part["time_expected"]
    both = pd.concat([part["time_ratio_lo"], part["time_ratio_hi"], part["memory_ratio"], must])
    both = both[both > 0]
    lo, hi = min(0.7, both.min() / 1.2), max(2.0, both.max())
    ax.set_ylim(lo, hi * (hi / lo) ** 0.5)
    ax.yaxis.set_major_locator(FixedLocator([t for t in TICKS if lo <= t <= hi * 1.3]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_locator(FixedLocator(part["size"].tolist()))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _short(size)))


def _exponent(ax: Axes, row: pd.Series, kind: str, line: int) -> None:
    found = Exponent(*(float(row[f"{kind}_exponent{end}"]) for end in ("", "_lo", "_hi")))
    if math.isnan(found.value):
        return
    must = round(float(row[f"{kind}_expected"]), 2)
    text = f"{kind} ^ {in_words(found)}; {WORDS[kind]} {must:g}"
    fast = too_fast(found.lo, must)
    ax.text(
        0.03, 0.98 - 0.105 * line, text, transform=ax.transAxes, va="top", fontsize=7.8,
        color=FAST if fast else COLOURS[kind], fontweight="bold" if fast else "normal",
    )  # fmt: skip


def _short(size: float) -> str:
    return (
        f"{size / 1000:g}k"
        if size >= 10_000 or (size >= 1000 and size % 1000 == 0)
        else f"{size:g}"
    )
