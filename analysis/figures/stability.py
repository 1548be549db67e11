"""Gradient spikes and the seeds' spread: one line an arm, one mark a model.

Left the share of steps that are a spike (`analysis.stability`), mean over seeds with its 95 %
interval; in the middle each run's largest norm beside its running median, from the least of the
seeds to the greatest; right, of several seeds, the spread of their NLL curves. The dotted lines are
plain fine-tuning's. Of each model the setting is shown in which most was tried.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from analysis import arms, defences, results, stability, style

TABLE = "steps"
MEASURES = {
    "spikes": f"spikes: gradient norm over {stability.TIMES:g} x\nits running median (% of steps)",
    "largest": "largest norm /\nrunning median",
    "spread": "NLL, standard deviation\nover seeds (nats)",
}
COLUMNS = [*defences.RUN, "measure", "value", "lo", "hi"]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, one measure, and its interval (or range).

    Raises:
        NothingToDraw: no run has a gradient norm that can be judged.
    """
    cells = [arms.common_cell(of_model) for _, of_model in table.groupby("model", sort=False)]
    steps = pd.concat(cells, ignore_index=True)
    lines = stability.stability_table(steps)
    ranges = stability.runs(steps).groupby(defences.RUN, sort=False, dropna=False)["largest"]
    largest = ranges.agg(value="median", lo="min", hi="max").reset_index()
    parts = [
        lines.rename(columns={"spikes": "value", "spikes_lo": "lo", "spikes_hi": "hi"}),
        largest,
        lines.drop(columns=["spikes_lo", "spikes_hi"])
        .rename(columns={"spread": "value"})
        .assign(lo=np.nan, hi=np.nan),
    ]
    named = [
        part.assign(measure=measure)[COLUMNS] for measure, part in zip(MEASURES, parts, strict=True)
    ]
    points = pd.concat(named, ignore_index=True).dropna(subset="value")
    if points.empty:
        raise results.NothingToDraw("column grad_norm: no value to draw")
    return points.reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Spikes (percent of steps), the largest multiple (logarithmic), the spread (nats), by arm."""
    points = plotted(table)
    pairs = [pair for pair in arms.arms(table) if not arms.of(points, pair).empty]
    models = list(dict.fromkeys(points["model"]))
    shown = [measure for measure in MEASURES if (points["measure"] == measure).any()]
    figure = Figure(figsize=(3.4 + 2 * len(shown), 1.7 + 0.3 * max(3, len(pairs))))
    ratios = (1.3, *[1.0] * (len(shown) - 1))
    axes = figure.subplots(1, len(shown), sharey=True, width_ratios=ratios, squeeze=False)[0]
    for ax, measure in zip(axes, shown, strict=True):
        ax.set_xlabel(MEASURES[measure])
        ax.grid(axis="x", lw=0.4, alpha=0.5)
        for y in range(0, len(pairs), 2):
            ax.axhspan(y - 0.5, y + 0.5, color="black", alpha=0.035, lw=0)
        _panel(ax, points[points["measure"] == measure], pairs, models)
    axes[0].set_yticks(range(len(pairs)), [arms.label(*pair) for pair in pairs])
    axes[0].set_ylim(len(pairs) - 0.5, -0.5)
    axes[0].set_title(arms.setting(points), fontsize=9, fontweight="normal")
    for ax, measure in zip(axes, shown, strict=True):
        if measure == "largest":
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(FixedLocator(style.RATIOS))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
        else:
            ax.set_xlim(0, None)
        if measure == "spikes":
            ax.xaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g}")
    handles = [
        Line2D([], [], color=colour(i), marker=_marker(i), ls=":", lw=1, label=style.clip(model))
        for i, model in enumerate(models)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _panel(ax: Axes, points: pd.DataFrame, pairs: list[tuple[str, str]], models: list[str]) -> None:
    for i, model in enumerate(models):
        of_model = points[points["model"] == model]
        aside = 0.5 * ((i + 0.5) / len(models) - 0.5)
        rows = [(y + aside, arms.of(of_model, pair)) for y, pair in enumerate(pairs)]
        drawn = [(y, row.iloc[0]) for y, row in rows if not row.empty]
        places = [y for y, _ in drawn]
        ax.hlines(places, [row["lo"] for _, row in drawn], [row["hi"] for _, row in drawn],
                  color=colour(i), lw=1, alpha=0.5)  # fmt: skip
        ax.plot([row["value"] for _, row in drawn], places, color=colour(i), marker=_marker(i),
                ls="", ms=4, clip_on=False, zorder=3)  # fmt: skip
        for value in arms.of(of_model, stability.SFT)["value"]:
            ax.axvline(value, color=colour(i), lw=0.9, ls=":", alpha=0.8)


def colour(model: int) -> str:
    """Of a model, by its place in the table."""
    return style.COLOURS[model % len(style.COLOURS)]


def _marker(model: int) -> str:
    return ("o", *style.MARKERS)[model % (1 + len(style.MARKERS))]
