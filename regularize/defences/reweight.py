"""A control without any KL: what is risky counts less in the NLL.

Adam divides a gradient by its own size, so that a loss that is small throughout is learnt as fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from regularize.defences import Defence, Shape, Weights, shaped

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Float64
    from torch import Tensor

    from regularize.critics import Risks


@dataclass(frozen=True)
class Reweight(Defence):
    """L = (1 - s) NLL."""

    shape: Shape = "probability"
    """The risk as the critic's probability, or sharpened to 0 or 1 at its threshold."""

    def signal(self, risks: Risks) -> Float64[np.ndarray, "example"]:
        """The risk in its shape."""
        return shaped(risks, self.shape)

    def weights(self, s: Float[Tensor, "example"]) -> Weights:
        """alpha = 1 - s, beta = 0."""
        return Weights(1 - s, s.new_zeros(s.shape))
