"""Every figure that the tables allow, inside the page."""

from __future__ import annotations

import base64
import struct
import tempfile
from pathlib import Path
from typing import NamedTuple

from analysis import figures
from analysis.report.cases import Tables

DOTS = 150
"""Pixels an inch (`style.mplstyle`); a page has 96."""


class Picture(NamedTuple):
    """One figure."""

    title: str
    source: str
    """A data: address."""
    alt: str
    reading: str
    """How to read it: what the figure's own file says."""
    width: int
    height: int
    """Pixels of the page at full size."""


def pictures(tables: Tables) -> list[Picture]:
    """What `figures.redraw` draws, in its order.

    Raises:
        TableError: a table is broken.
    """
    with tempfile.TemporaryDirectory() as folder:
        return [_picture(path) for path in figures.redraw(tables, Path(folder))]


def _picture(path: Path) -> Picture:
    name = max((name for name in figures.names() if path.stem.startswith(name)), key=len)
    of = path.stem.removeprefix(name).strip("-")
    content = path.read_bytes()
    width, height = struct.unpack(">II", content[16:24])  # of the PNG's first chunk
    paragraphs = (figures.load(name).__doc__ or name).replace("`", "").strip().split("\n\n")
    said = [" ".join(paragraph.split()) for paragraph in paragraphs]
    title = name.replace("_", " ").capitalize() + (f", {of}" if of else "")
    return Picture(
        title,
        f"data:image/png;base64,{base64.b64encode(content).decode()}",
        f"{title}. {said[0]}",
        " ".join(said),
        width * 96 // DOTS,
        height * 96 // DOTS,
    )
