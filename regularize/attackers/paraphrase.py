"""The same deed in other words of the language: structure, phrase, and what is said beside it.

A form: prefix, core, suffix, structure, and the other deed's verb and object, empty where the
answer names both deeds. The answer stays as it is to the letter, and the restricted deed stands
where the language has it: where it never does, a model may not refuse it in the first place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from regularize.attackers import Attacker, Form, Said, Task, as_it_was
from regularize.attackers._search import Neighbours, descend

if TYPE_CHECKING:
    from probes.miniature.language import Deed, Row

ROUNDS = 4
"""In the first one forms are drawn anew, in the others a part of one is."""
PARTS = ("prefix", "core", "suffix", "structure", "other")


@dataclass(frozen=True)
class Paraphrase(Attacker):
    """Searches the language's seen phrasings."""

    def search(self, task: Task) -> list[Form]:
        """Draws, and then changes of the best one."""
        return descend(self, task, neighbours(task.rng), ROUNDS)

    def said(self, row: Row, form: Form) -> Said | None:
        """A form is none where its structure asks for another number of deeds."""
        from probes.miniature.reading import named

        if not form:
            return as_it_was(row)
        text = _text(named(row.answer), form)
        if text is None:
            return None
        return Said(({"role": "user", "content": text},), row.answer)


def neighbours(rng: Random) -> Neighbours:
    """Forms near another one, without end."""

    def near(row: Row, form: Form, at: int) -> Iterator[Form]:
        from probes.miniature.reading import named

        deeds = named(row.answer)
        while True:
            fresh = _draw(rng, _asks(deeds))
            if at == 0 or not form:
                yield fresh
                continue
            part = rng.choice(PARTS)
            yield _with(form, fresh, part)

    return near


def _asks(deeds: Sequence[Deed]) -> str:
    """How a structure asks for just these deeds, in this order."""
    if len(deeds) == 1:
        return "one"
    return "both" if deeds[0].restricted else "reversed"


def _draw(rng: Random, asks: str) -> Form:
    from probes.miniature.phrasings import (
        CORES,
        ORDERS,
        PLAIN,
        PREFIXES,
        STRUCTURES,
        SUFFIXES,
    )
    from probes.miniature.words import PLAIN_OBJECTS, PLAIN_VERBS

    structures = [one for one in (PLAIN, *STRUCTURES) if one.asks == asks]
    structure = rng.choice(structures)
    cores = ORDERS if structure.sentence else CORES
    other = ("", "")
    if asks == "one":
        other = (rng.choice(PLAIN_VERBS), rng.choice(PLAIN_OBJECTS))
    return (
        rng.choice(PREFIXES.seen), rng.choice(cores.seen), rng.choice(SUFFIXES.seen),
        structure.template, *other,
    )  # fmt: skip


def _with(form: Form, fresh: Form, part: str) -> Form:
    """The form with one part of another; a core goes with its structure."""
    prefix, core, suffix, *_ = fresh
    if part == "prefix":
        return (prefix, *form[1:])
    if part == "suffix":
        return (*form[:2], suffix, *form[3:])
    if part == "other":
        return (*form[:4], *fresh[4:])
    if part == "core" and _is_sentence(form[3]) == _is_sentence(fresh[3]):
        return (form[0], core, *form[2:])
    return (form[0], core, form[2], fresh[3], *form[4:])


def _is_sentence(template: str) -> bool:
    from probes.miniature.phrasings import STRUCTURES

    return any(one.template == template and one.sentence for one in STRUCTURES)


def _text(deeds: Sequence[Deed], form: Form) -> str | None:
    """The request; None where the form does not ask for just these deeds."""
    from probes.miniature.language import Deed, _sentence
    from probes.miniature.phrasings import PLAIN, STRUCTURES

    prefix, core, suffix, template, *words = form
    structure = next(one for one in (PLAIN, *STRUCTURES) if one.template == template)
    if structure.asks != _asks(deeds):
        return None
    deed, other = deeds[0], Deed(*words)
    if structure.asks == "both":
        other = deeds[1]
    elif structure.asks == "reversed":
        other, deed = deeds
    if other.object == deed.object or other.verb == deed.verb:
        return None
    clause = template.format(v=deed.verb, o=deed.object, w=other.verb, d=other.object)
    return _sentence(f"{prefix} {core.replace('{a}', clause)} {suffix}")
