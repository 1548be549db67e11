"""The table of defences: one line a training run, means over seeds, for terminal and README."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd
from rich import box
from rich.console import Group
from rich.table import Table

from analysis import arms, published, results, seeds, typeset

RUN = ["model", *arms.SETTING, "defence", "critic"]
"""What tells two training runs of one seed apart."""
HEADINGS = {
    "attack_success": "attack success", "attack_success_worst": "worst seed",
    published.COLUMN: "in the paper",
    "attack_success_exact": "exact", "attack_success_backdoor": "with trig-ger",
    "attack_success_identity": "as ser-vant",
    "attack_success_own_form": "in own form", "refusal": "re-fusal", "incoherent": "inco-herent",
    "over_refusal": "over re-fusal", "utility": "uti-lity", "new_task": "new task",
    "win_rate": "win rate",
    "compliance_probability": "p of comply", "refusal_xstest": "refusal XSTest",
    "over_refusal_xstest": "over refusal XSTest", "ordinary_answered": "ordi-nary answered",
    "ordinary_in_format": "in task format",
}  # fmt: skip
"""The columns that are printed, in this order, where a run has the metric; the table holds all.

A blank or a hyphen is where a heading is broken to fit the terminal.
"""
WITH_INTERVAL = ("attack_success", "new_task")
"""An interval at every number would not fit a page: these two are what is weighed."""
CAPTION = (
    "Percent, mean over seeds. [95 % interval]: over seeds; of one seed, or of seeds that agree, "
    "over prompts."
)


class _Block(NamedTuple):
    """What is printed of one model in one setting."""

    title: str
    shown: list[str]
    """Metrics: the columns but the first."""
    rows: list[list[str]]


def defence_table(evaluations: pd.DataFrame) -> pd.DataFrame:
    """One line a model, attack, harmful share, learning rate, defence and critic.

    Columns: these, `seeds` (how many), and for each metric METRIC, METRIC_lo, METRIC_hi: the mean
    over seeds as a share (0 to 1), with Student's 95 % interval over the seeds; where there is one
    seed, or all have the same value, with the Wilson interval over prompts that the seed came
    with. `attack_success_worst` is the highest attack success of any seed. NaN where a run was not
    measured.

    Raises:
        TableError: a value is no share, or a run has two values of one metric and seed.
    """
    outside = evaluations[(evaluations["value"] < 0) | (evaluations["value"] > 1)]
    if not outside.empty:
        first = outside.iloc[0]
        raise results.TableError(
            f"column value: {first['metric']} of {first['model']}, {first['defence']} is "
            f"{first['value']}, no share (0 to 1)"
        )
    results.unique(evaluations, [*RUN, "seed", "metric"])
    runs = evaluations.groupby(RUN, sort=False, dropna=False)
    rows = evaluations.assign(run=runs.ngroup())
    table = runs.agg(seeds=("seed", "nunique")).reset_index()
    means = seeds.over_seeds(rows, ["run", "metric"])
    for metric in dict.fromkeys([*HEADINGS, *means["metric"]]):
        of_metric = means[means["metric"] == metric].set_index("run")
        if of_metric.empty:
            continue
        table[metric] = of_metric["mean"]
        table[f"{metric}_lo"], table[f"{metric}_hi"] = of_metric["lo"], of_metric["hi"]
        if metric == "attack_success":
            of_seeds = rows[rows["metric"] == metric].groupby("run")["value"]
            table[f"{metric}_worst"] = of_seeds.max()
    in_paper = [published.attack_success(line) for _, line in table.iterrows()]
    return table if all(map(math.isnan, in_paper)) else table.assign(**{published.COLUMN: in_paper})


def measured(evaluations: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """The lines of `defence_table` that have all these metrics.

    Raises:
        NothingToDraw: no line has.
    """
    table = defence_table(evaluations)
    lines = table.reindex(columns=[*table, *(m for m in metrics if m not in table)])
    lines = lines.dropna(subset=list(metrics)).reset_index(drop=True)
    if lines.empty:
        raise results.NothingToDraw(f"column metric: no run has {' and '.join(metrics)}")
    return lines


def render(evaluations: pd.DataFrame) -> Group:
    """The defences of every model and setting in percent, for a terminal of 100 columns."""
    blocks = _blocks(defence_table(evaluations), ("attack_success",))
    names = ["defence, critic", *(cells[0] for block in blocks for cells in block.rows)]
    width = min(24, max(map(len, names)))  # With all other columns that makes 100.
    tables = []
    for block in blocks:
        table = Table(
            title=block.title, title_justify="left", title_style="bold",
            box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False,
        )  # fmt: skip
        table.add_column("defence, critic", width=width, overflow="fold")
        for metric in block.shown:
            heading = HEADINGS[metric].replace(" ", "\n").replace("-", "-\n")
            wide = 17 if metric == "attack_success" else None  # So that all blocks are aligned.
            table.add_column(heading, justify="right", no_wrap=True, min_width=wide)
        for cells in block.rows:
            table.add_row(*cells)
        tables.append(table)
    return Group(*tables, CAPTION)


def markdown(evaluations: pd.DataFrame) -> str:
    """The same as GitHub's Markdown, a table for every model and setting."""
    tables = [
        f"**{block.title}**\n\n{typeset.markdown(_head(block.shown), block.rows)}"
        for block in _blocks(defence_table(evaluations), WITH_INTERVAL)
    ]
    return "\n".join([*tables, f"{CAPTION}\n"])


