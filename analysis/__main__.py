"""Redraw the figures and print the tables from what a run wrote. No model is loaded.

Run as:
    python -m analysis
    python -m analysis --tables paper
    python -m analysis --results runs/layer_sweep --out runs/layer_sweep
    python -m analysis --results runs/compare --out runs/compare
    python -m analysis report --results runs/layer_sweep
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

import tyro

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Group

Config = TypeVar("Config")


@dataclass(frozen=True)
class AnalysisConfig:
    """What to draw, and where to."""

    results: Path = Path("figures")
    """Folder with scores, risks, evaluations or steps, as .parquet or .csv."""
    out: Path = Path("figures")
    """Folder for the figures: png, pdf, and the csv that is plotted."""
    tables: Path | None = None
    """Folder for the tables of defences, their stability and their cost, as Markdown (md), LaTeX
    (tex) and csv. Default: they are only printed."""


def main(config: AnalysisConfig) -> None:
    """Draw every figure whose table is there; print the tables, of AUROC and of defences.

    Raises:
        TableError: there is no table, or one is broken.
    """
    from rich.console import Console

    from analysis import figures, results, tables

    read = results.read_all(config.results)
    console = Console()
    if not console.is_terminal:  # A file has no width: the table takes what it needs.
        console.width = 100
    if "scores" in read:
        for _, scores in results.slices(read["scores"]):
            console.print(tables.render(scores))
    for name, (shown, contents) in _of_defences(read).items():
        if "-" in name:  # one of several detectors, say
            title = name.partition("-")[2]
            console.print(f"\n{title}", style="bold", highlight=False)
        console.print(shown, highlight=False)
        if config.tables is not None:
            stem = f"table_{name}"  # none of them is that of a figure, or of what was read
            results.replace({config.tables / f"{stem}.{kind}": contents[kind] for kind in contents})
            console.print(f"{config.tables / stem}.md (.tex, .csv)", highlight=False)
    for picture in figures.redraw(read, config.out):
        console.print(f"{picture} (.pdf, .csv)", highlight=False)


def _of_defences(read: Mapping[str, pd.DataFrame]) -> dict[str, tuple[Group, dict[str, bytes]]]:
    """The tables of defences by name: for the terminal, and the contents of their files."""
    from analysis import costs, defences, results, stability

    found = {}

    def add(name: str, module: ModuleType, table: pd.DataFrame, *of: object) -> None:
        found[name] = (
            module.render(*of),
            {
                "md": module.markdown(*of).encode(),
                "tex": module.latex(*of).encode(),
                "csv": results.csv(table),
            },
        )

    slices = []
    if "evaluations" in read:
        slices = list(results.slices(read["evaluations"], "evaluations"))
    for suffix, evaluations in slices:
        add(f"defences{suffix}", defences, defences.defence_table(evaluations), evaluations)
    if "steps" in read:
        # The detectors differ in what they say of the answers: the first one's word is taken.
        of = (read["steps"], slices[0].table if slices else None)
        with suppress(results.NothingToDraw):
            add("stability", stability, stability.stability_table(*of), *of)
    if "costs" in read:
        add("cost", costs, costs.cost_table(read["costs"]), read["costs"])
    return found


def run() -> None:
    """The command: bad input ends it with a message and code 2, without a traceback."""
    given = sys.argv[1:]
    if given[:1] == ["report"]:
        from analysis import report

        reported = tyro.cli(report.ReportConfig, args=given[1:], prog="python -m analysis report",
                            description=report.__doc__)  # fmt: skip
        _end(report.main, reported)
    else:
        _end(main, tyro.cli(AnalysisConfig, prog="python -m analysis", description=__doc__))


def _end(command: Callable[[Config], None], config: Config) -> None:
    from analysis.results import TableError

    try:
        command(config)
    except (TableError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    run()
