"""Rules on what happens to the model along the probe's direction, and to the probe in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from analysis.causal import NONSENSE, ROOM, SIGN, rank_p
from analysis.evidence_rows import CausalRow, DriftRow
from analysis.report.marks import ALPHA, GOOD, Claim, Word, beside, finite, missing, worst
from analysis.report.wording import digits, interval, percent, points, points_interval, several


class Effect(NamedTuple):
    """A change of the residual stream, and what it is expected to do to refusal."""

    name: str
    intervention: Literal["ablate", "add"]
    label: int
    """Of the prompts."""
    what: str

    @property
    def sign(self) -> int:
        """Of the expected change."""
        return SIGN[self.intervention]


EFFECTS = (
    Effect("Removing the direction lessens refusal", "ablate", 1,
           "With the probe's direction projected out"),
    Effect("Adding the direction brings refusal", "add", 0, "With the probe's direction added"),
)  # fmt: skip
KIND = {0: "harmless", 1: "harmful"}


def changes(effect: Effect, rows: Sequence[CausalRow] | None, layer: int) -> Claim:
    """The change of refusal, paired by prompt; mark: none, and what random directions do.

    Of several strengths the one of largest change is spoken of. Its p-value allows for that: each
    random direction counts with its own largest change.

    Args:
        effect: What is asked.
        rows: Of the model and train set.
        layer: Of the frozen probe; where nothing was changed there, the first layer is taken.
    """
    asked = ("probe", effect.intervention, effect.label)
    of_effect = [row for row in rows or () if (row.target, row.intervention, row.label) == asked]
    at = {row.layer for row in of_effect}
    layer = layer if layer in at else min(at, default=layer)
    trials: dict[tuple[str, ...], list[CausalRow]] = {}
    for row in of_effect:
        if row.layer == layer and finite(row.change, row.change_lo, row.change_hi):
            trial = (row.backend, row.eval_set, row.tokens, row.random)
            trials.setdefault(trial, []).append(row)
    found = [one for one in (_tried(effect, trial) for trial in trials.values()) if one]
    if not found:
        return missing(effect.name, "causal", rows, f"{effect.intervention} row with an interval")
    word = worst(one for one, _ in found)
    return Claim(effect.name, word, next(text for one, text in found if one == word))


def _tried(effect: Effect, trial: Sequence[CausalRow]) -> tuple[Word, str] | None:
    """Word and sentence on one set of prompts; None where the direction itself was not changed."""
    refusal = [row for row in trial if row.metric == "refusal"]
    own = [row for row in refusal if row.direction != "random"]
    if not own:
        return None
    row = max(own, key=lambda row: effect.sign * row.change)
    before = row.value - row.change
    if (before if effect.sign < 0 else 1 - before) < ROOM:
        return "weak", (
            f"Unchanged, the model refuses {percent(before)} of {KIND[effect.label]} prompts "
            f"(n = {row.n}, {row.eval_set}): there is nothing that a change could show."
        )
    strength = f" ({row.strength:g} SD)" if effect.intervention == "add" else ""
    text = (
        f"{effect.what}{strength} at layer {row.layer}, refusal of {KIND[effect.label]} prompts "
        f"goes from {percent(before)} to {percent(row.value)}: {points(row.change)} points "
        f"{points_interval(row.change_lo, row.change_hi)} (n = {row.n}, {row.eval_set})."
    )
    lo, hi = sorted((effect.sign * row.change_lo, effect.sign * row.change_hi))
    if hi < 0:
        return "fails", f"{text} That is the other way round."
    if lo <= 0:
        return "weak", f"{text} The interval includes no change: no effect is shown."
    word, why = _beside_random(row, refusal, effect.sign)
    same = (row.direction, row.strength, "incoherent")
    incoherent = [
        other.value for other in trial if (other.direction, other.strength, other.metric) == same
    ]
    if incoherent and incoherent[0] >= NONSENSE:
        word, why = (
            "weak",
            (
                f"{why} But {percent(incoherent[0])} of the answers say nothing: the model may be "
                "broken rather than steered."
            ),
        )
    return word, f"{text} {why}"


def _beside_random(row: CausalRow, rows: Sequence[CausalRow], sign: int) -> tuple[Word, str]:
    """The rank of a change among those of random directions, each with its own largest."""
    largest: dict[int, float] = {}
    for other in rows:
        if other.direction == "random":
            change = sign * other.change
            largest[other.draw] = max(change, largest.get(other.draw, change))
    if not largest:
        return "weak", "No random direction was tried, so that any direction might do as much."
    p = rank_p(sign * row.change, largest.values(), 1)
    text = (
        f"Of {several(len(largest), 'random direction')} of the same length the largest change is "
        f"{points(sign * max(largest.values()))}; p = {digits(p)}."
    )
    if p <= ALPHA:
        return "holds", text
    if p <= 1 / (1 + len(largest)):
        return "weak", f"{text} So few directions cannot give a lower p-value."
    return "weak", f"{text} It need not be this direction."


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
