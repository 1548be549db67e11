"""Arms of adaptive KL by their betas: which there are, and which of them nothing dominates."""

from __future__ import annotations

import math
import re
from typing import Literal, NamedTuple

import pandas as pd

from analysis import arms, defences, pareto, results

MORE, LESS = "new_task", "attack_success"
"""What is to be large, and what small."""
Kind = Literal["fixed", "automatic", "reference"]
NAME = re.compile(
    r"(?P<shape>adaptive-kl|anchored)(?:-(?P<low>[\d.]+)-(?P<high>[\d.]+)|-auto-(?P<budget>[\d.]+))?"
)
OWN = {"adaptive-kl": (0.1, 0.9), "anchored": (0.02, 1.0)}
"""Betas of the arms whose names do not say them: the paper's, and those of the anchors."""
PAPER = "adaptive-kl"


class Setting(NamedTuple):
    """What an arm's name says of its betas."""

    kind: Kind
    """automatic: they follow from a budget; reference: it has none (SFT, the untrained model)."""
    sharpened: bool
    low: float
    """beta_min; NaN where it is not fixed."""
    high: float
    """beta_max."""
    budget: float
    """Mean KL on safe prompts (nats per answer token); NaN where beta is fixed."""

    @property
    def label(self) -> str:
        """Such as `0.1-0.9` or `budget 0.1`."""
        return (
            f"budget {self.budget:g}" if self.kind == "automatic" else f"{self.low:g}-{self.high:g}"
        )


def setting(defence: str) -> Setting | None:
    """What an arm's name says; None of an arm that is none of adaptive KL's by its betas alone."""
    if defence in ("none", arms.BEFORE):
        return Setting("reference", False, math.nan, math.nan, math.nan)
    if (found := NAME.fullmatch(defence)) is None:
        return None
    sharpened = found["shape"] == "anchored"
    if found["budget"]:
        return Setting("automatic", sharpened, math.nan, math.nan, float(found["budget"]))
    low, high = OWN[found["shape"]]
    if found["low"]:
        low, high = float(found["low"]), float(found["high"])
    return Setting("fixed", sharpened, low, high, math.nan)


def compared(evaluations: pd.DataFrame) -> pd.DataFrame:
    """The lines of `defences.defence_table` of arms by their betas, by the critic `probe`.

    Beside its columns: kind, sharpened, low, high, budget, label, and `front`, whether no other of
    them on the same model, in the same setting, dominates it by the means over seeds.

    Raises:
        NothingToDraw: there are not two fixed betas of one shape to choose between.
    """
    lines = defences.measured(evaluations, MORE, LESS)
    known = [setting(str(name)) for name in lines["defence"]]
    own = [one is not None for one in known]
    lines, known = lines[own].reset_index(drop=True), [one for one in known if one]
    lines = lines.assign(
        **{name: [getattr(one, name) for one in known] for name in (*Setting._fields, "label")}
    )
    chosen = lines["kind"].eq("reference") | lines["critic"].eq("probe")
    parts = []
    for _, of_model in lines[chosen].groupby("model", sort=False):
        trained = of_model["defence"] != arms.BEFORE
        if not trained.any():
            continue
        of_cell = arms.common_cell(of_model[trained])
        ours = of_cell["kind"] != "reference"
        if of_cell[of_cell["kind"] == "fixed"].groupby("sharpened").size().max() < 3:
            continue
        on = pd.Series(False, index=of_cell.index)
        on[ours] = pareto.front(of_cell.loc[ours, MORE], of_cell.loc[ours, LESS])
        parts.append(pd.concat([of_model[~trained], of_cell.assign(front=on)]))
    if not parts:
        raise results.NothingToDraw("column defence: no grid over betas, such as adaptive-kl-0.1-1")
    table = pd.concat(parts, ignore_index=True)
    return table.assign(front=table["front"].fillna(False).astype(bool))
