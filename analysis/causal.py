"""What the causal check found: each direction beside its random controls, and a verdict in words.

The p-value is the target's rank among the random directions, (1 + draws that do at least as much) /
(1 + draws), one-sided: removing is to lower refusal, adding to raise it. It can be no lower than
1 / (1 + draws), and is that of one layer: of several that were tried, some may do well by chance.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator
from typing import Any, cast

import pandas as pd
from rich.console import Group
from rich.table import Table

from analysis import results

RUN = ["model", "backend", "train_set", "eval_set"]
KEY = [*RUN, "layer", "target", "intervention", "strength"]
SIGN = {"ablate": -1, "add": 1}
"""Which way refusal is to change."""
LEVEL = 0.05
ROOM = 0.05
"""Share of the prompts below which there is nothing to change."""
NONSENSE = 0.1
"""Share of incoherent answers from which a change of refusal is no plain finding."""
NOTHING = "no evidence"
CALLED = {"probe": "the probe's direction", "class-mean": "the difference of the class means"}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row a target, layer, intervention and strength.

    Returns:
        `KEY`; `before`, `after`: shares refused; `change`, `lo`, `hi`: paired, with its interval;
        `random_lo`, `random_hi`: least and greatest change by a random direction; `draws`; `p`;
        `incoherent`: share of the answers that say nothing; `n`, `norm`, `cosine`.

    Raises:
        NothingToDraw: no direction was changed, or none has random ones beside it.
        TableError: two rows for one trial.
    """
    results.unique(table, [*KEY, "direction", "draw", "label", "metric"])
    tried = table[table["intervention"] != "none"]
    lines = [_line(key, rows) for key, rows in tried.groupby(KEY, sort=False)]
    found = [line for line in lines if line is not None]
    if not found:
        raise results.NothingToDraw("column direction: no direction with random ones beside it")
    return pd.DataFrame(found)


def _line(key: Hashable, rows: pd.DataFrame) -> dict[str, Any] | None:
    named = dict(zip(KEY, cast(tuple[Any, ...], key), strict=True))
    refusal = rows[rows["metric"] == "refusal"]
    target = refusal[refusal["direction"] == named["target"]]
    random = refusal[refusal["direction"] == "random"]["change"]
    if target.empty or random.empty:
        return None
    one = target.iloc[0]
    nonsense = rows[(rows["metric"] == "incoherent") & (rows["direction"] == named["target"])]
    return named | {
        "before": one["value"] - one["change"],
        "after": one["value"],
        "change": one["change"],
        "lo": one["change_lo"],
        "hi": one["change_hi"],
        "random_lo": random.min(),
        "random_hi": random.max(),
        "draws": len(random),
        "p": rank_p(one["change"], random.tolist(), SIGN[named["intervention"]]),
        "incoherent": nonsense["value"].iloc[0] if len(nonsense) else math.nan,
        "n": one["n"],
        "norm": one["norm"],
        "cosine": one["cosine"],
    }


def rank_p(change: float, random: Collection[float], sign: int) -> float:
    """(1 + random changes that are at least as large) / (1 + random changes)."""
    # Shares of the same prompts that are equal may differ in their last bit.
    as_large = sum(sign * one >= sign * change - 1e-9 for one in random)
    return float((1 + as_large) / (1 + len(random)))


def strongest(table: pd.DataFrame) -> pd.DataFrame:
    """Of `summary`, the strength of the largest change each; `p` allows for the choice of it.

    The random directions are given the same choice: each counts with its own largest change.
    """
    lines = summary(table)
    lines["size"] = lines["change"] * lines["intervention"].map(SIGN)
    best = lines.sort_values("size", ascending=False, kind="stable").drop_duplicates(KEY[:-1])
    best = best.sort_index()
    return best.assign(p=[_p_of_choice(table, row) for _, row in best.iterrows()])


def _p_of_choice(table: pd.DataFrame, line: pd.Series) -> float:
    same = (table[KEY[:-1]] == line[KEY[:-1]]).all(axis=1)
    random = table[same & (table["direction"] == "random") & (table["metric"] == "refusal")]
    sign = SIGN[line["intervention"]]
    largest = (sign * random["change"]).groupby(random["draw"]).max()
    return rank_p(sign * line["change"], largest.tolist(), 1)


