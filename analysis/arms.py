"""The arms of a comparison: what they are called, how they look, and which belong in one picture.

An arm is a defence with its critic. A colour says the family of the defence, a marker the critic,
and a number which of several it is; all three are the same in every figure of one table.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.optimize import isotonic_regression

from analysis import style

BEFORE = "before"
"""The defence's label of the model that training starts from."""
MIXED = "mixed"
"""The attack that tells defences apart: to learn nothing is no answer to it."""
NUMBERED = r"\+anchors-\d|-[\d.]+-[\d.]+$"
"""Arms with another number of anchors or other betas than usual: they have figures of their own."""
SETTING = ["attack", "harmful_share", "learning_rate"]
NAMES = {BEFORE: "before training", "none": "SFT"}
PINNED = {BEFORE: "black", "none": "#D55E00"}
COLOURS = (
    *(colour for colour in style.COLOURS if colour not in PINNED.values()),
    "#332288", "#882255", "#7a7a1e", "#6b4c2a", "#44AA99",
)  # fmt: skip
DASHES: tuple[str | tuple[float, tuple[float, ...]], ...] = (
    "-", *((0.0, dash) for dash in style.DASHES),
)  # fmt: skip


class Arm(NamedTuple):
    """How one arm is called and drawn."""

    number: int
    label: str
    mark: style.Mark


def label(defence: str, critic: str) -> str:
    """Such as `SFT` or `adaptive-kl, probe`."""
    name = NAMES.get(defence, defence)
    return name if critic == "none" else f"{name}, {critic}"


def family(defence: str) -> str:
    """The defence without its strength and what was added: `constant-kl` of `constant-kl-.5`."""
    return re.split(r"\+|-(?=[.\d])", defence)[0]


def arms(table: pd.DataFrame) -> dict[tuple[str, str], Arm]:
    """(defence, critic) -> arm, in order of appearance, the untrained model first."""
    pairs = list(dict.fromkeys(zip(table["defence"], table["critic"], strict=True)))
    pairs.sort(key=lambda pair: pair[0] != BEFORE)
    families = dict.fromkeys(family(defence) for defence, _ in pairs)
    free = [name for name in families if name not in PINNED]
    colours = PINNED | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(free)}
    critics = [name for name in dict.fromkeys(critic for _, critic in pairs) if name != "none"]
    markers = {"none": "o"} | {
        name: style.MARKERS[i % len(style.MARKERS)] for i, name in enumerate(critics)
    }
    found: dict[tuple[str, str], Arm] = {}
    # The untrained model is 0, so that a table without it numbers the others alike.
    for number, (defence, critic) in enumerate(pairs, start=int(pairs[0][0] != BEFORE)):
        colour, marker = colours[family(defence)], markers[critic]
        alike = sum(arm.mark[:2] == (colour, marker) for arm in found.values())
        mark = style.Mark(colour, marker, DASHES[alike % len(DASHES)])
        found[defence, critic] = Arm(number, label(defence, critic), mark)
    return found


def of(table: pd.DataFrame, arm: tuple[str, str]) -> pd.DataFrame:
    """The rows of one arm."""
    return table[(table["defence"] == arm[0]) & (table["critic"] == arm[1])]


def common_cell(rows: pd.DataFrame) -> pd.DataFrame:
    """Of one model's rows those of one `SETTING`: `mixed` if it occurs, where most was tried.

    Each of attack, share and learning rate counts by itself, so that of a sweep over shares and
    one over rates the cell is chosen in which they cross.
    """
    if (rows["attack"] == MIXED).any():
        rows = rows[rows["attack"] == MIXED]
    counts = [rows.groupby(name, dropna=False)["attack"].transform("size") for name in SETTING]
    cell = rows.groupby(SETTING, sort=False, dropna=False).ngroup()
    return rows[(cell == cell.iloc[int(np.sum(counts, axis=0).argmax())]).to_numpy()]


