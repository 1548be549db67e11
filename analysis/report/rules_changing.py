"""Rules on what happens to the model along the probe's direction, and to the probe in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from analysis.evidence_rows import CausalRow, DriftRow
from analysis.report.marks import GOOD, Claim, Word, above_zero, beside, finite, missing, worst
from analysis.report.wording import digits, interval, points, points_interval, several


class Effect(NamedTuple):
    """A change of the residual stream, and what it is expected to do to refusal."""

    name: str
    intervention: Literal["ablate", "add"]
    label: int
    """Of the prompts."""
    sign: int
    """Of the expected change."""
    what: str


EFFECTS = (
    Effect("Removing the direction lessens refusal", "ablate", 1, -1,
           "With the direction projected out"),
    Effect("Adding the direction brings refusal", "add", 0, 1, "With the direction added"),
)  # fmt: skip
KIND = {0: "harmless", 1: "harmful"}


def changes(effect: Effect, rows: Sequence[CausalRow] | None, layer: int) -> Claim:
    """The change of refusal, paired by prompt; mark: none, and what random directions do.

    Args:
        effect: What is asked.
        rows: Of the model and train set.
        layer: Of the frozen probe; where nothing was changed there, the first layer is taken. Of
            several strengths the greatest is, whatever came of it.
    """
    if rows is None:
        return missing(effect.name, "causal", rows)
    found = [
        row for row in rows
        if (row.intervention, row.label, row.metric) == (effect.intervention, effect.label,
                                                         "refusal")
        and (effect.intervention == "ablate" or row.strength > 0)
    ]  # fmt: skip
    at = layer if any(row.layer == layer for row in found) else min(
        (row.layer for row in found), default=layer
    )  # fmt: skip
    found = [row for row in found if row.layer == at]
    if effect.intervention == "add" and found:
        greatest = max(row.strength for row in found)
        found = [row for row in found if row.strength == greatest]
    probes = [row for row in found if row.direction == "probe"
              and finite(row.change, row.change_lo, row.change_hi)]  # fmt: skip
    if not probes:
        return missing(effect.name, "causal", rows, f"{effect.intervention} row with an interval")
    judged = [(_beyond(row, found, effect.sign), row) for row in probes]
    word = worst(one for (one, _), _ in judged)
    # The set that decides; of equals that of the least change in the expected direction.
    (_, why), row = min(judged, key=lambda one: (_RANK[one[0][0]], effect.sign * one[1].change))
    strength = f" at {row.strength:g} standard deviations" if effect.intervention == "add" else ""
    text = (
        f"{effect.what}{strength} after layer {row.layer}, refusal of {KIND[effect.label]} prompts "
        f"changes by {points(row.change)} points "
        f"{points_interval(row.change_lo, row.change_hi)}, to {100 * row.value:.1f} % "
        f"(n = {row.n}, {row.eval_set}). {why}"
    )
    return Claim(effect.name, word, text)


def drifted(rows: Sequence[DriftRow] | None) -> Claim:
    """AUROC of the frozen probe at the end of each run of fine-tuning; mark: `GOOD`."""
    name = "Still reads after fine-tuning"
    if rows is None:
        return missing(name, "drift", rows)
    runs: dict[tuple[object, ...], DriftRow] = {}
    for row in sorted(rows, key=lambda row: row.step):
        # Rates and shares that are not known are no numbers, which are not equal to themselves.
        run = map(str, (row.defence, row.critic, row.attack, row.harmful_share, row.learning_rate))
        runs[(*run, row.seed)] = row
    ends = [row for row in runs.values() if finite(row.auroc, row.auroc_lo, row.auroc_hi)]
    if not ends:
        return missing(name, "drift", rows, "AUROC")
    low = min(ends, key=lambda row: row.auroc)
    starts = [row.auroc for row in rows if row.step == 0 and finite(row.auroc)]
    before = f", against {digits(starts[0])} before" if starts else ""
    return Claim(name, worst(beside(row.auroc_lo, row.auroc_hi, GOOD) for row in ends), (
        f"Lowest at the end of {several(len(ends), 'run')}: {low.defence} on {low.attack}, AUROC "
        f"{digits(low.auroc)} {interval(low.auroc_lo, low.auroc_hi)} after "
        f"{several(low.step, 'step')} (n = {low.n}){before}."
    ))  # fmt: skip


_RANK: dict[Word, int] = {"fails": 0, "weak": 1, "holds": 2, "not computed": 3}


def _beyond(row: CausalRow, rows: Sequence[CausalRow], sign: int) -> tuple[Word, str]:
    """Whether the change is as expected and beyond that of every random direction, and why not."""
    lo, hi = sorted((sign * row.change_lo, sign * row.change_hi))
    word = above_zero(lo, hi)
    if word == "fails":
        return word, "That is the other way round."
    if word == "weak":
        return word, "The interval includes no change: no effect is shown."
    random = [other.change for other in rows if other.direction == "random"
              and other.eval_set == row.eval_set and finite(other.change)]  # fmt: skip
    if not random:
        return "weak", "No random direction was tried, so that any direction might do as much."
    most = max(random, key=lambda change: sign * change)
    said = f"Of {several(len(random), 'random direction')} of the same norm"
    if sign * most >= sign * row.change:
        return "weak", f"{said} one does as much ({points(most)}): it need not be this direction."
    return "holds", f"{said} the nearest to it does {points(most)}."
