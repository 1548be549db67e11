"""Constant KL: every example is held to the reference alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from regularize.defences import Defence, Direction, Weights, share

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class ConstantKL(Defence):
    """L = (1 - beta) NLL + beta KL."""

    beta: float = 0.5
    """Weight of the KL, from 0 to 1."""
    direction: Direction = "forward"
    """forward: KL(pi_ref || pi_theta); reverse: KL(pi_theta || pi_ref)."""

    needs_risk = False
    needs_reference = True

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        share("beta", self.beta)

    def weights(self, s: Float[Tensor, "example"]) -> Weights:
        """beta is the same for all."""
        beta = s.new_full(s.shape, self.beta)
        return Weights(1 - beta, beta)