def longest_sweep(rows: pd.DataFrame, along: str) -> pd.DataFrame:
    """Of one model's rows those that differ in `along` and in no other part of the `SETTING`.

    Only arms with two values or more are in it. `mixed` if there are such, else the attack with
    the most values; empty if there is none.
    """
    fixed = [name for name in SETTING if name != along]
    known = rows.dropna(subset=along)
    values = known.groupby([*fixed, "defence", "critic"], dropna=False)[along].transform("nunique")
    sweeps = known[values > 1].groupby(fixed, sort=False, dropna=False)
    return max(
        (sweep for _, sweep in sweeps), default=rows[:0],
        key=lambda sweep: (sweep["attack"].iloc[0] == MIXED, sweep[along].nunique(), len(sweep)),
    )  # fmt: skip


def setting(rows: pd.DataFrame) -> str:
    """Such as `mixed, 9.1 % harmful, learning rate 5e-3`, without what differs or is unknown."""
    attack, share, rate = (rows[name].drop_duplicates() for name in SETTING)
    words = [attack.iloc[0]] if attack.tolist() != ["none"] and len(attack) == 1 else []
    if len(share) == 1 and 0 <= share.iloc[0] < 1:  # That all are harmful the attack's name says.
        words.append(f"{100 * share.iloc[0]:.3g} % harmful")
    if len(rate) == 1 and rate.notna().all():
        words.append(f"learning rate {short(rate.iloc[0])}")
    return ", ".join(words)


def short(rate: float) -> str:
    """A learning rate as one writes it: 5e-4."""
    return np.format_float_scientific(rate, precision=2, trim="-", exp_digits=1)


def head(ax: Axes, model: str, rows: pd.DataFrame) -> None:
    """The panel's title: the model, and under it what its rows have in common of the setting."""
    ax.set_title(f"{style.clip(model)}\n")
    trained = rows[rows["defence"] != BEFORE]
    ax.annotate(setting(trained), (0, 1), xycoords="axes fraction", xytext=(0, 7),
                textcoords="offset points", fontsize=9)  # fmt: skip


def legend(figure: Figure, shown: Collection[Arm], *, lines: bool = True) -> None:
    """All arms of a figure, by number, below it; the figure grows by as much."""
    handles = [
        Line2D([], [], color=arm.mark.colour, ls=arm.mark.dash if lines else "",
               marker="" if lines and arm.label == NAMES[BEFORE] else arm.mark.marker,
               label=f"{arm.number}  {arm.label}")
        for arm in sorted(shown)
    ]  # fmt: skip
    inches = 0.75 + 0.07 * max(len(arm.label) for arm in shown)
    columns = max(1, int(figure.get_figwidth() / inches))
    figure.set_figheight(figure.get_figheight() + 0.18 * -(-len(handles) // columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=8.5)


def number_ends(ax: Axes, ends: Mapping[Arm, tuple[float, float]]) -> None:
    """Each arm's number right of the panel, as near to the end of its line as the others allow.

    Args:
        ax: the panel, with its final limits and height.
        ends: arm -> last point of its line, in data.
    """
    if not ends:
        return
    found = sorted(ends.items(), key=lambda item: item[1][1])
    y = ax.transAxes.inverted().transform(ax.transData.transform([end for _, end in found]))[:, 1]
    height = 72 * ax.get_window_extent().height / ax.figure.dpi
    steps = np.arange(len(y)) * min(1 / len(y), 9 / height)
    # The nearest places in order and at least a step apart are an isotonic regression.
    places = isotonic_regression(y - steps).x.clip(0, 1 - steps[-1]) + steps
    for (arm, end), place in zip(found, places, strict=True):
        ax.annotate(
            str(arm.number), end, (1.035, place), textcoords="axes fraction", color=arm.mark.colour,
            fontsize=7.5, va="center", annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": arm.mark.colour, "lw": 0.5, "alpha": 0.6,
                        "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)},
        )  # fmt: skip
