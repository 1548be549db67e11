"""Single prompts: where the probe is surest and wrong, and what is in two sets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from analysis.report.cases import Case, Tables, only
from analysis.report.grids import Grid, Line, absent
from analysis.report.wording import digits, round_percent, several

MOST = 10
"""Prompts of one kind."""
PAIRS = 5
"""Pairs of one kind and one pair of sets."""
LONGEST = 4000
"""Characters of a text."""


class Example(NamedTuple):
    """One prompt, or a pair: what is shown at once, and the texts behind a click."""

    ids: tuple[str, ...]
    said: str
    texts: tuple[str, ...]
    """Empty where the prompts were not saved."""


class Kind(NamedTuple):
    """False alarms, or misses."""

    title: str
    examples: tuple[Example, ...]


class Wrong(NamedTuple):
    """The surest mistakes of one probe at its frozen threshold."""

    title: str
    missing: str
    kinds: tuple[Kind, ...]


class Leaks(NamedTuple):
    """The leak report."""

    missing: str
    counts: Grid | None
    pairs: tuple[Example, ...]


def wrong(case: Case, tables: Tables) -> Wrong:
    """False alarms and misses, the surest first; equals in the order of the table."""
    title = f"{case.model}, {case.probe}, trained on {case.train_set}"
    for name in ("risks", "operating"):
        if name not in tables:
            return Wrong(title, absent(name, "which prompts the threshold gets wrong"), ())
    threshold = next((row.threshold for row in case.operating or ()), float("nan"))
    if not np.isfinite(threshold):
        return Wrong(title, "Not computed: this probe has no frozen threshold.", ())
    risks = only(tables["risks"], model=case.model, train_set=case.train_set,
                 readout=case.readout, layer=case.layer)  # fmt: skip
    with np.errstate(divide="ignore"):
        logit = np.log(risks["risk"]) - np.log1p(-risks["risk"])
    flagged, harmful = logit > threshold, risks["label"] == 1
    texts = _texts(tables)
    at = f"at the threshold for {round_percent(case.fpr or 0)}, log-odds {digits(threshold, 2)}"

    def surest(mistakes: pd.DataFrame, one: str, many: str, *, ascending: bool) -> Kind:
        first = mistakes.sort_values("risk", ascending=ascending, kind="stable").head(MOST)
        shown = "" if len(mistakes) <= MOST else f", the surest {MOST}"
        examples = tuple(
            _example(texts, (row["eval_set"], row["id"]), f"risk {_risk(row['risk'])}")
            for row in first.to_dict("records")
        )
        return Kind(f"{several(len(mistakes), one, many)} {at}{shown}", examples)

    return Wrong(title, "", (
        surest(risks[flagged & ~harmful], "false alarm", "false alarms", ascending=False),
        surest(risks[~flagged & harmful], "miss", "misses", ascending=True),
    ))  # fmt: skip


def leaks(tables: Tables, *, searched: bool) -> Leaks:
    """Pairs by kind and sets, and some of each."""
    if "leaks" not in tables:
        what = (
            "No pair of equal or nearly equal prompts was found."
            if searched
            else absent("leaks", "which prompts are in two sets, or twice in one")
        )
        return Leaks(what, None, ())
    texts = _texts(tables)
    lines, examples = [], []
    for (kind, train, other), pairs in tables["leaks"].groupby(
        ["kind", "train_set", "eval_set"], sort=False
    ):
        dropped = pairs[pairs["dropped"]]
        lines.append(Line((
            str(kind), str(train), str(other) if other != train else "itself", f"{len(pairs)}",
            f"{(~pairs['same_label']).sum()}", f"{pairs['same_group'].sum()}", f"{len(dropped)}",
            f"{dropped['eval_id'].nunique()}",
        )))  # fmt: skip
        for row in pairs.nlargest(PAIRS, "similarity", keep="first").to_dict("records"):
            said = (
                f"{kind}, similarity {digits(row['similarity'], 2)}"
                f"{'' if row['same_label'] else ', labelled otherwise'}"
                f"{', dropped' if row['dropped'] else ', kept'}"
            )
            one = _example(texts, (train, row["train_id"]), said)
            two = _example(texts, (other, row["eval_id"]), "")
            examples.append(Example((*one.ids, *two.ids), said, (*one.texts, *two.texts)))
    return Leaks("", Grid(
        "Pairs of prompts that are the same, or nearly",
        ("kind", "train set", "and", "pairs", "other label", "same group", "dropped",
         "prompts dropped"),
        tuple(lines),
        "exact: the same text; normalised: the same letters and digits; near: many shared "
        "n-grams. A dropped prompt is not scored.", texts=3,
    ), tuple(examples))  # fmt: skip


def _texts(tables: Tables) -> dict[tuple[str, str], str]:
    """Set and id -> text."""
    if "prompts" not in tables:
        return {}
    table = tables["prompts"]
    keys = zip(table["prompt_set"], table["id"], strict=True)
    return dict(zip(keys, table["text"], strict=True))


def _example(texts: dict[tuple[str, str], str], key: tuple[object, object], said: str) -> Example:
    name, identity = str(key[0]), str(key[1])
    found = texts.get((name, identity))
    if found is not None and len(found) > LONGEST:
        found = f"{found[:LONGEST]} … ({len(found) - LONGEST} characters more)"
    return Example((f"{identity} of {name}",), said, () if found is None else (found,))


def _risk(risk: float) -> str:
    """Near 0 and 1 with more digits, so that it is not rounded to either."""
    far = min(risk, 1 - risk)
    return digits(risk, 3) if far >= 0.001 else f"{risk:.6f}"
