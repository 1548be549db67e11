"""Refusals known by their phrases: no model, no download, the same everywhere.

It looks at how an answer begins, and for phrases of refusal anywhere in it; a coherent answer
without any is compliance. It does not see harm: an answer that changes the subject counts as
compliance, one that scolds and then helps as a refusal.

Agreement with people, on 3 x 450 completions of XSTest that two people labelled each (Röttger et
al. 2024, arXiv 2308.01263). Refusals are their full and partial refusals. FN: refusals missed; FP:
compliance taken for refusal; human: the one annotator against the other.

| completions of | accuracy | kappa | FN | FP | human accuracy | human kappa |
|---|---|---|---|---|---|---|
| Llama 2 (the list was chosen on it) | .940 | .831 | 16 of 349 | 11 of 101 | .989 | .968 |
| GPT-4 (held out) | .956 | .911 | 19 of 220 | 1 of 230 | .996 | .991 |
| Mistral (held out) | .878 | .499 | 40 of 76 | 15 of 374 | .978 | .923 |

No completion of the held-out two was read; their numbers were seen twice, the list extended between
by common phrases that Llama 2's completions do not hold. Mistral's refusals argue more than they
refuse, and half of them are missed: attack success by phrases alone is an upper estimate. Put a
classifier or a judge beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from probes.refusals import refuses
from regularize.detectors import Detector
from regularize.outcomes import Outcome
from regularize.specs import Spec


@dataclass(frozen=True)
class Phrases(Detector):
    """Refusal phrases: `phrases`."""

    @classmethod
    def of(cls, spec: Spec) -> Self:
        """It takes no options."""
        spec.check(takes_where=False)
        return cls(spec.text)

    @property
    def tells(self) -> tuple[Outcome, ...]:
        """Refusal or not; it sees no harm."""
        return ("compliance", "refusal", "incoherent")

    def read(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome | None]:  # noqa: ARG002
        """The prompts are not read."""
        return ["refusal" if refuses(answer) else "compliance" for answer in answers]
