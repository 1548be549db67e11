"""What the probe finds beside what it would find in nothing: one panel a model, by layer.

The band holds 95 % of the AUROCs that the same procedure gives with shuffled labels, the choice of
C included; the dashed line is the mean of random directions with their own band. Right of the last
block stands the whole procedure, in which the layer is chosen, too: of several layers the best is
above chance even in nothing.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.transforms import blended_transform_factory

from analysis import results, style

TABLE = "controls"
SHUFFLED, RANDOM = "permuted-labels", "random-direction"
COLOURS = {SHUFFLED: style.COLOURS[0], RANDOM: style.COLOURS[1]}
COLUMNS = [
    "model", "control", "layer", "draws", "auroc", "auroc_lo", "auroc_hi", "observed", "p_value",
]  # fmt: skip


def plotted(table: pd.DataFrame) -> pd.DataFrame:
    """Bands and what was observed, by layer; -1 for the whole procedure."""
    known = table[table["control"].isin(COLOURS)]
    kept = results.unique(known, ["model", "control", "layer"]).dropna(subset="auroc")
    if kept.empty:
        raise results.NothingToDraw("column auroc: no value to draw")
    return kept[COLUMNS].reset_index(drop=True)


def draw(table: pd.DataFrame) -> Figure:
    """AUROC (0 to 1) by layer (block index), one panel a model."""
    points = plotted(table)
    models = list(dict.fromkeys(points["model"]))
    figure, axes = style.panels(
        [style.clip(model) for model in models],
        width={1: 6.5, 2: 4.8}.get(len(models), 3.9), height=3.7, sharey=True,
    )  # fmt: skip
    for ax, model in zip(axes, models, strict=True):
        _panel(ax, points[points["model"] == model])
    low = min(0.4, points["auroc_lo"].min() - 0.02)
    axes[0].set_ylim(low, 1 + 0.12 * (1 - low))  # the sentence stands above the curve
    axes[0].set_yticks([tick / 10 for tick in range(11) if tick / 10 >= low])
    for ax in axes[:: style.IN_A_ROW]:
        ax.set_ylabel("AUROC")
    names = {
        SHUFFLED: "shuffled labels: mean, 95 % of draws",
        RANDOM: "random directions, likewise",
    }
    handles: list[Line2D | Patch] = [Line2D([], [], color="black", marker="o", label="probe")]
    for control in style.in_order(points["control"], COLOURS):
        look = "-" if control == SHUFFLED else "--"
        handles.append(Line2D([], [], color=COLOURS[control], ls=look, label=names[control]))
    figure.legend(handles=handles, loc="outside lower center", ncols=3 if len(models) > 1 else 2)
    return figure


def in_words(row: pd.Series) -> str:
    """The p-value of the whole procedure, as a sentence."""
    draws = int(row["draws"])
    reached = round(float(row["p_value"]) * (1 + draws)) - 1
    found = {0: f"no shuffle of {draws} does", 1: f"1 shuffle of {draws} does"}
    who = found.get(reached, f"{reached} of {draws} shuffles do")
    return f"p = {row['p_value']:.2g}: {who} as well"


def _panel(ax: Axes, points: pd.DataFrame) -> None:
    layers = points[points["layer"] >= 0]
    n_layers = int(layers["layer"].max()) + 1 if len(layers) else 1
    ax.axhline(0.5, color=style.QUIET, lw=0.8, ls=(0, (4, 3)), zorder=1)
    for control, colour in COLOURS.items():
        band = layers[layers["control"] == control].sort_values("layer")
        ax.fill_between(band["layer"], band["auroc_lo"], band["auroc_hi"], color=colour, alpha=0.2,
                        lw=0)  # fmt: skip
        ax.plot(band["layer"], band["auroc"], color=colour, ls="-" if control == SHUFFLED else "--",
                lw=1.2, label=control)  # fmt: skip
    observed = layers.drop_duplicates("layer").sort_values("layer")
    ax.plot(observed["layer"], observed["observed"], color="black", marker="o", lw=2, zorder=3,
            markevery=max(1, round(n_layers / 12)), label="probe")  # fmt: skip
    step = max(1.0, n_layers / 9)
    place = n_layers - 1 + 1.5 * step
    ax.set_xlim(-0.5 * step, n_layers - 1 + 0.5 * step)
    for _, row in points[points["layer"] < 0].iterrows():
        ax.set_xlim(-0.5 * step, place + 0.7 * step)
        ax.vlines(
            place, row["auroc_lo"], row["auroc_hi"], color=COLOURS[SHUFFLED], lw=6, alpha=0.35
        )
        ax.plot([place], [row["auroc"]], color=COLOURS[SHUFFLED], marker="_", ms=9, ls="",
                label="best-shuffled")  # fmt: skip
        ax.plot([place], [row["observed"]], color="black", marker="o", ls="", label="best")
        across = blended_transform_factory(ax.transData, ax.transAxes)
        ax.annotate("best layer", (place, 0), xycoords=across, xytext=(0, -5), rotation=90,
                    textcoords="offset points", ha="center", va="top", fontsize=8.5)  # fmt: skip
        ax.text(0.02, 0.99, in_words(row), transform=ax.transAxes, fontsize=8.5, va="top")
    ticks = range(0, n_layers, max(1, -(-n_layers // 8)))
    ax.set_xticks([*ticks], [str(tick) for tick in ticks])
    below = blended_transform_factory(ax.transData, ax.transAxes)
    ax.annotate("layer (block)", ((n_layers - 1) / 2, 0), xycoords=below, xytext=(0, -20),
                textcoords="offset points", ha="center", va="top")  # fmt: skip
