"""The same risk for every example: adaptive KL becomes constant KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import InputError
from regularize.critics import Critic, Risks

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.data import Example


@dataclass(frozen=True)
class ConstantCritic(Critic):
    """Knows nothing."""

    risk: float = 0.5
    """s of every example, from 0 to 1."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:  # noqa: ARG002
        """The constant."""
        import numpy as np

        if not 0 <= self.risk <= 1:
            raise InputError(f"--critic.risk {self.risk}: a risk lies between 0 and 1")
        return Risks(np.full(len(examples), self.risk, dtype=np.float64), None)
