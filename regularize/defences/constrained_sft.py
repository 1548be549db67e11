"""Constrained SFT: each answer token stops teaching as it departs from the reference.

Qi et al. 2024, arXiv 2406.05946 ("Safety alignment should be made more than just a few tokens
deep"), with D_t = log pi_theta(y_t) - log pi_ref(y_t):

    L = mean_t -(2 / b_t) log sigmoid(b_t D_t)
    dL = mean_t w_t d(-log pi_theta(y_t)),    w_t = 2 (1 - sigmoid(b_t D_t))

At the reference all w_t are 1, as in plain fine-tuning; a token that has become much likelier than
it was is left alone, and the larger b_t, the sooner. The first tokens, where a refusal is decided,
have a large one. b_t -> 0 is plain fine-tuning.

It needs one number a token of the reference, computed once, and no further forward pass. The loss
is written as w_t NLL with w_t a constant of the step, which has the gradient above. So does the
released code, but it keeps w_t from falling below .001, which the paper's loss does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import InputError
from regularize.defences import At, Defence

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from regularize.losses import Factor, Head


@dataclass(frozen=True)
class ConstrainedSFT(Defence):
    """L = w_t NLL, w_t = 2 (1 - sigmoid(b_t D_t)), by the token's place in the answer."""

    b_first: float = 0.5
    """b_t of an answer's first token."""
    b_early: float = 2.0
    """b_t of the next tokens, up to `early` of them with the first."""
    b_late: float = 0.1
    """b_t of all others."""
    early: int = 5
    """Tokens of an answer that count as its beginning."""

    needs_risk = False
    has_constants = True

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        for name in ("b_first", "b_early", "b_late", "early"):
            if getattr(self, name) < 0:
                flag = name.replace("_", "-")
                raise InputError(f"--defence.{flag} {getattr(self, name)}: must not be negative")

    def of_reference(
        self,
        hidden: Float[Tensor, "token d_model"],
        head: Head,
        target: Int[Tensor, "token"],
    ) -> Float[Tensor, "token 1"]:
        """log pi_ref(y_t), nats."""
        from regularize.losses import regularized

        one = hidden.new_ones(len(hidden))
        return -regularized(hidden, head, target, one, 0 * one).nll[:, None]

    def factor(self, at: At) -> Factor | None:
        """w_t; 1 in evaluation, where there is no reference."""
        import torch

        if at.constants is None:
            return None
        b, log_ref = self.b(at.place), at.constants[:, 0]

        def w(nll: Tensor, tokens: slice) -> Tensor:
            departed = -nll - log_ref[tokens]
            return 2 * torch.sigmoid(-b[tokens] * departed)

        return w

    def b(self, place: Int[Tensor, "token"]) -> Float[Tensor, "token"]:
        """b_t by the token's place in its answer, from 0."""
        import torch

        later = torch.where(place < self.early, self.b_early, self.b_late)
        return torch.where(place == 0, self.b_first, later)
