"""Adaptive KL: risky examples are held to the reference policy, the rest is learnt.

arXiv 2602.17546:  beta = beta_min + (beta_max - beta_min) s,  alpha = 1 - beta.

With the risk sharpened to 0 or 1 at the critic's threshold and beta_max = 1, a risky example is an
anchor: nothing of it is learnt, and it holds the model where the reference is on just such prompts.

Both betas are numbers to be chosen, or beta_max follows from a budget: `kl_budget` says how far the
policy may drift from the reference on safe prompts, and beta moves in training to keep it there, by
the rule of `regularize.controller`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError
from regularize.defences import (
    Defence,
    Direction,
    Given,
    Need,
    Shape,
    Steps,
    Weights,
    shaped,
    share,
)

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Float64
    from torch import Tensor, nn

    from regularize.critics import Risks


OF_BUDGET = "kl_"
"""How the options begin that say nothing where there is no budget."""


@dataclass(frozen=True, repr=False)
class AdaptiveKL(Defence):
    """L = alpha NLL + beta KL, with beta by the example's risk."""

    beta_min: float = 0.1
    """Weight of the KL at s = 0."""
    beta_max: float = 0.9
    """Weight of the KL at s = 1."""
    shape: Shape = "probability"
    """The risk as the critic's probability, or sharpened to 0 or 1 at its threshold."""
    granularity: Literal["example", "batch"] = "example"
    """s of each example, or, as in the paper, the mean over the optimizer step's examples."""
    smoothing: float = 0.0
    """lambda of s~_t = lambda s~_(t-1) + (1 - lambda) s_t over optimizer steps, with s~_1 = s_1;
    0 is none. For granularity batch only."""
    direction: Direction = "forward"
    """forward: KL(pi_ref || pi_theta), the paper's; reverse: KL(pi_theta || pi_ref)."""
    kl_budget: float | None = None
    """Mean KL to the reference on the prompts of --safe (nats per answer token, the reference's own
    answers) that beta is moved to keep, starting from the betas above. Default: beta is fixed."""
    kl_every: int = 5
    """Optimizer steps between two looks at it."""
    kl_rate: float = 2.0
    """How fast beta moves: a look changes the odds of beta by a factor of at most exp(.2 rate)."""
    kl_prompts: int = 32
    """At most so many safe prompts, drawn by the seed."""
    kl_moves: Literal["beta-max", "both"] = "beta-max"
    """What moves: beta_max between beta_min and 1, or the odds of both by the same factor."""

    needs_reference = True

    def __repr__(self) -> str:
        """All that counts: without a budget nothing else is said of it."""
        shown = [
            f"{field.name}={getattr(self, field.name)!r}"
            for field in fields(self)
            if self.kl_budget is not None or not field.name.startswith(OF_BUDGET)
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def needs(self) -> tuple[Need, ...]:  # type: ignore[override]
        """Safe prompts to measure the drift on, if it has a budget."""
        return () if self.kl_budget is None else ("safe",)

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        for name in ("beta_min", "beta_max", "smoothing"):
            share(name.replace("_", "-"), getattr(self, name))
        if self.beta_min > self.beta_max:
            raise InputError(
                f"--defence.beta-min {self.beta_min} is larger than --defence.beta-max "
                f"{self.beta_max}: risky examples would be held less than harmless ones"
            )
        if self.smoothing and self.granularity == "example":
            raise InputError(
                f"--defence.smoothing {self.smoothing} smooths the step's risk, so that it needs "
                "--defence.granularity batch"
            )
        if self.smoothing == 1:
            raise InputError("--defence.smoothing 1 would never look at a second step's risk")
        if self.kl_budget is not None and not self.kl_budget >= 0:
            raise InputError(f"--defence.kl-budget {self.kl_budget}: nats, and not negative")
        for name in ("kl_every", "kl_prompts"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--defence.{flag} {getattr(self, name)}: must be at least 1")
        if not 0 < self.kl_rate < math.inf:
            raise InputError(f"--defence.kl-rate {self.kl_rate}: must be finite and more than zero")

    def signal(self, risks: Risks) -> Float64[np.ndarray, "example"]:
        """The risk in its shape."""
        return shaped(risks, self.shape)

    def weights(self, s: Float[Tensor, "example"]) -> Weights:
        """The paper's line."""
        beta = self.beta_min + (self.beta_max - self.beta_min) * s
        return Weights(1 - beta, beta)

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        """Where there is a budget, beta moves."""
        if self.kl_budget is None:
            return Steps()
        from regularize.controller import Controlled

        return Controlled(self, policy, given)
