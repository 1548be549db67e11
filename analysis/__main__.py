"""Redraw the figures and print the tables from what a run wrote. No model is loaded.

Run as:
    python -m analysis
    python -m analysis --results runs/layer_sweep --out runs/layer_sweep
    python -m analysis --results runs/compare --out runs/compare
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class AnalysisConfig:
    """What to draw, and where to."""

    results: Path = Path("figures")
    """Folder with scores, risks, evaluations or steps, as .parquet or .csv."""
    out: Path = Path("figures")
    """Folder for the figures: png, pdf, and the csv that is plotted."""


def main(config: AnalysisConfig) -> None:
    """Draw every figure whose table is there; print the tables of AUROC and of defences.

    Raises:
        TableError: there is no table, or one is broken.
    """
    from rich.console import Console

    from analysis import defences, figures, results, tables

    read = results.read_all(config.results)
    console = Console()
    if not console.is_terminal:  # A file has no width: the table takes what it needs.
        console.width = 100
    if "scores" in read:
        for _, scores in results.slices(read["scores"]):
            console.print(tables.render(scores))
    if "evaluations" in read:
        for suffix, evaluations in results.slices(read["evaluations"], "evaluations"):
            if suffix:
                console.print(f"\n{suffix.removeprefix('-')}", style="bold", highlight=False)
            console.print(defences.render(evaluations), highlight=False)
    for picture in figures.redraw(read, config.out):
        console.print(f"{picture} (.pdf, .csv)", highlight=False)


def run() -> None:
    """The command: bad input ends it with a message and code 2, without a traceback."""
    config = tyro.cli(AnalysisConfig, prog="python -m analysis", description=__doc__)
    from analysis.results import TableError

    try:
        main(config)
    except (TableError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    run()
