"""How few anchors are enough, and of what kind: one panel a measure, one group of points a number.

An arm `anchored+anchors-30-twin` has 30 anchors of the kind twin, `anchored+anchors` as many of all
kinds as are usual, `anchored` none. The line across is the untrained model, the dotted one plain
fine-tuning. Bars are 95 % intervals.
"""

from __future__ import annotations

import re

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import arms, defences, results, style

TABLE = "evaluations"
METRICS = {
    "attack_success": "attack success",
    "compliance_probability": "probability of complying",
    "new_task": "new task",
    "over_refusal": "over-refusal: twins",
    "over_refusal_xstest": "over-refusal: XSTest's safe half",
    "ordinary_in_format": "ordinary requests\nanswered in the new task's format",
}
"""The panels, of those that were measured."""
NAME = re.compile(r"anchored(?P<any>\+anchors(?:-(?P<n>\d+))?(?:-(?P<kind>\w+))?)?")
PLAIN = "none"
COLUMNS = ["model", *arms.SETTING, "defence", "critic", "anchors", "metric", "value", "lo", "hi"]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, `anchors` as the axis has it, one metric, its interval.

    Of the first model for which several numbers of anchors were tried.
    """
    lines = defences.defence_table(table)
    for _, of_model in lines.groupby("model", sort=False):
        untrained = of_model["defence"] == arms.BEFORE
        trained = of_model[~untrained]
        named = trained["defence"].map(_anchors)
        tried = trained.assign(anchors=named)[named.notna()]
        cells = tried.groupby(arms.SETTING, sort=False, dropna=False)
        cell = max((cell for _, cell in cells), key=len, default=tried)
        # Without a number of its own an experiment on anchors was not made.
        if not cell["anchors"].str.contains("[1-9]").any():
            continue
        plain = trained.merge(cell[arms.SETTING].drop_duplicates())
        plain = plain[plain["defence"] == PLAIN]
        parts = [of_model[untrained], plain, cell.sort_values("anchors", key=_order)]
        return _long(pd.concat(parts, ignore_index=True))
    raise results.NothingToDraw("column defence: no arm with a number of anchors")


def draw(table: pd.DataFrame) -> Figure:
    """Each measure (percent) by the anchors that were used."""
    points = plotted(table)
    shown = [metric for metric in METRICS if (points["metric"] == metric).any()]
    figure, axes = style.panels(
        [METRICS[metric] for metric in shown], width=3.6, height=3.4, sharey=True
    )
    ticks = list(dict.fromkeys(points["anchors"].dropna()))
    for ax, metric in zip(axes, shown, strict=True):
        _panel(ax, points[points["metric"] == metric], ticks)
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("%")
    handles = [
        Line2D([], [], color="black", lw=1, label="before training"),
        Line2D([], [], color=arms.PINNED[PLAIN], lw=1, ls=":", label=arms.NAMES[PLAIN]),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8.5)
    return figure


def _panel(ax: Axes, points: pd.DataFrame, ticks: list[str]) -> None:
    style.share_axis(ax, "y")
    for defence, colour, dash in ((arms.BEFORE, "black", "-"), (PLAIN, arms.PINNED[PLAIN], ":")):
        for value in points[points["defence"] == defence]["value"]:
            ax.axhline(value, color=colour, lw=1, ls=dash, clip_on=False)
    anchored = points.dropna(subset="anchors")
    x = [ticks.index(name) for name in anchored["anchors"]]
    ax.vlines(x, anchored["lo"], anchored["hi"], color=style.COLOURS[0], lw=1, alpha=0.6)
    ax.plot(x, anchored["value"], color=style.COLOURS[0], marker="o", ls="", clip_on=False)
    ax.set_xticks(range(len(ticks)), ticks, rotation=45, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.5, len(ticks) - 0.5)
    ax.set_xlabel("anchors")


def _anchors(defence: str) -> str | None:
    """Such as `30 twin`; `all` for as many of all kinds as are usual; `0`; None of other arms."""
    found = NAME.fullmatch(defence)
    if found is None:
        return None
    if not found["any"]:
        return "0"
    return " ".join(filter(None, [found["n"], found["kind"]])) or "all"


def _order(names: pd.Series) -> pd.Series:
    """By number, all kinds before one; as many as are usual come last."""
    return names.map(lambda name: (name == "all", int(name.split()[0] if name != "all" else 0)))


def _long(lines: pd.DataFrame) -> pd.DataFrame:
    """One row an arm and metric."""
    parts = [
        lines.assign(
            metric=metric, value=lines[metric], lo=lines[f"{metric}_lo"], hi=lines[f"{metric}_hi"]
        )[COLUMNS]
        for metric in METRICS
        if metric in lines
    ]
    return pd.concat(parts, ignore_index=True).dropna(subset="value")
