"""A negative control: the probe's risks, dealt out to the examples at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regularize.critics import Risks
from regularize.critics.probe import ProbeCritic

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.data import Example


@dataclass(frozen=True)
class ShuffledCritic(ProbeCritic):
    """The same risks as the probe's, but not for the examples that they belong to."""

    seed: int = 0
    """Of the permutation."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """The probe's risks, permuted."""
        import numpy as np

        risks = super().assess(examples, chat)
        order = np.random.default_rng(self.seed).permutation(len(examples))
        return Risks(risks.s[order], None if risks.flagged is None else risks.flagged[order])
