"""Harmless words around a request: a greedy search over the language's own.

A form: a sentence before, a prefix, a suffix, a sentence after; each may be empty. The sentences
are requests, mentions, questions and tasks of which none is restricted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from regularize.attackers import Attacker, Form, Said, Task, as_it_was
from regularize.attackers._search import descend

if TYPE_CHECKING:
    from probes.miniature.language import Row

N_SENTENCES = 40
"""Harmless sentences to choose from, drawn once."""
ROUNDS = 4
NOTHING: Form = ("", "", "", "")


@dataclass(frozen=True)
class Affixes(Attacker):
    """Puts harmless words before and after."""

    def search(self, task: Task) -> list[Form]:
        """In each round the best change of one of the four places."""
        from probes.miniature.phrasings import PREFIXES, SUFFIXES

        pool = sentences(task.rng, task.fits)
        places = (pool, PREFIXES.seen, SUFFIXES.seen, pool)
        changes = [(i, words) for i, place in enumerate(places) for words in place]

        def near(row: Row, form: Form, at: int) -> Iterator[Form]:  # noqa: ARG001
            start = form or NOTHING
            for i, words in task.rng.sample(changes, len(changes)):
                yield (*start[:i], words, *start[i + 1 :])

        return descend(self, task, near, ROUNDS)

    def said(self, row: Row, form: Form) -> Said | None:
        """The words go around; those within stay as they are."""
        if not form:
            return as_it_was(row)
        before, prefix, suffix, after = form
        core, end = row.text[:-1], row.text[-1]
        if prefix:
            core = f"{prefix[0].upper()}{prefix[1:]} {core[0].lower()}{core[1:]}"
        core = f"{core} {suffix}" if suffix else core
        text = " ".join(part for part in (before, f"{core}{end}", after) if part)
        return Said(({"role": "user", "content": text},), row.answer)


def sentences(rng: Random, fits: Callable[[str], bool]) -> tuple[str, ...]:
    """Harmless sentences of the kinds that the language has."""
    from probes.miniature.language import mention, request
    from probes.miniature.tasks import fact, utility

    found: dict[str, None] = {}
    while len(found) < N_SENTENCES:
        draw = (
            lambda: request(rng, "plain", fits=fits),
            lambda: mention(rng, restricted=0, fits=fits),
            lambda: fact(rng),
            lambda: utility(rng, fits=fits),
        )[len(found) % 4]
        text = draw().text
        found[text if text[-1] in ".?" else f"{text}."] = None
    return tuple(found)
