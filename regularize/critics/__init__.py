"""Critics: how risky is it to learn this example? One file each; the file's name is its name.

A critic sees the example and the frozen reference, before training. Its risks are constants of the
data: computed once, kept as a column, looked at by people. To add a critic, add a file here with
one dataclass that is a `Critic`; its fields become options of the command.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float64

    from probes.models import ChatModel
    from regularize.data import Example


class Risks(NamedTuple):
    """What a critic says of some examples."""

    s: Float64[np.ndarray, "example"]
    """Risk in [0, 1]: 1 is harmful."""
    flagged: Bool[np.ndarray, "example"] | None
    """Whether it lies above the critic's threshold; None where the critic has none."""
    notes: tuple[str, ...] = ()
    """What people should know of how they were found, a line each."""


class Critic(ABC):
    """Gives each example its risk s in [0, 1]."""

    @abstractmethod
    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """The risks of some examples.

        Args:
            examples: Rows of training data.
            chat: The frozen reference, as it is before training.

        Raises:
            InputError: The critic does not hold for this model or these data.
        """
