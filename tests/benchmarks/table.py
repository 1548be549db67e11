"""The one table of all comparisons: parts of it are measured anew, and the rest stays."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.markup import escape
from rich.table import Table

from analysis import results
from analysis.results import BenchRow
from tests.benchmarks.cases import Group

Key = tuple[str, str, str]
UNMEASURED = "not measured"
"""How a reason begins that is the machine's, and no failure."""


def merge(folder: Path, found: Sequence[BenchRow], groups: Sequence[Group]) -> list[BenchRow]:
    """Put new rows in the place of old ones, in the order of the groups, and write the table.

    Numbers are not given up for a row that this machine could not measure. Rows that no group has
    any more are dropped.
    """
    kept = {_key(row): row for row in results.rows(folder, "bench")}
    for row in found:
        before = kept.get(_key(row))
        if before is None or before.failed or not row.failed.startswith(UNMEASURED):
            kept[_key(row)] = row
    order = [(group.bench, group.case, b.name) for group in groups for b in group.baselines]
    merged = [kept[key] for key in order if key in kept]
    results.write(merged, folder / "bench")
    return merged


def measured(folder: Path) -> set[Key]:
    """What the table has numbers for."""
    return {_key(row) for row in results.rows(folder, "bench") if not row.failed}


def failures(table: pd.DataFrame) -> list[str]:
    """The rows that raised or did not agree, with the reason; not those without a device."""
    of = table[(table["failed"] != "") & ~table["failed"].str.startswith(UNMEASURED)]
    return [
        f"FAILED {row['bench']}, {row['case']}, {row['baseline']}: {row['failed']}"
        for row in of.to_dict("records")
    ]


def line(row: BenchRow) -> str:
    """One row, as it is told while the others are measured."""
    said = row.failed or f"{_time(row.time_ratio, row.time_ratio_lo, row.time_ratio_hi)}"
    return f"{row.case} | {row.baseline}: {said}"


def render(table: pd.DataFrame) -> Table:
    """For a terminal."""
    shown = Table(
        title="ours / baseline: below 1 ours takes less",
        caption=escape(
            "time: median [quartiles] over interleaved rounds; memory: peak above what was there "
            "before; difference: largest of the results; share: of a bound, and what is aimed at"
        ),
    )
    headings = ("bench", "case", "baseline", "time", "share", "memory", "difference", "rounds",
                "where")  # fmt: skip
    for heading in headings:
        shown.add_column(heading)
    for _, of_case in table.groupby(["bench", "case"], sort=False):
        shown.add_section()
        for row in of_case.to_dict("records"):
            time = _time(row["time_ratio"], row["time_ratio_lo"], row["time_ratio_hi"])
            cells = (
                row["bench"], row["case"], row["baseline"], row["failed"] or time, share(row),
                number(row["memory_ratio"], ".2f"), number(row["parity"], ".0e"),
                str(row["rounds"] or ""), row["where"],
            )  # fmt: skip
            shown.add_row(*map(escape, cells))
    return shown


def share(row: dict[Hashable, Any]) -> str:
    """Of a bound: what is reached of it, and the goal."""
    goal, ratio = row["goal"], row["time_ratio"]
    if math.isnan(goal):
        return ""
    reached = "" if math.isnan(ratio) else f"{1 / ratio:.0%} "
    return f"{reached}(goal {goal:.0%})"


def number(value: float, form: str) -> str:
    """Empty where there is none."""
    return "" if math.isnan(value) else format(value, form)


def _time(median: float, lo: float, hi: float) -> str:
    return f"{median:.2f} [{lo:.2f}, {hi:.2f}]"


def _key(row: BenchRow) -> Key:
    return row.bench, row.case, row.baseline
