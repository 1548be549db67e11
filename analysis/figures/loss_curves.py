"""Loss curves seed by seed: one panel an arm, one colour a model, plain fine-tuning dotted.

Each thin line is the NLL of one seed, the mean over blocks of steps; the dotted lines are the mean
over the seeds of plain fine-tuning. The ticks below are steps with a spike of the gradient norm
(`analysis.stability`), of any seed. Of each model the setting is shown in which most was tried.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from analysis import arms, defences, results, stability, style
from analysis.figures.stability import colour

TABLE = "steps"
BLOCKS = 40
"""Points of a line, at the most."""
IN_A_ROW = 4
"""Panels in a row."""
LEAST = 7.5
"""Inches that the legend needs."""
SPIKE, NLL = "spike", "nll"
TICK = 0.075
"""Height of a spike's tick, of the panel's."""


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: the setting, the arm, seed, done (share of the run's steps), quantity, value.

    The quantity is the nll, or a spike: its value is the gradient norm over its running median.
    """
    cells = [arms.common_cell(of_model) for _, of_model in table.groupby("model", sort=False)]
    steps = pd.concat(cells, ignore_index=True).dropna(subset=NLL).reset_index(drop=True)
    if steps.empty:
        raise results.NothingToDraw("column nll: no value to draw")
    run = [*defences.RUN, "seed"]
    last = steps.groupby(run, sort=False, dropna=False)["step"].transform("max")
    steps["done"], steps["ratio"] = steps["step"] / last, stability.ratios(steps)
    spikes = steps[steps["ratio"] > stability.TIMES]
    width = np.ceil(last / BLOCKS)
    steps["block"] = np.ceil(steps["step"] / width)
    blocks = steps.groupby([*run, "block"], sort=False, dropna=False)
    curves = blocks.agg(done=("done", "mean"), value=(NLL, "mean")).reset_index()
    columns = [*run, "done", "quantity", "value"]
    parts = [
        curves.assign(quantity=NLL)[columns],
        spikes.assign(quantity=SPIKE, value=spikes["ratio"])[columns],
    ]
    points = pd.concat([part for part in parts if not part.empty], ignore_index=True)
    return points.round({"done": 4, "value": 5})


def draw(table: pd.DataFrame) -> Figure:
    """NLL (nats per answer token) by share of the steps (percent), an arm a panel."""
    points = plotted(table)
    pairs = [pair for pair in arms.arms(table) if not arms.of(points, pair).empty]
    models = list(dict.fromkeys(points["model"]))
    columns = min(IN_A_ROW, len(pairs))
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(max(2.5 * columns, LEAST), 1.7 * rows + 0.8))
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    curves = points[points["quantity"] == NLL]
    means = curves.groupby(["model", "defence", "critic", "done"], sort=False)["value"].mean()
    plain = arms.of(means.reset_index(), stability.SFT)
    for ax, pair in zip(axes.flat, pairs, strict=False):
        ax.set_title(arms.label(*pair), fontsize=8.5, fontweight="normal", pad=4)
        of_arm = arms.of(points, pair)
        for i, model in enumerate(models):
            _model(ax, of_arm[of_arm["model"] == model], plain[plain["model"] == model], i)
    for spare in axes.flat[len(pairs) :]:
        spare.remove()
    for ax in axes.flat[len(pairs) - columns : len(pairs)]:
        ax.tick_params(labelbottom=True)
    for ax in axes[-1, : len(pairs) - columns * (rows - 1)]:
        ax.set_xlabel("steps done (%)", fontsize=9)
    # Above the curves is room for the ticks of the spikes.
    axes[0, 0].set(xlim=(0, 1), ylim=_limits(curves["value"], len(models)), xticks=(0, 0.5, 1))
    axes[0, 0].set_yscale("log")
    axes[0, 0].yaxis.set_major_formatter("{x:g}")
    axes[0, 0].yaxis.set_minor_locator(NullLocator())
    axes[0, 0].xaxis.set_major_formatter(lambda done, _: f"{100 * done:.0f}")
    figure.suptitle(arms.setting(points), x=0.01, ha="left", fontsize=9)
    figure.supylabel("NLL (nats per answer token)", fontsize=9)
    handles = [
        *(Line2D([], [], color=colour(i), lw=1, label=style.clip(m)) for i, m in enumerate(models)),
        Line2D([], [], color="black", lw=1, ls=":", label="SFT, mean over seeds"),
        Line2D([], [], color="black", marker="|", ls="", label="gradient spike"),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=8.5
    )
    return figure


def _model(ax: Axes, points: pd.DataFrame, plain: pd.DataFrame, i: int) -> None:
    curves = points[points["quantity"] == NLL]
    for _, line in curves.groupby("seed", sort=False):
        ax.plot(line["done"], line["value"], color=colour(i), lw=0.8, alpha=0.8)
    ax.plot(plain["done"], plain["value"], color=colour(i), lw=1, ls=":", zorder=1)
    spikes = points.loc[points["quantity"] == SPIKE, "done"]
    ax.plot(spikes, np.full(len(spikes), 0.97 - TICK * i), transform=ax.get_xaxis_transform(),
            color=colour(i), marker="|", ms=5, mew=0.8, ls="")  # fmt: skip


def _limits(nll: pd.Series, models: int) -> tuple[float, float]:
    """Of the logarithmic axis: all curves, and a row of ticks for each model above them."""
    low, high = np.log(nll[nll > 0].quantile([0.001, 1]))
    return float(np.exp(low)), float(np.exp(high + (high - low) * TICK * (models + 1)))
