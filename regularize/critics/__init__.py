"""Critics: how risky is it to learn this example? One file each; the file's name is its name.

A critic sees the example and the frozen reference, before training. Its risks are constants of the
data: computed once, kept as a column, looked at by people. One that also looks at the model in
training says so (`Critic.live`), and its risks change on the way. To add a critic, add a file here
with one dataclass that is a `Critic`; its fields become options of the command.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

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
    failed: Bool[np.ndarray, "example"] | None = None
    """Where the critic could not tell and s is 1 out of caution; None where it could everywhere."""
    tally: Mapping[str, float] | None = None
    """Counts of what it took, for people."""
    notes: tuple[str, ...] = ()
    """What people should know of how they were found, a line each."""


class Live(NamedTuple):
    """How a critic goes on while the model is trained."""

    every: int
    """Optimizer steps between two looks; the first comes after so many."""
    assess: Callable[[ChatModel], Risks]
    """The risks of the same examples, with the model in training as it is now."""


class Critic(ABC):
    """Gives each example its risk s in [0, 1]."""

    incidental: ClassVar[tuple[str, ...]] = ()
    """Options that say how risks are got, not which: a run may go on with others."""

    def check(self) -> None:  # noqa: B027
        """Raise InputError for options that mean nothing."""

    @property
    def sources(self) -> Mapping[str, str]:
        """What its risks come from that its options do not tell: names and hashes."""
        return {}

    @abstractmethod
    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        """The risks of some examples.

        Args:
            examples: Rows of training data.
            chat: The frozen reference, as it is before training.

        Raises:
            InputError: The critic does not hold for this model or these data.
        """

    def live(self, examples: Sequence[Example], first: Risks) -> Live | None:  # noqa: ARG002
        """How it goes on in training; None where its risks are constants, as they mostly are.

        In between, and for a defence that shapes them, the last risks hold. They come back with a
        checkpoint. Of several processes one looks, and tells the others.

        Args:
            examples: The rows of training data that were assessed.
            first: What `assess` has said of them.
        """
        return None
