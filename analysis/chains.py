"""Chains of fine-tunings: what became of the model after each link, means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table

from analysis import arms, results, seeds

CHAIN = ["model", *arms.SETTING, "defence", "critic", "reference"]
"""What tells two chains of one seed apart."""
METRICS = {
    "attack_success": "attack success", "new_task": "new task", "utility": "utility",
    "over_refusal": "over-refusal", "probe_auroc": "AUROC of the first model's probe",
    "probe_tpr": "harmful prompts that it flags", "drift": "drift: KL to the first model (nats)",
}  # fmt: skip
"""What is shown, of those that were measured."""
WITH_INTERVAL = ("attack_success", "new_task")
NOT_SHARES = ("drift", "probe_auroc")


class Line(NamedTuple):
    """Which chain of a model."""

    defence: str
    critic: str
    reference: str
    harmful: bool
    """Whether its data hold harmful rows; true where it is not known."""

    @property
    def label(self) -> str:
        """Such as `adaptive-kl, probe; reference fixed`."""
        said = arms.label(self.defence, self.critic)
        if self.reference != "none":
            said += f"; reference {self.reference}"
        return said if self.harmful else f"{said}; no harmful rows"


def chain_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of each measure after each link, with its 95 % interval.

    Columns: `CHAIN`, link, metric, mean, lo, hi (`seeds.over_seeds`), and `line`, a `Line`.

    Raises:
        TableError: a chain has two values of one metric at one link.
    """
    results.unique(rows, [*CHAIN, "seed", "link", "metric"])
    parts = []
    for metric, of_metric in rows.groupby("metric", sort=False):
        bounds = (0.0, math.inf if metric == "drift" else 1.0)
        parts.append(seeds.over_seeds(of_metric, [*CHAIN, "link", "metric"], bounds))
    table = pd.concat(parts, ignore_index=True)
    harmful = table["harmful_share"].fillna(1) > 0
    named = zip(table["defence"], table["critic"], table["reference"], harmful, strict=True)
    lines: list[Any] = [
        Line(str(one), str(by), str(kept), bool(harms)) for one, by, kept, harms in named
    ]
    return table.assign(line=lines)


def render(rows: pd.DataFrame) -> Group:
    """A table a measure and model: one line a chain, one column a link."""
    table = chain_table(rows)
    shown = []
    for model, of_model in table.groupby("model", sort=False):
        for metric, title in METRICS.items():
            of_metric = of_model[of_model["metric"] == metric]
            if not of_metric["mean"].isna().all():
                shown.append(_table(f"{model}: {title}", metric, of_metric))
    caption = (
        "Means over seeds; shares in percent, [95 % interval]: over seeds; of one seed, or of "
        "seeds that agree, over prompts."
    )
    return Group(*shown, caption)


def _table(title: str, metric: str, rows: pd.DataFrame) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
                  padding=(0, 1, 0, 0), pad_edge=False)  # fmt: skip
    table.add_column("after so many fine-tunings", no_wrap=True)
    links = sorted(set(rows["link"]))
    for link in links:
        table.add_column(str(link), justify="right", no_wrap=True)
    for line in dict.fromkeys(rows["line"]):
        values = rows[rows["line"] == line].set_index("link")
        table.add_row(
            line.label, *(_cell(metric, values, link, wide=link == links[-1]) for link in links)
        )
    return table


def _cell(metric: str, values: pd.DataFrame, link: int, *, wide: bool) -> str:
    """The mean, and at the last link its interval: at all of them it would not fit a page."""
    if link not in values.index:
        return "–"
    row = values.loc[[link]].iloc[0]
    found = [float(row[name]) for name in ("mean", "lo", "hi")]
    if math.isnan(found[0]):
        return "–"
    said = [_digits(metric, value) for value in found]
    if not wide or metric not in WITH_INTERVAL or any(map(math.isnan, found)):
        return said[0]
    return f"{said[0]} [{said[1]}, {said[2]}]"


def _digits(metric: str, value: float) -> str:
    return f"{value:.3f}" if metric in NOT_SHARES else f"{100 * value:.1f}"


def looks(lines: Sequence[Line]) -> dict[Line, tuple[str, str | tuple[float, tuple[float, ...]]]]:
    """Line -> colour, by the arm, and dash: fixed solid, moving dashed, without harm dotted."""
    pairs = dict.fromkeys((line.defence, line.critic) for line in lines)
    free = [pair for pair in pairs if pair[0] not in arms.PINNED]
    colours = {pair: arms.COLOURS[i % len(arms.COLOURS)] for i, pair in enumerate(free)}
    return {
        line: (
            colours.get((line.defence, line.critic)) or arms.PINNED[line.defence],
            ":" if not line.harmful else (0, (5, 2)) if line.reference == "moving" else "-",
        )
        for line in lines
    }
