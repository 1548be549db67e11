"""What a judge adds to a probe for how many calls: means over seeds, as a table."""

from __future__ import annotations

import math

import pandas as pd
from rich.console import Group

from analysis import results, seeds, style, typeset

BY = ["model", "data", "judge", "probe", "critic", "lo"]
"""What tells one point from another."""
RATES = ("recall", "fpr", "auroc")
"""Measured with an interval."""
USUAL = 0.05
"""Lower end of the band that the terminal shows: the critic's own default."""
CRITICS = {
    "probe": "probe alone",
    "judge": "judge alone",
    "hybrid": "hybrid: the judge decides in the band",
    "stacked": "hybrid: weighed in the band",
    "random": "control: the judge decides about random rows",
}
"""How they are called, in the order that they are shown in."""
HEAD = (
    "critic", "judged", "recall", "false alarms", "AUROC", "Brier score", "calibration error"
)  # fmt: skip
CAPTION = (
    "judged: share of the rows that the judge reads; recall and false alarms: of the harmful and "
    "of the harmless rows, those flagged; percent, means over seeds. [95 % interval]: over seeds; "
    "of one seed, or of seeds that agree, over rows."
)


def points(table: pd.DataFrame) -> pd.DataFrame:
    """One row a critic and band: means over seeds.

    Columns: model, data, judge, probe, critic, lo, judged, brier, ece, and recall, fpr and auroc
    each with _lo and _hi: Student's 95 % interval over the seeds, or where they agree, that of the
    rows.

    Raises:
        TableError: two rows are of one critic, band and seed.
    """
    results.unique(table, [*BY, "seed"])
    found = table.groupby(BY, sort=False, dropna=False)[["judged", "brier", "ece"]].mean()
    found = found.reset_index()
    for rate in RATES:
        named = {rate: "value", f"{rate}_lo": "lo_", f"{rate}_hi": "hi"}
        rows = table[[*BY, *named]].rename(columns=named)
        # The band's lower end has the name of the interval's.
        rows = rows.rename(columns={"lo": "band", "lo_": "lo"})
        by = ["band" if name == "lo" else name for name in BY]
        means = seeds.over_seeds(rows, by)
        found[[rate, f"{rate}_lo", f"{rate}_hi"]] = means[["mean", "lo", "hi"]].to_numpy()
    return found


def render(table: pd.DataFrame) -> Group:
    """For a terminal: one table a set of rows, judge and probe, with one band; the CSV has all."""
    found = points(table)
    los = found["lo"].dropna()
    if not los.empty:
        usual = min(los, key=lambda lo: abs(lo - USUAL))
        found = found[found["lo"].isna() | (found["lo"] == usual)]
    tables = [
        typeset.terminal(HEAD, lines(part), f"{data}, {probe}, judge {judge}")
        for (data, judge, probe), part in found.groupby(["data", "judge", "probe"], sort=False)
    ]
    return Group(*tables, CAPTION)


def lines(part: pd.DataFrame) -> list[list[str]]:
    """The cells, by critic and from narrow bands to wide ones."""
    order = {name: i for i, name in enumerate(CRITICS)}
    ordered = part.assign(order=part["critic"].map(order)).sort_values(
        ["order", "lo"], ascending=[True, False], kind="stable"
    )
    return [
        [
            row["critic"] if math.isnan(row["lo"]) else f"{row['critic']}, {_band(row['lo'])}",
            _percent(row["judged"]),
            *(f"{_percent(row[rate])} [{_percent(row[f'{rate}_lo'])}, "
              f"{_percent(row[f'{rate}_hi'])}]" for rate in ("recall", "fpr")),
            f"{row['auroc']:.3f}", f"{row['brier']:.3f}", f"{row['ece']:.3f}",
        ]
        for row in ordered.to_dict("records")
    ]  # fmt: skip


def of(name: str) -> str:
    """How a set, a probe or a judge is called in pictures."""
    return style.clip(name, 40)


def _band(lo: float) -> str:
    return f"{lo:g} to {1 - lo:g}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f}"
