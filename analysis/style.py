"""Names, colours and marks that the figures share.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every set also has a marker
and a dash of its own, so that a grey print still reads.
"""

from __future__ import annotations

import math
import os.path
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import matplotlib as mpl
import matplotlib.style
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.scale import FuncScale
from matplotlib.ticker import PercentFormatter

STYLE = Path(__file__).with_name("style.mplstyle")
IN_A_ROW = 3
"""Panels in a row, at the most."""
SHARES = {
    "x": (0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1),
    "y": (0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1),
}
"""Ticks of an axis of shares: of those across fewer have room."""
RATIOS = tuple(digit * 10.0**power for power in range(-3, 5) for digit in (1, 1.5, 2, 3, 5))
"""Ticks of a logarithmic axis of ratios, which may span less than a decade."""
QUIET = "#8a8a8a"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = ("s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[tuple[float, ...], ...] = ((5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5), (2.5, 1.5))
READOUTS = {
    "layer": "layer",
    "embedding": "embedding",
    "pooled-mean": "pooled mean",
    "pooled-concat": "pooled concat",
    "class-mean": "class mean",
    "tfidf-word": "TF-IDF word",
    "tfidf-char": "TF-IDF char",
    "length": "length",
}
"""How a readout is called in pictures."""
FLOORS = ("tfidf-word", "tfidf-char", "length")
"""Readouts that see the words alone: what a probe has to beat."""


class Mark(NamedTuple):
    """How an evaluation set is drawn, in every panel alike."""

    colour: str
    marker: str
    dash: str | tuple[float, tuple[float, ...]]


def context() -> AbstractContextManager[None]:
    """The style file, in force while figures are drawn and saved."""
    return mpl.style.context(STYLE)


def evaluation_sets(table: pd.DataFrame) -> dict[str, bool]:
    """Evaluation set -> held out or not; in-distribution first, then in order of appearance."""
    found = table.drop_duplicates("eval_set").sort_values("held_out", kind="stable")
    return dict(zip(found["eval_set"], found["held_out"], strict=True))


def marks(table: pd.DataFrame) -> dict[str, Mark]:
    """Evaluation set -> mark: black for in-distribution, a mark of its own for each held out."""
    sets = evaluation_sets(table)
    held_out = [name for name, out in sets.items() if out]
    return {name: Mark("black", "o", "-") for name, out in sets.items() if not out} | {
        name: Mark(
            COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)], (0, DASHES[i % len(DASHES)])
        )
        for i, name in enumerate(held_out)
    }


def set_labels(table: pd.DataFrame) -> dict[str, str]:
    """Evaluation set -> what the picture calls it; the part that all names share is left out."""
    sets = evaluation_sets(table)
    named = {name.partition(":")[0] for name in sets}
    shared = f"{named.pop()}:" if len(named) == 1 else ""
    return {
        name: clip(name.removeprefix(shared)) if out else "in-distribution"
        for name, out in sets.items()
    }


def clip(name: str, width: int = 34) -> str:
    """A name that fits: of a long or absolute path the last part; of that, if need be, the end."""
    if os.path.isabs(name) or len(name) > width:
        name = name.rstrip("/").rpartition("/")[2]
    return name if len(name) <= width else f"…{name[1 - width :]}"


def panels(
    titles: Sequence[str], *, width: float, height: float, **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with one titled panel (width x height inches) each, `IN_A_ROW` in a row."""
    columns = min(IN_A_ROW, len(titles))
    rows = math.ceil(len(titles) / columns)
    # A figure made without pyplot belongs to nobody else and needs no display.
    figure = Figure(figsize=(width * columns, height * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False, **subplots).flat)
    for spare in axes[len(titles) :]:
        spare.remove()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    return figure, axes[: len(titles)]


def in_order(values: Iterable[str], order: Iterable[str]) -> list[str]:
    """Those of `order` that occur in `values`."""
    present = set(values)
    return [value for value in order if value in present]


def share_axis(ax: Axes, which: Literal["x", "y"]) -> None:
    """An axis of shares from 0 to 1, in percent, that gives room to both ends.

    The scale is arcsin(sqrt(share)), on which the binomial error is the same everywhere.
    """
    axis = {"x": ax.xaxis, "y": ax.yaxis}[which]
    ax.set(**{
        f"{which}scale": FuncScale(axis, (_angle, _share)),
        f"{which}lim": (0, 1),
        f"{which}ticks": SHARES[which],
    })  # fmt: skip
    axis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
    # Marks at 0 and 1 are whole and stand clear of the axes.
    ax.spines[["left", "bottom"]].set_position(("outward", 6))


def _angle(share: npt.ArrayLike) -> npt.ArrayLike:
    return np.arcsin(np.sqrt(np.clip(share, 0, 1)))


def _share(angle: npt.ArrayLike) -> npt.ArrayLike:
    return np.sin(angle) ** 2
