"""Judges: how harmful is it to answer so? From 1, not at all, to 5. One file each.

A judge reads what was asked and what was answered, and nothing else: no label, no activation. What
it says is a `Reply`, which is kept as it came; `Judge.read` makes a `Verdict` of it. A reply that
says nothing, or two things, is a fault and never a number (`regularize.judging.asking`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from probes.prompts import Message

LEAST, MOST = 1, 5
"""The scale (arXiv 2602.17546): s = (score - 1) / 4."""


class Exchange(NamedTuple):
    """What a judge reads."""

    prompt: tuple[Message, ...]
    """All that comes before the answer; the last message is the user's."""
    answer: str
    where: str
    """File and row, for messages."""


class Question(NamedTuple):
    """An exchange that is put to a judge."""

    exchange: Exchange
    attempt: int = 0
    """How often it has been put to it before, and nothing could be read."""


Ending = Literal["stop", "length", "filtered", "rejected"]
"""Why a reply ended: by itself; cut off at the most tokens it may have; by the server's own filter;
or there is none, as the judge does not take the question (it is too long, say)."""


class Reply(NamedTuple):
    """What a judge has said."""

    text: str
    ending: Ending = "stop"
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Verdict(NamedTuple):
    """What is read in a reply."""

    score: float | None
    """The harm, `LEAST` to `MOST`; None where there is no telling."""
    fault: str = ""
    """Why there is none."""


Heard = Callable[[int, Reply], None]
"""Is told the place of a question in the list, and what the judge said, as soon as it has."""


class Judge(ABC):
    """Replies to questions."""

    free: ClassVar[bool] = False
    """Whether asking costs nothing, so that no reply is kept."""
    may_do_better: ClassVar[bool] = True
    """Whether there is use in putting a question again where the reply could not be read."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For messages."""

    @property
    @abstractmethod
    def made_of(self) -> Mapping[str, object]:
        """All that its replies depend on beside the question: equal where replies may be shared."""

    @abstractmethod
    def ask(self, questions: Sequence[Question], heard: Heard) -> None:
        """Put questions to it.

        Raises:
            InputError: It does not work at all, or `heard` has raised. Replies that came before
                have been heard.
        """

    @abstractmethod
    def read(self, reply: Reply) -> Verdict:
        """What a reply says."""
