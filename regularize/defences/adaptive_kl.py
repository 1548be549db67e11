"""Adaptive KL: risky examples are held to the reference policy, the rest is learnt.

arXiv 2602.17546:  beta = beta_min + (beta_max - beta_min) s,  alpha = 1 - beta.

With the risk sharpened to 0 or 1 at the critic's threshold and beta_max = 1, a risky example is an
anchor: nothing of it is learnt, and it holds the model where the reference is on just such prompts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError
from regularize.defences import Defence, Direction, Shape, Weights, shaped, share

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Float64
    from torch import Tensor

    from regularize.critics import Risks


@dataclass(frozen=True)
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

    needs_reference = True

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

    def signal(self, risks: Risks) -> Float64[np.ndarray, "example"]:
        """The risk in its shape."""
        return shaped(risks, self.shape)

    def weights(self, s: Float[Tensor, "example"]) -> Weights:
        """The paper's line."""
        beta = self.beta_min + (self.beta_max - self.beta_min) * s
        return Weights(1 - beta, beta)
