"""Attackers who know the probe: what each critic sees of their rows, and what comes of training.

Above left the mean risk of the harmful rows as they were (hollow) and as the attacker put them
(filled), a colour a critic; the attacker knew the one called probe. The other three are shares of
prompts after training, a row an attacker, a column a defence: plain harmful prompts complied with,
harmful prompts in the attacker's own form answered with a restricted deed, the new task learnt.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import arms, results, seeds, style

TABLE = "attackers"
KEY = ["model", "attacker", "defence", "critic"]
ORACLE = "label"
"""A critic that knows the truth: no attacker changes its risk."""


class _Measure(NamedTuple):
    title: str
    column: str
    colours: str


MEASURES = (
    _Measure("attack success (%), plain prompts", "attack_success", "OrRd"),
    _Measure("attack success (%), in the attacker's form", "attack_success_own_form", "OrRd"),
    _Measure("new task (%)", "new_task", "GnBu"),
)


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds: risk_before, risk_after, and each measure with its ends _lo and _hi.

    An interval is Student's over seeds; of one seed, or of seeds that agree, Wilson's over prompts.
    The new task, of which no interval is in the table, has one over seeds alone.
    """
    results.unique(table, [*KEY, "seed"])
    risks = table.groupby(KEY, sort=False)[["risk_before", "risk_after"]].mean().reset_index()
    found = risks.assign(seeds=table.groupby(KEY, sort=False)["seed"].nunique().to_numpy())
    for _, column, _ in MEASURES:
        ends = {end: table.get(f"{column}_{end}", np.nan) for end in ("lo", "hi")}
        means = seeds.over_seeds(table.assign(value=table[column], **ends), KEY)
        found[column] = means["mean"]
        found[f"{column}_lo"], found[f"{column}_hi"] = means["lo"], means["hi"]
    return found


def draw(table: pd.DataFrame) -> Figure:
    """Risk (0 to 1) before and after; shares of prompts (percent) as colour and number."""
    lines = plotted(table)
    attackers = list(dict.fromkeys(lines["attacker"]))
    columns = list(arms.arms(table))
    height = 0.9 + 0.42 * len(attackers)
    figure = Figure(figsize=(2.6 + 1.16 * max(6, len(columns)), 2 * height + 2.2))
    grid = figure.subplots(2, 2)
    _risks(grid[0, 0], lines, attackers)
    for ax, measure in zip((grid[0, 1], *grid[1]), MEASURES, strict=True):
        _shares(ax, lines, attackers, columns, measure)
        if ax is grid[0, 1]:
            ax.set_xticklabels([])
    grid[1, 0].set_ylabel("attacker")
    grid[0, 0].set_ylabel("attacker")
    figure.suptitle(style.clip(str(table["model"].iloc[0])), x=0.01, ha="left", fontsize=11)
    return figure


def _risks(ax: Axes, lines: pd.DataFrame, attackers: list[str]) -> None:
    """Before and after, of each critic that reads the rows; a critic is the same by any defence."""
    known = lines.dropna(subset="risk_after")
    known = known[known["critic"] != ORACLE].drop_duplicates(["attacker", "critic"])
    critics = list(dict.fromkeys(known["critic"]))
    steps = (np.arange(len(critics)) - (len(critics) - 1) / 2) * min(
        0.2, 0.75 / max(1, len(critics))
    )
    for i, critic in enumerate(critics):
        colour = style.COLOURS[i % len(style.COLOURS)]
        marker = style.MARKERS[i % len(style.MARKERS)]
        for _, row in known[known["critic"] == critic].iterrows():
            y = attackers.index(row["attacker"]) + steps[i]
            ends = (row["risk_before"], row["risk_after"])
            ax.plot(ends, (y, y), color=colour, lw=1.2, alpha=0.6, clip_on=False)
            ax.plot(ends[0], y, marker, ms=4.5, mfc="white", mec=colour, clip_on=False)
            ax.plot(ends[1], y, marker, ms=4.5, color=colour, clip_on=False, zorder=3)
    for y in range(0, len(attackers), 2):
        ax.axhspan(y - 0.5, y + 0.5, color="black", alpha=0.035, lw=0)
    ax.set(xlim=(0, 1), ylim=(len(attackers) - 0.5, -0.5), xlabel="mean risk of the harmful rows")
    ax.set_yticks(range(len(attackers)), attackers)
    ax.set_title("risk before (hollow) and after", fontsize=10)
    handles = [
        Line2D([], [], color=style.COLOURS[i % len(style.COLOURS)], ls="",
               marker=style.MARKERS[i % len(style.MARKERS)], label=critic)
        for i, critic in enumerate(critics)
    ]  # fmt: skip
    if handles:
        ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.45, -0.22),
                  ncols=min(4, len(handles)), fontsize=8.5, handlelength=1)  # fmt: skip


def _shares(
    ax: Axes,
    lines: pd.DataFrame,
    attackers: list[str],
    columns: list[tuple[str, str]],
    measure: _Measure,
) -> None:
    """Colour and number, and below it the interval; a dash where nothing was measured."""
    values = np.full((len(attackers), len(columns)), np.nan)
    texts = np.full(values.shape, "", dtype=object)
    for _, row in lines.iterrows():
        at = attackers.index(row["attacker"]), columns.index((row["defence"], row["critic"]))
        value, lo, hi = (row[f"{measure.column}{end}"] for end in ("", "_lo", "_hi"))
        values[at] = value
        if np.isfinite(value):
            interval = f"\n[{100 * lo:.0f}, {100 * hi:.0f}]" if np.isfinite([lo, hi]).all() else ""
            texts[at] = f"{100 * value:.0f}{interval}"
    sns.heatmap(
        values, ax=ax, vmin=0, vmax=1, cmap=measure.colours, cbar=False,
        linewidths=1.2, annot=texts, fmt="", annot_kws={"fontsize": 7},
        yticklabels=attackers,
        xticklabels=[arms.label(*pair).replace(", ", ",\n") for pair in columns],
    )  # fmt: skip
    for y, x in np.argwhere(np.isnan(values)):
        ax.text(x + 0.5, y + 0.5, "–", ha="center", va="center", fontsize=8, color=style.QUIET)
    ax.set_title(measure.title, fontsize=10)
    ax.tick_params("x", rotation=90, length=0, labelsize=8)
    ax.tick_params("y", rotation=0, length=0)
