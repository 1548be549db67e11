"""Lisa: steps take turns between safe data and the users', and each turn stays near its start.

Huang, Hu, Ilhan, Tekin, Liu 2024, arXiv 2405.18641 ("Lisa: Lazy safety alignment for large language
models against harmful fine-tuning attack"), with f the NLL of the safe data and h the users':

    alignment state, K1 steps on     f(w) + rho/2 ||w - w_user||^2
    user state, K2 steps on          h(w) + rho/2 ||w - w_align||^2

in turn, the alignment first; w_user and w_align are the weights at which the other state has ended
last. A state goes on from there, so that its anchor is where it began itself, and one copy of the
trained weights is all that is kept. Before there is another state's, it is the start of training,
as in the released code. The norm is over the trained parameters: under LoRA over A and B. Switching
resets neither Adam's moments nor the learning rate. rho = 0 is the paper's bi-state optimization
(BSO); with K1 = 0 too it is plain fine-tuning, on the rows in another order.

The released code leaves the proximal term off in the first tenth of the steps, which the paper's
rule does not: the default here (`free`). Its README prints the two anchors the other way round;
code and paper do not. It passes over the users' batches whose place an alignment step takes, while
here they are put off, so that all rows are learnt equally often; and it counts micro-batches as
steps, where these are optimizer steps.

There are as many steps as without, of which K1 / (K1 + K2) learn nothing of the data. Each costs as
much as before, but for a pass over the trained weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from probes.errors import InputError
from regularize.defences import Defence, Given, Steps, Turn, share

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn

ROUNDS = 15
"""Of K1 + K2 steps, in the training that is proposed where those given do not fit."""


@dataclass(frozen=True)
class Lisa(Defence):
    """L = NLL + rho/2 ||w - anchor||^2, K1 steps on safe data and K2 on the users' in turn."""

    rho: float = 1.0
    """Strength of the proximal term. Plain gradient descent diverges where the learning rate times
    rho is more than 2."""
    k1: int = 100
    """Optimizer steps on safe data before those on the users'; 0 for none."""
    k2: int = 900
    """Optimizer steps on the users' data before the next ones on safe data."""
    free: float = 0.1
    """Share of all steps, at the beginning, without the proximal term."""

    needs_risk = False
    needs = ("safe",)
    learns_safe = True

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        if not 0 <= self.rho < math.inf:
            raise InputError(f"--defence.rho {self.rho}: must be finite and not negative")
        if self.k1 < 0:
            raise InputError(f"--defence.k1 {self.k1}: must not be negative")
        if self.k2 < 1:
            raise InputError(f"--defence.k2 {self.k2}: must be at least 1, or no data are learnt")
        share("free", self.free)

    def steps(self, policy: nn.Module, given: Given) -> Steps:  # noqa: ARG002
        """The turns and the proximal term."""
        return _States(self, policy)


class _States(Steps):
    """The two states of one training, and the anchor of the one it is in."""

    def __init__(self, lisa: Lisa, policy: nn.Module) -> None:
        self._lisa = lisa
        self._trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self._anchor: dict[str, Tensor] = {}
        self._held = False

    def turn(self, step: int) -> Turn:
        """The alignment's K1 steps first."""
        return "safe" if step % (self._lisa.k1 + self._lisa.k2) < self._lisa.k1 else "user"

    def begin(self, step: int, steps: int) -> None:
        """Keep the weights where a state begins.

        Raises:
            InputError: The training is shorter than one round of both states, or it goes on from a
                checkpoint of another defence.
        """
        self._refuse_less_than_a_round(steps)
        if not self._lisa.rho:
            return
        if step == 0 or self.turn(step) != self.turn(step - 1):
            self._anchor = {name: p.detach().clone() for name, p in self._trained.items()}
        if not self._anchor:
            raise InputError("the checkpoint has no anchor of Lisa's: it is of another defence")
        self._held = step > self._lisa.free * steps

    def penalty(self) -> Float[Tensor, ""] | None:
        """rho/2 ||w - anchor||^2, at least in float32."""
        import torch

        if not self._held:
            return None
        squares = [
            (p - self._anchor[name]).square().sum(dtype=torch.promote_types(p.dtype, torch.float32))
            for name, p in self._trained.items()
        ]
        return self._lisa.rho / 2 * torch.stack(squares).sum()

    def state(self) -> dict[str, Tensor]:
        """The anchor."""
        return self._anchor

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on in the state that the checkpoint was written in."""
        self._anchor = state

    def _refuse_less_than_a_round(self, steps: int) -> None:
        k1, k2 = self._lisa.k1, self._lisa.k2
        if not k1 or k1 + k2 <= steps:
            return
        few = max(1, steps * k1 // (ROUNDS * (k1 + k2)))
        many = max(1, min(few * k2 // k1, steps - few))
        raise InputError(
            f"--defence.k1 {k1} and --defence.k2 {k2}: this training has {steps} optimizer steps, "
            f"less than one round of both, and {min(k1, steps)} of them would learn nothing of the "
            f"data; --defence.k1 {few} --defence.k2 {many} makes {steps // (few + many)} rounds"
        )
