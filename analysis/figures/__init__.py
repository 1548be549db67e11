"""One figure a file. A file here with `TABLE`, `plotted` and `draw` is a figure under its name.

A figure that shows several values of one of the `results.VARIANTS` side by side, such as positions,
names that column in a tuple `TOGETHER`; by the others its table is split.
"""

from __future__ import annotations

import importlib
import io
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import pandas as pd
from matplotlib.figure import Figure

from analysis import results, style


@runtime_checkable
class FigureModule(Protocol):
    """What a file in this folder holds."""

    TABLE: str
    """The table that it is drawn from: a key of `results.TABLES`."""

    def plotted(self, table: pd.DataFrame) -> pd.DataFrame:
        """Just what is drawn, in tidy rows."""
        ...

    def draw(self, table: pd.DataFrame) -> Figure:
        """The figure of one slice of the table; `NothingToDraw` if it is not for this figure."""
        ...


def names() -> tuple[str, ...]:
    """The figures there are."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load(name: str) -> FigureModule:
    """The figure's module."""
    return cast(FigureModule, importlib.import_module(f"{__name__}.{name}"))


def redraw(tables: Mapping[str, pd.DataFrame], out: Path) -> list[Path]:
    """Draw every figure whose table is given, as png, pdf and the csv that is plotted.

    A table that lacks what a figure shows, such as a second learning rate, is passed over.
    A table with several train sets (or hook points, positions, seeds) gives a figure for each:
    `layer_curves-advbench.png`, else `layer_curves.png`.

    Returns:
        The pictures (png), in the order drawn. Equal tables give equal bytes on one machine.

    Raises:
        TableError: a table is broken.
    """
    pictures = []
    for name in names():
        module = load(name)
        if module.TABLE not in tables:
            continue
        together = getattr(module, "TOGETHER", ())
        for suffix, table in results.slices(tables[module.TABLE], module.TABLE, together=together):
            stem = out / f"{name}{suffix}"
            with style.context():
                try:
                    figure = module.draw(table)
                except results.NothingToDraw:
                    continue
                contents = {
                    stem.with_name(f"{stem.name}.png"): _saved(figure, "png"),
                    stem.with_name(f"{stem.name}.pdf"): _saved(figure, "pdf"),
                    stem.with_name(f"{stem.name}.csv"): results.csv(module.plotted(table)),
                }
            results.replace(contents)
            pictures.append(stem.with_name(f"{stem.name}.png"))
    return pictures


def _saved(figure: Figure, kind: str) -> bytes:
    # No date and no version, so that redrawing leaves the file as it is.
    without = {"png": ("Software",), "pdf": ("CreationDate", "Creator", "Producer")}[kind]
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, metadata=dict.fromkeys(without))
    return buffer.getvalue()