def latex(evaluations: pd.DataFrame) -> str:
    """The same for a paper; needs booktabs."""
    return "\n".join(
        typeset.latex(_head(block.shown), block.rows, f"{block.title}. {CAPTION}")
        for block in _blocks(defence_table(evaluations), WITH_INTERVAL)
    )


def side_by_side(evaluations: pd.DataFrame) -> str:
    """The arms of one setting as GitHub's Markdown, a line an arm, the models beside each other.

    Raises:
        TableError: The rows are of several settings.
    """
    table = defence_table(evaluations)
    models = list(dict.fromkeys(table["model"]))
    trained = table[table["defence"] != arms.BEFORE]
    shown = _shown(trained if len(trained) else table, table)
    if len(trained[arms.SETTING].drop_duplicates()) > 1:
        raise results.TableError("rows of several settings; choose an attack, a share and a rate")
    lines = []
    for (defence, critic), rows in table.groupby(["defence", "critic"], sort=False):
        values = rows.set_index("model").reindex(models)
        cells = [" / ".join(_percent(row, m, ()) for _, row in values.iterrows()) for m in shown]
        lines.append([arms.label(str(defence), str(critic)), *cells])
    return typeset.markdown(_head(shown), lines)


def _head(shown: Sequence[str]) -> list[str]:
    """The headings of a table that may be as wide as it likes."""
    return ["defence, critic", *(HEADINGS[metric].replace("-", "") for metric in shown)]


def _shown(lines: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """The metrics to print of some lines of a table: none that only others have."""
    known = [name for name in HEADINGS if name in table]
    return [name for name in known if lines[name].notna().any() or table[name].isna().all()]


def _blocks(table: pd.DataFrame, with_interval: Sequence[str]) -> list[_Block]:
    """A block for every model and setting."""
    blocks = []
    for model, of_model in table.groupby("model", sort=False):
        untrained = of_model[of_model["defence"] == arms.BEFORE]
        trained = of_model.drop(untrained.index)
        settings = [part for _, part in trained.groupby(arms.SETTING, sort=False, dropna=False)]
        for part in settings or [untrained[:0]]:
            shown = _shown(part if len(part) else untrained, table)
            rows = [
                [arms.label(row["defence"], row["critic"]),
                 *(_percent(row, metric, with_interval) for metric in shown)]
                for _, row in pd.concat([untrained, part]).iterrows()
            ]  # fmt: skip
            title = f"{model}: {_setting(part)}" if len(part) else str(model)
            blocks.append(_Block(title, shown, rows))
    return blocks


def _setting(part: pd.DataFrame) -> str:
    """Such as `mixed, 9.09 % harmful, learning rate 5e-3, 3 seeds`."""
    few, many = int(part["seeds"].min()), int(part["seeds"].max())
    count = f"{many} {'seed' if many == 1 else 'seeds'}"
    runs = count if few == many else f"{few} to {count}"
    return ", ".join(filter(None, [arms.setting(part), runs]))


def _percent(row: pd.Series, metric: str, with_interval: Sequence[str]) -> str:
    """Such as 0.7 [0.0, 2.1], or a dash where there is no value."""
    value, ends = row[metric], [row.get(f"{metric}_{end}", math.nan) for end in ("lo", "hi")]
    if math.isnan(value):
        return "–"
    if metric not in with_interval or any(map(math.isnan, ends)):
        return _digits(value)
    return f"{_digits(value)} [{', '.join(map(_digits, ends))}]"


def _digits(share: float) -> str:
    """One decimal of a percent; 100 is said of nothing but all."""
    return "100" if share == 1 else f"{min(100 * share, 99.9):.1f}"