def verdicts(table: pd.DataFrame) -> list[str]:
    """What was found, for each model and direction: in full at one layer, in short at several."""
    lines = strongest(table)
    said = []
    for (model, target), rows in lines.groupby(["model", "target"], sort=False):
        layers = rows["layer"].unique()
        if len(layers) == 1:
            what = " ".join(_said(row) for _, row in rows.iterrows())
            said.append(f"{model}, layer {layers[0]}, {CALLED[str(target)]}: {what}")
        else:
            said.append(f"{model}, {CALLED[str(target)]}: {_by_layer(rows)}")
    if most := lines.groupby("model")["layer"].nunique().max() - 1:
        said.append(
            f"{most + 1} layers were tried, and no p-value allows for that: a single layer that "
            "stands out may do so by chance."
        )
    return said


def _by_layer(rows: pd.DataFrame) -> str:
    """For each intervention the layers that come to the same verdict, those of an effect first.

    Shares are named where they change by 5 points or more.
    """
    parts = []
    for intervention, tried in rows.groupby("intervention", sort=False):
        layers: dict[str, list[str]] = {}
        for _, row in tried.iterrows():
            shown = f" ({row['before']:.0%} → {row['after']:.0%}, p = {row['p']:.3f})"
            moved = abs(row["change"]) >= LEVEL
            layers.setdefault(_judged(row), []).append(f"{row['layer']}{shown if moved else ''}")
        found = sorted(layers.items(), key=lambda one: one[0].startswith(NOTHING))
        what = "; ".join(f"at layer {', '.join(where)}: {verdict}" for verdict, where in found)
        parts.append(f"{'Removed' if intervention == 'ablate' else 'Added'}, {what}.")
    return " ".join(parts)


def _said(row: pd.Series) -> str:
    removing = row["intervention"] == "ablate"
    how = "Removed" if removing else f"Added ({row['strength']:g} SD)"
    return (
        f"{how}: refusal of {'harmful' if removing else 'harmless'} prompts goes from "
        f"{row['before']:.0%} to {row['after']:.0%} (change {_signed(row['change'])} "
        f"[{_signed(row['lo'])}, {_signed(row['hi'])}] points; random directions "
        f"{_signed(row['random_lo'])} to {_signed(row['random_hi'])}; p = {row['p']:.3f}): "
        f"{_judged(row)}."
    )


def _judged(row: pd.Series) -> str:
    """An effect is one where the paired interval and the rank among random directions agree."""
    removing = row["intervention"] == "ablate"
    if (row["before"] if removing else 1 - row["before"]) < ROOM:
        return f"{NOTHING} could be had, for the unchanged model refuses {row['before']:.0%}"
    away = -row["hi"] if removing else row["lo"]
    least = 1 / (1 + row["draws"])
    if not away > 0 or row["p"] > max(LEVEL, least + 1e-9):
        return f"{NOTHING} that the model {'uses' if removing else 'acts on'} it"
    if row["p"] > LEVEL:
        return f"more than by any random direction, but {row['draws']} are too few to tell"
    if row["incoherent"] >= NONSENSE:
        return (
            f"more than by random directions, but {row['incoherent']:.0%} of the answers say "
            "nothing: the model may be broken rather than steered"
        )
    return "the model uses it to refuse" if removing else "it makes the model refuse"


def _signed(share: float) -> str:
    return f"{100 * share:+.0f}"


def render(table: pd.DataFrame) -> Group:
    """For the terminal: a table a model, a line a layer, direction, intervention and strength."""
    tables = []
    for model, rows in summary(table).groupby("model", sort=False):
        title = f"{model}: refusal while a direction is changed (%)"
        shown = Table(title=title, title_justify="left")
        for name in ("layer", "direction", "change made"):
            shown.add_column(name)
        for name in ("refusal", "change [95 %]", "random ones", "p", "nonsense"):
            shown.add_column(name, justify="right")
        for _, row in rows.iterrows():
            shown.add_row(*_cells(row))
        tables.append(shown)
    return Group(*tables)


def _cells(row: pd.Series) -> Iterator[str]:
    yield str(row["layer"])
    yield row["target"]
    yield "removed" if row["intervention"] == "ablate" else f"added {row['strength']:g} SD"
    yield f"{100 * row['before']:.0f} → {100 * row['after']:.0f}"
    yield f"{_signed(row['change'])} [{_signed(row['lo'])}, {_signed(row['hi'])}]"
    yield f"{_signed(row['random_lo'])} to {_signed(row['random_hi'])}"
    yield f"{row['p']:.3f}"
    yield "–" if math.isnan(row["incoherent"]) else f"{100 * row['incoherent']:.0f}"
