"""The report's other tables: thresholds, layers, controls, calibration, interventions, drift."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

from analysis.report.cases import Tables
from analysis.report.grids import Grid, Line, Section, absent, under
from analysis.report.wording import (
    NONE,
    digits,
    interval,
    percent,
    percent_interval,
    points,
    points_interval,
    round_percent,
    with_interval,
)

PLACE = ("model", "train_set", "hook_point", "position")
PROBE = ("model", "train_set", "readout", "layer")


class Column(NamedTuple):
    """How one column of the page comes from a row."""

    head: str
    cell: Callable[[pd.Series], str]


def operating(tables: Tables) -> Section:
    """Flagged shares at each frozen threshold."""
    return _section(tables, "operating", "Operating points", PROBE, (
        _set(),
        Column("asked", lambda row: round_percent(row["fpr"])),
        Column("threshold (log-odds)", lambda row: digits(row["threshold"], 2)),
        Column("set by", lambda row: f"{row['n_calibration']}"),
        Column("harmful flagged", lambda row: _share(row, "tpr")),
        Column("of", lambda row: f"{row['n_pos']}"),
        Column("harmless flagged", lambda row: _share(row, "realised_fpr")),
        Column("of", lambda row: f"{row['n_neg']}"),
    ), "What the thresholds flag [exact 95 % interval]", "what the frozen threshold flags",
        "“set by” counts the harmless prompts, out of fold, that set the threshold. The train "
        "set's own rate is no test of it.")  # fmt: skip


def layers(tables: Tables) -> Section:
    """The procedure on prompts that had no say, then the candidates."""
    choice = _section(tables, "nested", "Layer choice", PLACE, (
        Column("chosen in the outer folds", lambda row: row["layers"]),
        Column("looks best", lambda row: _auroc(row, "selected")),
        Column("nested", lambda row: _auroc(row, "nested")),
        Column("optimism", lambda row: digits(row["optimism"])),
    ), "AUROC of the layer that looks best, and of choosing inside each fold [95 % interval]",
        "the AUROC of the whole procedure, nested",
        "Optimism is what choosing by the scores has added.")  # fmt: skip
    each = _section(tables, "layers", "", PLACE, (
        Column("layer", lambda row: f"{row['layer']}{' (chosen)' if row['best'] else ''}"),
        Column("AUROC", lambda row: digits(row["auroc"])),
        Column("error of the difference", lambda row: digits(row["error"])),
        Column("best in", lambda row: percent(row["chosen"])),
        Column("within one error", lambda row: "yes" if row["within_one_error"] else "no"),
    ), "Each layer as a candidate", "how sure the choice among the layers is",
        "Error: the standard error of the difference from the best layer. “best in” is the share "
        "of resamples in which the layer is the best.")  # fmt: skip
    alike = _section(tables, "cosines", "", ("model", "train_set", "hook_point"), (
        Column("positions", lambda row: f"{row['position']} and {row['other']}"),
        Column("layer", lambda row: f"{row['layer']}"),
        Column("cosine", lambda row: digits(row["cosine"])),
    ), "How alike the probes of two positions are", "")  # fmt: skip
    parts = (choice, each, alike)
    grids = tuple(grid for part in parts for grid in part.grids)
    return Section(choice.title, grids, " ".join(part.missing for part in parts).strip())


def controls(tables: Tables) -> Section:
    """What there is to be found where there is nothing."""
    return _section(tables, "controls", "Controls", PLACE, (
        Column("control", lambda row: row["control"]),
        Column("layer", lambda row: "chosen each time" if row["layer"] < 0 else f"{row['layer']}"),
        Column("draws", lambda row: f"{row['draws']}"),
        Column("AUROC of the draws", lambda row: _auroc(row, "auroc")),
        Column("observed", lambda row: digits(row["observed"])),
        Column("selectivity", lambda row: digits(row["observed"] - row["auroc"])),
        Column("p", lambda row: digits(row["p_value"])),
    ), "AUROC where there is nothing to be found, mean [2.5th to 97.5th percentile]",
        "what the same procedure gives with permuted labels or a random direction",
        "Selectivity: observed less the mean of the draws (Hewitt and Liang 2019). "
        "p = (1 + draws of at least the observed AUROC) / (1 + draws).")  # fmt: skip


def calibration(tables: Tables) -> Section:
    """Errors of the probabilities."""
    return _section(tables, "calibration", "Calibration", PROBE, (
        _set(),
        Column("calibration", lambda row: row["calibration"] + " (frozen)" * bool(row["frozen"])),
        Column("n", lambda row: f"{row['n']}"),
        Column("ECE", lambda row: digits(row["ece"])),
        Column("Brier", lambda row: digits(row["brier"])),
        Column("log loss (nats)", lambda row: digits(row["log_loss"])),
    ), "How far the probabilities are what they say",
        "whether the probabilities are what they say",
        "ECE: expected calibration error over ten bins of equal mass.", texts=2)  # fmt: skip


def causal(tables: Tables) -> Section:
    """Refusal under each change; the random directions of one change in one row."""
    if "causal" in tables:
        tables = {**tables, "causal": _random_together(tables["causal"])}
    groups = ("model", "backend", "train_set", "eval_set")
    return _section(tables, "causal", "Causal effect", groups, (
        Column("prompts", lambda row: "harmful" if row["label"] else "harmless"),
        Column("direction", lambda row: row["target"] if row["direction"] != "random"
               else f"{row['draws']} random for {row['target']}"),
        Column("change made", _made),
        Column("share", lambda row: row["metric"]),
        Column("of answers", lambda row: with_interval(
            percent(row["value"]), percent_interval(row["lo"], row["hi"]))),
        Column("change (points)", lambda row: with_interval(
            points(row["change"]), points_interval(row["change_lo"], row["change_hi"]))),
        Column("n", lambda row: f"{row['n']}"),
    ), "What is answered while a direction is changed [95 % interval]",
        "what the model does while the direction is removed or added",
        "Of random directions the mean, and in brackets the least and the greatest. SD: standard "
        "deviations of the probe's logit.", texts=4)  # fmt: skip


def drift(tables: Tables) -> Section:
    """The frozen probe on a model that is trained."""
    return _section(tables, "drift", "Drift in fine-tuning",
                    ("model", "defence", "critic", "attack", "seed"), (
        Column("step", lambda row: f"{row['step']}"),
        Column("AUROC", lambda row: _auroc(row, "auroc")),
        Column("harmful flagged", lambda row: percent(row["tpr"])),
        Column("harmless flagged", lambda row: percent(row["fpr"])),
        Column("n", lambda row: f"{row['n']}"),
    ), "AUROC of the frozen probe on the model being trained [95 % interval]",
        "whether the frozen probe still reads a model that is being trained")  # fmt: skip


def _section(
    tables: Tables,
    name: str,
    title: str,
    groups: tuple[str, ...],
    columns: tuple[Column, ...],
    caption: str,
    what: str,
    note: str = "",
    texts: int = 1,
) -> Section:
    """One grid of one table, under its groups; or the line that says what is missing."""
    if name not in tables:
        return Section(title, (), absent(name, what) if what else "")
    table = tables[name]
    first = table.groupby(list(groups), sort=False, dropna=False).ngroup()
    table = table.assign(_group=first).sort_values("_group", kind="stable")
    lines = [
        Line(tuple(column.cell(row) for column in columns)) for _, row in table.iterrows()
    ]  # fmt: skip
    grid = Grid(caption, tuple(column.head for column in columns),
                tuple(under(table, lines, *groups)), note, texts)  # fmt: skip
    return Section(title, (grid,))


def _set() -> Column:
    return Column(
        "evaluated on", lambda row: row["eval_set"] if row["held_out"] else "in-distribution"
    )


def _auroc(row: pd.Series, name: str) -> str:
    return with_interval(digits(row[name]), interval(row[f"{name}_lo"], row[f"{name}_hi"]))


def _share(row: pd.Series, name: str) -> str:
    if row[name] != row[name]:
        return NONE
    return with_interval(percent(row[name]), percent_interval(row[f"{name}_lo"], row[f"{name}_hi"]))


def _made(row: pd.Series) -> str:
    if row["intervention"] == "none":
        return "none"
    how = "removed" if row["intervention"] == "ablate" else f"added ({row['strength']:g} SD)"
    return f"{how} at layer {row['layer']}, {row['tokens']} tokens"


def _random_together(causal: pd.DataFrame) -> pd.DataFrame:
    """The random directions of one change as one row: mean, least and greatest."""
    keys = ["model", "backend", "train_set", "eval_set", "label", "layer", "intervention",
            "target", "tokens", "random", "strength", "metric"]  # fmt: skip
    random = causal["direction"] == "random"
    parts = [causal[~random].assign(draws=1)]
    for _, draws in causal[random].groupby(keys, sort=False, dropna=False):
        one = draws.iloc[[0]].assign(
            draws=len(draws),
            **{name: draws[name].mean() for name in ("value", "change")},
            lo=draws["value"].min(), hi=draws["value"].max(),
            change_lo=draws["change"].min(), change_hi=draws["change"].max(),
        )  # fmt: skip
        parts.append(one)
    return pd.concat(parts).sort_values(
        ["eval_set", "label", "metric", "layer", "intervention", "target", "tokens", "strength"],
        ascending=[True, False, False, True, False, True, True, True], kind="stable",
    )  # fmt: skip
