"""Risk by class: one panel a probe, one row an evaluation set, harmful above and harmless below.

The axis is log-odds, labelled with probabilities: near 0 and 1, where most risks lie, probability
itself would show two spikes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.special import expit, logit

from analysis import results, style

TABLE = "risks"
BINS = 36
FURTHEST = 9.0
"""Log-odds (nats) beyond which a risk is counted in the outermost bin."""
LOOKS: dict[int, dict[str, Any]] = {
    1: {"facecolor": "#D55E00", "edgecolor": "#7d3600"},
    0: {"facecolor": "#cfe3f2", "edgecolor": "#0072B2", "hatch": "////"},
}
"""Harmful is dark and full, harmless is pale and hatched."""
TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The bars: share of a class's prompts (n of them) with risk from bin_lo to bin_hi."""
    outside = table[(table["risk"] < 0) | (table["risk"] > 1)]
    if not outside.empty:
        value = outside["risk"].iloc[0]
        raise results.TableError(f"column risk: {value} is no probability (0 to 1)")
    known = table.dropna(subset="risk")
    if known.empty:
        raise results.TableError("column risk: no value to draw")
    log_odds = logit(known["risk"])
    limit = min(FURTHEST, max(2.0, np.ceil(np.abs(log_odds).max())))
    edges = np.linspace(-limit, limit, BINS + 1)
    keys = ["model", "readout", "layer", "eval_set", "held_out", "label"]
    bars = []
    for values, rows in known.groupby(keys, sort=False):
        count, _ = np.histogram(log_odds[rows.index].clip(-limit, limit), edges)
        bars.append(
            pd.DataFrame({
                **dict(zip(keys, values, strict=True)),
                "n": len(rows),
                "bin_lo": expit(edges[:-1]),
                "bin_hi": expit(edges[1:]),
                "share": count / len(rows),
            })
        )  # fmt: skip
    return pd.concat(bars, ignore_index=True)


def draw(table: pd.DataFrame) -> Figure:
    """Share of prompts by risk (probability, on a log-odds axis), one panel a probe."""
    bars = plotted(table)
    sets = list(style.evaluation_sets(bars))
    labels = style.set_labels(bars)
    readouts = list(dict.fromkeys(bars["readout"]))
    probes = list(dict.fromkeys(zip(bars["model"], bars["readout"], bars["layer"], strict=True)))
    probes.sort(key=lambda probe: readouts.index(probe[1]))  # Models of one readout side by side.
    figure, axes = style.panels(
        [f"{style.clip(model)}\n{_of(readout, layer)}" for model, readout, layer in probes],
        width=3.9, height=1.15 + 0.62 * len(sets), sharex=True, sharey=True,
    )  # fmt: skip
    for ax, (model, readout, layer) in zip(axes, probes, strict=True):
        chosen = (bars["model"] == model) & (bars["readout"] == readout) & (bars["layer"] == layer)
        for row, name in enumerate(sets):
            _row(ax, bars[chosen & (bars["eval_set"] == name)], row)
        ax.axvline(0, color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=0)
        ax.set_yticks(range(len(sets)), [labels[name] for name in sets])
        ax.set_ylim(len(sets) - 0.5, -0.5)
        ax.spines["left"].set_visible(False)
        ax.tick_params("y", length=0)
        ax.tick_params("x", labelbottom=True)
        ax.set_xlabel("risk (log-odds axis)")
    _risk_axis(axes[0], bars)
    handles = [
        Patch(label="harmful (above)", **LOOKS[1]),
        Patch(label="harmless (below)", **LOOKS[0]),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _of(readout: str, layer: int) -> str:
    return f"layer {layer}" if readout == "layer" else style.READOUTS.get(readout, readout)


def _row(ax: Axes, bars: pd.DataFrame, row: int) -> None:
    """One evaluation set: both classes on one scale, so that their areas may be compared."""
    ax.axhline(row, color="#444444", lw=0.6, zorder=1)
    if bars.empty:
        return
    highest = bars["share"].max()
    counts = []
    for label, sign in ((1, -1), (0, 1)):
        of_class = bars[bars["label"] == label]
        if of_class.empty:
            counts.append("0")
            continue
        edges = logit(np.append(of_class["bin_lo"], of_class["bin_hi"].iloc[-1]))
        height = 0.44 * of_class["share"].to_numpy() / highest
        ax.stairs(row + sign * height, edges, baseline=row, fill=True, lw=0.8, zorder=2,
                  **LOOKS[label])  # fmt: skip
        counts.append(str(of_class["n"].iloc[0]))
    ax.text(1.0, row, f"n {counts[0]}\nn {counts[1]}", transform=ax.get_yaxis_transform(),
            fontsize=7, va="center", ha="left", linespacing=1.6)  # fmt: skip


def _risk_axis(ax: Axes, bars: pd.DataFrame) -> None:
    limit = logit(bars["bin_hi"].max())
    ticks = [tick for tick in TICKS if abs(logit(tick)) <= limit]
    ax.set_xlim(-limit * 1.02, limit * 1.02)
    ax.set_xticks(logit(ticks), [f"{t:g}".lstrip("0") for t in ticks])
