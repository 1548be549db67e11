"""Engines: what runs an evaluated model while it answers. One file each; its name is its name.

Prompts are rendered, cut to length and ended in the same way whatever runs the model: an engine is
given token ids and gives back token ids. To add one, add a file here with one `Engine`.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from probes.errors import InputError
from regularize import plugins

if TYPE_CHECKING:
    from probes.models import ChatModel
    from probes.prompts import Message
    from regularize.generation import Decided


@dataclass(frozen=True)
class Loading:
    """Which model, and where to."""

    model: str
    """As `probes.models.load` takes it, and the next four."""
    revision: str | None = None
    dtype: str = "auto"
    device_map: str | None = None
    chat_template: str | None = None
    gpus: int = 1
    """Over which a model is split, where an engine does that by itself."""
    memory: float = 0.9
    """Share of each GPU's memory that an engine may take for itself, if it takes it beforehand."""


@dataclass(frozen=True)
class Asking:
    """How to ask: see `generation.answers`."""

    max_new_tokens: int
    batch_tokens: int
    temperature: float = 0.0
    seed: int = 0
    progress: bool = False


@dataclass
class Engine(ABC):
    """A model that answers, with an adapter or without."""

    chat: ChatModel
    """The model without its adapter. An engine that holds the weights elsewhere has its shape."""

    @classmethod
    @abstractmethod
    def load(cls, loading: Loading) -> Self:
        """The model.

        Raises:
            InputError: It is none that the engine can run, or the engine is not installed.
        """

    @abstractmethod
    def adapt(self, adapter: Path, *, allow_other_base: bool = False) -> None:
        """Put an adapter on the model, for answers that ask for it.

        Raises:
            InputError: See `adapters.attach`.
        """

    @abstractmethod
    def answers(
        self,
        prompts: Sequence[Sequence[Message]],
        asking: Asking,
        *,
        adapted: bool,
        decided: Decided | None = None,
    ) -> list[str]:
        """Answers in the order of the prompts, with the adapter or without.

        Raises:
            InputError: An option is out of range or beyond the engine, or the chat template cannot
                render a prompt.
        """


def named(name: str) -> type[Engine]:
    """An engine by what a person wrote.

    Raises:
        InputError: There is none of that name.
    """
    known = plugins.found(sys.modules[__name__], Engine)  # type: ignore[type-abstract]
    if name not in known:
        raise InputError(f"--engine {name}: there is none of that name, only {', '.join(known)}")
    return known[name]
