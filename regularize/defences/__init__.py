"""Defences: how an example's risk decides what is learnt of it. One file each, named after it.

To add a defence, add a file here with one dataclass that is a `Defence`; its fields become options
of the command. L = alpha NLL + beta KL(pi_ref || pi_theta), so that most are two weights of each
example, and which examples are kept at all. One that looks closer has constants of the reference at
each answer token (`of_reference`), and a `factor` or a whole `loss` of its own.

Beside the loss there are three places to act: `before` training, on the model's weights or to find
something out; at each of its optimizer `steps`; and `after` it, on the trained weights. What a
defence `needs` for that beside the training data (base model, safe or harmful data) comes `Given`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from probes.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Float, Float64, Int
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from probes.models import ChatModel
    from regularize.critics import Risks
    from regularize.data import Example
    from regularize.losses import Factor, Head, Hidden, Moments, Terms

Shape = Literal["probability", "sharpened"]
Direction = Literal["forward", "reverse"]
"""Of the KL: forward KL(pi_ref || pi_theta), reverse KL(pi_theta || pi_ref)."""


class Weights(NamedTuple):
    """Of each example's terms in the loss."""

    alpha: Float[Tensor, "example"]
    """Of the NLL."""
    beta: Float[Tensor, "example"]
    """Of the KL to the reference."""


class At(NamedTuple):
    """The policy at the answer tokens of a batch, example by example."""

    hidden: Float[Tensor, "token d_model"]
    """Last hidden states, after the final norm, where the next token is an answer's."""
    head: Head
    target: Int[Tensor, "token"]
    place: Int[Tensor, "token"]
    """Of the token in its answer, from 0."""
    alpha: Float[Tensor, "token"]
    beta: Float[Tensor, "token"]
    reference: Moments | Hidden | None
    """None where nothing is held to it and nobody measures it."""
    constants: Float[Tensor, "token k"] | None
    """What `Defence.of_reference` has found; None in evaluation, and for a defence without."""


Need = Literal["base", "safe", "harmful"]
Turn = Literal["user", "safe"]
"""Whose rows an optimizer step is made of: those that are not trusted, or the safe data."""


@dataclass(frozen=True)
class Given:
    """What a defence has to work with beside the rows that are not trusted."""

    chat: ChatModel
    """The aligned model, without an adapter."""
    base: PreTrainedModel | None = None
    """The same model before it was aligned."""
    safe: tuple[Example, ...] = ()
    """Requests answered as a safe model does: label 1 harmful and refused, 0 harmless and done."""
    harmful: tuple[Example, ...] = ()
    """Harmful requests complied with; none of them is in the training data."""
    seed: int = 0
    reference: PreTrainedModel | None = None
    """The reference policy, where it is another model than the aligned one."""


class Steps:
    """What a defence does at the optimizer steps; this one does nothing."""

    def turn(self, step: int) -> Turn:  # noqa: ARG002
        """Whose rows a step is made of, from 0 on: by its number alone, for resumed runs."""
        return "user"

    def begin(self, step: int, steps: int) -> None:
        """Before a step's first forward pass: `step` of `steps` in all, from 0 on."""

    def penalty(self) -> Float[Tensor, ""] | None:
        """What is added to the step's loss, once."""
        return None

    def now(self, defence: Defence) -> Defence:
        """The defence as it weighs the step's examples."""
        return defence

    def logged(self) -> dict[str, float]:
        """What is logged of the step beside the loss."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs of the steps so far."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state`."""


class Defence:
    """Turns risks into weights, and weights into a loss."""

    needs_reference: ClassVar[bool] = False
    """Whether beta can be other than zero."""
    has_constants: ClassVar[bool] = False
    """Whether `of_reference` is asked, once, before training."""
    needs_risk: ClassVar[bool] = True
    needs: ClassVar[tuple[Need, ...]] = ()
    """What must be given; refused before anything is loaded."""
    learns_safe: ClassVar[bool] = False
    """Whether the safe data are trained on beside the others, in the steps whose turn it is."""
    changes_start: ClassVar[bool] = False
    """Whether `before` changes the model's weights, so that an adapter alone is not the result."""
    direction: Direction = "forward"
    """Of the KL."""
    granularity: Literal["example", "batch"] = "example"
    """Whose risk s is: each example's, or the mean of its optimizer step."""
    smoothing: float = 0.0
    """lambda of s~_t = lambda s~_(t-1) + (1 - lambda) s_t over optimizer steps; batch only."""

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""

    def signal(self, risks: Risks) -> Float64[np.ndarray, "example"]:
        """s as it enters the weights."""
        return risks.s

    def keeps(self, risks: Risks) -> Bool[np.ndarray, "example"]:
        """Which examples are trained on at all."""
        import numpy as np

        return np.ones(len(risks.s), dtype=bool)

    def weights(self, s: Float[Tensor, "example"]) -> Weights:
        """alpha and beta of each example: 1 and 0, unless a defence says otherwise."""
        return Weights(s.new_ones(s.shape), s.new_zeros(s.shape))

    def of_reference(
        self,
        hidden: Float[Tensor, "token d_model"],
        head: Head,
        target: Int[Tensor, "token"],
    ) -> Float[Tensor, "token k"]:
        """Numbers of the frozen reference at each answer token, from its last hidden states."""
        raise NotImplementedError(f"{type(self).__name__} has no constants of the reference")

    def before(self, given: Given) -> Self:  # noqa: ARG002
        """Act before training: change the aligned model in place, or find something out.

        The risks are read of the model before, the reference policy is the model after it.

        Returns:
            The defence to train with: this one, or one that knows what was found.
        """
        return self

    def steps(self, policy: nn.Module, given: Given) -> Steps:  # noqa: ARG002
        """What it does at the steps of training `policy`, which has its adapter by now."""
        return Steps()

    def after(self, policy: nn.Module, given: Given) -> None:
        """Change the trained model in place."""

    def factor(self, at: At) -> Factor | None:  # noqa: ARG002
        """Of alpha, by a token's NLL; None for 1."""
        return None

    def loss(self, at: At) -> Terms:
        """sum over tokens of alpha NLL + beta KL."""
        from regularize.losses import regularized

        return regularized(
            at.hidden,
            at.head,
            at.target,
            at.alpha,
            at.beta,
            at.reference,
            direction=self.direction,
            factor=self.factor(at),
        )


def check_given(defence: Defence, given: Mapping[Need, object]) -> None:
    """Refuse a defence that lacks what it needs, before anything is loaded.

    Args:
        defence: Any.
        given: What there is; what is empty or None is not there.

    Raises:
        InputError: Something is missing; says what, and the option that gives it.
    """
    for need in defence.needs:
        if not given.get(need):
            raise InputError(f"{type(defence).__name__} needs {_NEEDS[need]}: give --{need}")


_NEEDS: dict[Need, str] = {
    "base": "the model as it was before alignment",
    "safe": "safe data (harmful requests refused, harmless ones answered; label 1 and 0)",
    "harmful": "harmful requests complied with, none of them in the training data",
}


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
