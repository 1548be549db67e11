"""Put exchanges to a judge: nothing twice, and again where nothing could be read.

What cannot be read in the end is a fault, listed with its row. It never becomes a score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

from tqdm import tqdm

from probes.errors import InputError
from regularize.judging import Exchange, Judge, Question, Reply, Verdict
from regularize.judging.cache import Cache, key

HOPELESS = 16
"""Replies, the first of all, of which one must be readable for the others to be asked for."""
SHOWN = 20
"""Faults that a message lists."""
CHARACTERS = 80
"""Of what a judge has said."""


class Fault(NamedTuple):
    """An exchange without a verdict."""

    place: int
    """In the list."""
    where: str
    """File and row."""
    why: str
    said: str
    """The beginning of what the judge has said, on one line."""

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" + (f": {self.said!r}" if self.said else "")


@dataclass(frozen=True)
class Tally:
    """How some verdicts came about."""

    exchanges: int
    """Different ones."""
    calls: int
    """Replies that were asked for now; those to questions that were put again, too."""
    cached: int
    """Replies that were known."""
    failed: int
    """Exchanges without a verdict."""
    prompt_tokens: int
    """Read by the judge, for all these replies, as far as it says."""
    completion_tokens: int
    """Written by it."""


class Judged(NamedTuple):
    """What a judge finds of some exchanges."""

    verdicts: list[Verdict]
    """One an exchange."""
    faults: list[Fault]
    tally: Tally


def judged(
    judge: Judge,
    exchanges: Sequence[Exchange],
    *,
    cache: Cache | None = None,
    attempts: int = 1,
    patient: bool = False,
) -> Judged:
    """The verdicts on some exchanges, each distinct one asked about once.

    Args:
        judge: Any.
        exchanges: What it reads.
        cache: Where its replies are kept, and looked for first.
        attempts: How often a question is put at most where nothing can be read.
        patient: Go on although none of the first replies can be read.

    Raises:
        InputError: The judge does not work, or, unless patient, none of its first replies can be
            read. What it has said by then is kept.
    """
    distinct = {_content(one): _Open(one) for one in reversed(exchanges)}
    with nullcontext() if cache is None else cache.alone(judge):
        rounds = _Rounds(judge, cache, patient)
        open_ = list(distinct.values())[::-1]  # in the order of the list
        for attempt in range(attempts if judge.may_do_better else 1):
            rounds.go(open_, attempt)
            open_ = [one for one in open_ if one.again]
    found = [distinct[_content(one)] for one in exchanges]
    faults = [
        Fault(i, exchange.where, one.verdict.fault, _short(one.reply.text))
        for i, (exchange, one) in enumerate(zip(exchanges, found, strict=True))
        if one.verdict.score is None
    ]
    return Judged([one.verdict for one in found], faults, rounds.tally(distinct.values()))


def listed(faults: Sequence[Fault]) -> str:
    """Faults, one a line."""
    lines = [f"  {fault}" for fault in faults[:SHOWN]]
    more = len(faults) - len(lines)
    return "\n".join(lines + ([f"  ... and {more} more"] if more else []))


class _Open:
    """A distinct exchange, and the last that was said of it."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.reply = Reply("")
        self.verdict = Verdict(None, "not asked")

    @property
    def again(self) -> bool:
        return self.verdict.score is None and self.reply.ending != "rejected"


class _Rounds:
    """Rounds of questions, and what they took."""

    def __init__(self, judge: Judge, cache: Cache | None, patient: bool) -> None:
        self._judge, self._cache, self._patient = judge, cache, patient
        self._heard = self._readable = self._cached = self._prompt = self._completion = 0

    def go(self, exchanges: Sequence[_Open], attempt: int) -> None:
        """Put one question about each, those apart whose reply is known."""
        questions = [Question(one.exchange, attempt) for one in exchanges]
        keys = [key(self._judge, question) for question in questions]
        known = {} if self._cache is None else self._cache.find(keys)
        unknown = []
        for i, one in enumerate(exchanges):
            if keys[i] in known:
                self._cached += 1
                self._note(one, known[keys[i]])
            else:
                unknown.append(i)
        # No bar where nobody watches, nor for judges that take no time.
        quiet = True if self._judge.free or not unknown else None
        with tqdm(total=len(unknown), desc="judge", unit="answer", disable=quiet) as bar:

            def heard(i: int, reply: Reply) -> None:
                place = unknown[i]
                if self._cache is not None and reply.ending != "rejected":
                    self._cache.keep(keys[place], self._judge, questions[place], reply)
                self._heard += 1
                self._note(exchanges[place], reply)
                bar.update()
                if self._heard >= HOPELESS and not self._readable and not self._patient:
                    self._give_up(exchanges)

            if unknown:
                self._judge.ask([questions[i] for i in unknown], heard)

    def tally(self, exchanges: Iterable[_Open]) -> Tally:
        """What all of it took."""
        verdicts = [one.verdict for one in exchanges]
        failed = sum(verdict.score is None for verdict in verdicts)
        return Tally(
            len(verdicts), self._heard, self._cached, failed, self._prompt, self._completion
        )

    def _note(self, one: _Open, reply: Reply) -> None:
        one.reply, one.verdict = reply, self._judge.read(reply)
        self._readable += one.verdict.score is not None
        self._prompt += reply.prompt_tokens
        self._completion += reply.completion_tokens

    def _give_up(self, exchanges: Sequence[_Open]) -> None:
        faults = [
            Fault(i, one.exchange.where, one.verdict.fault, _short(one.reply.text))
            for i, one in enumerate(exchanges)
            if one.reply != Reply("") and one.verdict.score is None
        ]
        raise InputError(
            f"none of the first {self._heard} replies of {self._judge.name} can be read; take a "
            f"better judge, or mend what is wrong:\n{listed(faults)}"
        )


def _content(exchange: Exchange) -> tuple[object, ...]:
    """What is judged: rows that say the same are one question."""
    return *((turn["role"], turn["content"]) for turn in exchange.prompt), exchange.answer


def _short(text: str) -> str:
    return " ".join(text.split())[:CHARACTERS]
