"""Defences: how an example's risk decides what is learnt of it. One file each, named after it.

To add a defence, add a file here with one dataclass that is a `Defence`; its fields become options
of the command. L = alpha NLL + beta KL(pi_ref || pi_theta), so that a defence of this kind is two
weights an example, and which examples are kept at all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from probes.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Float64
    from torch import Tensor

    from regularize.critics import Risks

Shape = Literal["probability", "sharpened"]
Direction = Literal["forward", "reverse"]
"""Of the KL: forward KL(pi_ref || pi_theta), reverse KL(pi_theta || pi_ref)."""


class Weights(NamedTuple):
    """Of each example's terms in the loss."""

    alpha: Float[Tensor, "example"]
    """Of the NLL."""
    beta: Float[Tensor, "example"]
    """Of the KL to the reference."""


class Defence(ABC):
    """Turns risks into weights."""

    needs_reference: ClassVar[bool] = False
    """Whether beta can be other than zero."""
    needs_risk: ClassVar[bool] = True
    direction: Direction = "forward"
    """Of the KL."""
    granularity: Literal["example", "batch"] = "example"
    """Whose risk s is: each example's, or the mean of its optimizer step."""
    smoothing: float = 0.0
    """lambda of s~_t = lambda s~_(t-1) + (1 - lambda) s_t over optimizer steps; batch only."""

    def check(self) -> None:  # noqa: B027
        """Raise InputError for options that mean nothing."""

    def signal(self, risks: Risks) -> Float64[np.ndarray, "example"]:
        """s as it enters the weights."""
        return risks.s

    def keeps(self, risks: Risks) -> Bool[np.ndarray, "example"]:
        """Which examples are trained on at all."""
        import numpy as np

        return np.ones(len(risks.s), dtype=bool)

    @abstractmethod
    def weights(self, s: Float[Tensor, "example"]) -> Weights:
        """alpha and beta of each example."""


def shaped(risks: Risks, shape: Shape) -> Float64[np.ndarray, "example"]:
    """s as the critic's probability, or sharpened to 0 or 1 at its threshold.

    Raises:
        InputError: Sharpened, by a critic without a threshold.
    """
    if shape == "probability":
        return risks.s
    if risks.flagged is None:
        raise InputError(
            "this critic has no threshold to sharpen the risk at: give --critic.threshold, or "
            "--defence.shape probability"
        )
    return risks.flagged.astype("float64")


def share(name: str, value: float) -> None:
    """Refuse an option that is no number from 0 to 1.

    Raises:
        InputError: It is none.
    """
    if not 0 <= value <= 1:
        raise InputError(f"--defence.{name} {value}: must lie between 0 and 1")
