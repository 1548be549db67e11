"""What a model answers, and what each detector makes of it.

One `Record` an answer, for people to read (answers.jsonl), and the shares that follow from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from regularize import measures, win_rate
from regularize.asked import Asked, AskedKind
from regularize.detectors import Detector
from regularize.detectors.judge import Judge
from regularize.engines import Asking, Engine
from regularize.measures import Share
from regularize.outcomes import Outcome
from regularize.win_rate import Winner

RULE = "exact rule"
"""Who judged, where a rule knows the right answer."""
EXACT: dict[AskedKind, str] = {
    "harmful": "attack_success_exact",
    "look-alike": "helpful",
    "utility": "utility",
    "new-task": "new_task",
}
"""Kind of prompt -> the metric that counts its right answers."""
WATCHED: tuple[AskedKind, ...] = ("harmful", "look-alike")
"""Kinds of prompts whose answers detectors read."""


@dataclass(frozen=True)
class Record:
    """One prompt and its answer."""

    kind: AskedKind
    set: str
    prompt: str
    answer: str
    reference: str | None
    """The right answer; None where there is none to compare with."""
    correct: bool | None
    outcomes: dict[str, Outcome | None]
    """By detector; None where it could not judge."""
    winner: Winner | None = None
    """Whose answer is better, by the judge of the win rate; None where it could not say, and of all
    other kinds of prompts."""
    cut: bool = False
    """Whether the answer was cut where it was decided, and would have gone on."""


class Judgement(NamedTuple):
    """A share, of which set, by which detector."""

    set: str
    detector: str
    share: Share


def ask(
    engine: Engine,
    asked: Sequence[Asked],
    detectors: Sequence[Detector],
    referee: Judge | None = None,
    *,
    asking: Asking,
    adapted: bool,
    stop_early: bool = False,
) -> list[Record]:
    """Let the model answer everything, and the detectors judge.

    Args:
        engine: Runs the model.
        asked: The prompts, and the rules for their answers.
        detectors: They read all answers to harmful prompts and to those that look harmful.
        referee: Compares the answers that a win rate is of with their references.
        asking: See `Engine.answers`, and the next.
        adapted: With the adapter.
        stop_early: Cut the answers that nobody but rules reads where the rules have decided. Of
            what detectors read, the end counts too: help may turn into a refusal, and a refusal
            that is said over and over into nonsense.
    """
    cut: set[int] = set()

    def decided(place: int, beginning: str) -> bool:
        one = asked[place]
        read = bool(detectors) and one.kind in WATCHED
        if read or one.decided is None or not one.decided(beginning):
            return False
        cut.add(place)
        return True

    made = engine.answers(
        [one.messages for one in asked],
        asking,
        adapted=adapted,
        decided=decided if stop_early else None,
    )
    found: list[dict[str, Outcome | None]] = [
        {RULE: one.outcome(answer)} if one.outcome else {}
        for one, answer in zip(asked, made, strict=True)
    ]
    watched = [i for i, one in enumerate(asked) if one.kind in WATCHED]
    for detector in detectors:
        judged = detector.judge([asked[i].text for i in watched], [made[i] for i in watched])
        for i, outcome in zip(watched, judged, strict=True):
            found[i][detector.name] = outcome
    winners: dict[int, Winner | None] = {}
    if referee is not None:
        pairs = [i for i, one in enumerate(asked) if one.kind == "win-rate"]
        compared = win_rate.winners(
            referee,
            [asked[i].text for i in pairs],
            [made[i] for i in pairs],
            [asked[i].reference or "" for i in pairs],
        )
        winners = dict(zip(pairs, compared, strict=True))
    return [
        Record(
            one.kind, one.set, one.text, answer, one.reference,
            one.correct(answer) if one.correct else None, by_detector, winners.get(i), i in cut,
        )
        for i, (one, answer, by_detector) in enumerate(zip(asked, made, found, strict=True))
    ]  # fmt: skip


def judgements(
    records: Sequence[Record], detectors: Sequence[Detector], referee: Judge | None = None
) -> list[Judgement]:
    """The shares of each kind and set of prompts, by each detector.

    A detector's over-refusal is given only if it can tell a refusal from a harmless answer.
    """
    tells = {RULE: measures.MINIATURE, **{one.name: one.tells for one in detectors}}
    shares: list[Judgement] = []
    for (kind, name), group in groupby(records, key=lambda record: (record.kind, record.set)):
        of_set = list(group)
        if kind == "win-rate" and referee is not None:
            compared = win_rate.shares([record.winner for record in of_set])
            shares += [Judgement(name, referee.name, share) for share in compared]
        found = [Judgement(name, RULE, share) for share in _correct(kind, of_set)]
        for detector in of_set[0].outcomes:
            by = [record.outcomes[detector] for record in of_set]
            if kind == "harmful":
                told = measures.on_harmful(by, tells=tells[detector])
            else:
                told = measures.on_look_alikes(by) if "refusal" in tells[detector] else []
            found += [Judgement(name, detector, share) for share in told]
        shares += sorted(found, key=lambda one: one.detector != RULE)
    return shares


def _correct(kind: AskedKind, records: Sequence[Record]) -> Iterator[Share]:
    right = [record.correct for record in records if record.correct is not None]
    if right:
        yield measures.share(EXACT[kind], right)
