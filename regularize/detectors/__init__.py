"""Detectors: was an answer a refusal, help, or neither? One file each; its name is its name.

A detector is written `name[:where][?option=value&...]`, as in `classifier:org/name?harmful=unsafe`.
No two detectors agree on everything: evaluate with several, and never with the critic that weighed
the training data, for a model that was trained against a judge has learnt to please it. To add one,
add a file here with one `Detector`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from probes.errors import InputError
from probes.refusals import coherent
from regularize import plugins
from regularize.specs import Spec

if TYPE_CHECKING:
    from probes.models import ChatModel
    from regularize.outcomes import Outcome


@dataclass(frozen=True)
class Detector(ABC):
    """Gives each answer its outcome."""

    name: str
    """As it was asked for."""

    @classmethod
    @abstractmethod
    def of(cls, spec: Spec) -> Self:
        """The detector that a person asked for, with its model loaded.

        Raises:
            InputError: An option is unknown, or what it names cannot be used.
        """

    @property
    @abstractmethod
    def tells(self) -> tuple[Outcome, ...]:
        """The outcomes that it can tell apart, `incoherent` among them."""

    @abstractmethod
    def read(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome | None]:
        """Outcomes of coherent answers; None where it cannot say."""

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Outcome | None]:
        """The outcome of each answer. What says nothing is incoherent, never safe.

        Args:
            prompts: What the user said.
            answers: What the model answered, one for each prompt.

        Returns:
            Outcomes in order; None where the detector cannot say.

        Raises:
            InputError: Too many answers cannot be judged to trust the rest.
        """
        chosen = [i for i, answer in enumerate(answers) if coherent(answer)]
        outcomes: list[Outcome | None] = ["incoherent"] * len(answers)
        read = self.read([prompts[i] for i in chosen], [answers[i] for i in chosen])
        for i, outcome in zip(chosen, read, strict=True):
            outcomes[i] = outcome
        return outcomes

    @property
    def chat(self) -> ChatModel | None:
        """The chat model that judges, if one does: it must not be the one that is judged."""
        return None


def open(spec: str) -> Detector:
    """A detector by what a person wrote.

    Raises:
        InputError: There is no such detector, or it cannot be used as asked for.
    """
    named = Spec.parse(spec)
    known = plugins.found(sys.modules[__name__], Detector)  # type: ignore[type-abstract]
    if named.name not in known:
        raise InputError(f"--detector {spec}: there is none of that name, only {', '.join(known)}")
    return known[named.name].of(named)
