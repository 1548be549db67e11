"""Change of refusal while a direction is removed or added: one row a model, one column a change.

Left the direction is projected out as harmful prompts are answered, to the right it is added, by
rising strength, as harmless ones are. Points are the directions tested, with 95 % intervals paired
by prompt; the grey marks beside each are random directions of the same length. Layers are across.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import causal, style

TABLE = "causal"
NAMES = {"probe": "probe's weights", "class-mean": "difference of class means"}
LOOKS = {"probe": (style.COLOURS[0], "o"), "class-mean": (style.COLOURS[4], "D")}
ASIDE = 0.16
"""From the points to the random ones that go with them."""
COLUMNS = [*causal.KEY, "direction", "draw", "before", "change", "lo", "hi", "n"]


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """The points: what was changed, where and how much; of targets the interval too.

    Raises:
        NothingToDraw: no direction with random ones beside it.
    """
    causal.summary(table)  # refuses what is not to be drawn
    points = table[(table["metric"] == "refusal") & (table["intervention"] != "none")]
    points = points.assign(before=points["value"] - points["change"])
    points = points.drop(columns=["lo", "hi"])  # of the share itself
    points = points.rename(columns={"change_lo": "lo", "change_hi": "hi"})
    return points[COLUMNS].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """Change of refusal (percentage points) by layer."""
    points = plotted(table)
    runs = list(points.groupby(causal.RUN, sort=False))
    columns = list(dict.fromkeys(zip(points["intervention"], points["strength"], strict=True)))
    columns.sort(key=lambda column: (column[0] != "ablate", column[1]))
    most = points.groupby(causal.RUN)["layer"].nunique().max()
    width = 1.7 + 0.5 * most
    size = (max(4.6, 1.1 + width * len(columns)), max(3.4, 1.2 + 1.75 * len(runs)))
    figure = Figure(figsize=size)
    grid = figure.subplots(len(runs), len(columns), squeeze=False)
    for axes, (_, of_run) in zip(grid, runs, strict=True):
        for ax, (intervention, strength) in zip(axes, columns, strict=True):
            here = of_run["intervention"] == intervention
            _panel(ax, of_run[here & (of_run["strength"] == strength)], intervention)
        axes[0].set_ylabel(style.clip(of_run["model"].iloc[0], 24), fontweight="bold", fontsize=9)
    for ax, (intervention, strength) in zip(grid[0], columns, strict=True):
        ax.set_title(_title(intervention, strength), fontsize=9)
    figure.supylabel(
        "change of the share refused\n(percentage points)", fontsize=9, multialignment="center"
    )
    figure.legend(handles=_handles(points), loc="outside lower center", ncols=3, fontsize=8.5)
    return figure


def _title(intervention: str, strength: float) -> str:
    if intervention == "ablate":
        return "removed,\nharmful prompts"
    return f"added ({strength:g} SD),\nharmless prompts"


def _panel(ax: Axes, points: pd.DataFrame, intervention: str) -> None:
    """One model, one change: a place a layer, and in it one for each direction tested."""
    layers = sorted(points["layer"].unique())
    targets = style.in_order(points["target"], LOOKS)
    ax.axhline(0, color="black", lw=0.7, zorder=1)
    for i, target in enumerate(targets):
        colour, marker = LOOKS[target]
        of_target = points[points["target"] == target]
        at = of_target["layer"].map(layers.index) + 0.8 * ((i + 0.5) / len(targets) - 0.5)
        random = of_target["direction"] == "random"
        change = 100 * of_target["change"]
        if random.any():  # a line of no points would lie in the figure's corner
            ax.plot(at[random] + ASIDE, change[random], color=style.QUIET, marker="_", ls="",
                    ms=6, mew=0.9, alpha=0.8, zorder=2, clip_on=False)  # fmt: skip
        tested = of_target[~random]
        ax.vlines(at[~random] - ASIDE / 2, 100 * tested["lo"], 100 * tested["hi"], color=colour,
                  lw=1.4, zorder=3)  # fmt: skip
        ax.plot(at[~random] - ASIDE / 2, change[~random], color=colour, marker=marker, ls="", ms=5,
                zorder=4, clip_on=False)  # fmt: skip
    single = len(layers) == 1
    names = [f"layer {layer}" if single or i == 0 else f"{layer}" for i, layer in enumerate(layers)]
    ax.set_xticks(range(len(layers)), names)
    ax.set_xlim(-0.55, max(len(layers), 1) - 0.4)
    sign = causal.SIGN[intervention]
    ax.set_ylim(*sorted((-25 * sign, 105 * sign)))
    ax.set_yticks([0, 50 * sign, 100 * sign], ["0", _signed(50 * sign), _signed(100 * sign)])
    ax.grid(axis="y", lw=0.4, alpha=0.5)
    if len(points):
        ax.text(0.03, 0.98 if sign < 0 else 0.03, _before(points), transform=ax.transAxes,
                fontsize=7.5, va="top" if sign < 0 else "bottom", color="#444444",
                in_layout=False)  # fmt: skip


def _signed(points: int) -> str:
    return f"{points:+d}".replace("-", "−")


def _before(points: pd.DataFrame) -> str:
    return f"before: {100 * points['before'].iloc[0]:.0f} % refused"


def _handles(points: pd.DataFrame) -> list[Line2D]:
    handles = [
        Line2D([], [], color=LOOKS[target][0], marker=LOOKS[target][1], ls="-", lw=1.4,
               label=NAMES[target])
        for target in style.in_order(points["target"], LOOKS)
    ]  # fmt: skip
    draws = points.loc[points["direction"] == "random", "draw"].nunique()
    label = f"{draws} random directions, beside each"
    return [*handles, Line2D([], [], color=style.QUIET, marker="_", ls="", ms=7, label=label)]
