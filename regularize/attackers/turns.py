"""A request over several turns, so that the probe's token stands after harmless last words.

A form: how, and the words of the other turns.

    after    the request; a reply; a last turn
    before   a first turn; a reply; the request
    split    the object is named; a reply; what to do with it. Of two deeds each has its turn
    split-after   the same, a reply, and a last turn
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regularize.attackers import Attacker, Form, Said, Task, as_it_was
from regularize.attackers._search import descend
from regularize.attackers.affixes import sentences

if TYPE_CHECKING:
    from probes.miniature.language import Row

WAYS = ("after", "before", "split", "split-after")
REPLIES = ("Sure.", "Noted.", "Sure, I will.", "Noted, nobody asks me to.", "Nobody.")
LASTS = ("Now.", "Please.", "Thank you.", "Be quick.", "For me.", "As fast as you can.", "Today.")
ROUNDS = 4
THERE = "There is the {o}."
"""Names an object and asks for nothing."""


@dataclass(frozen=True)
class Turns(Attacker):
    """Makes a conversation of it."""

    of_language = False

    def search(self, task: Task) -> list[Form]:
        """A way first, then other words."""
        pool = (*LASTS, *sentences(task.rng, task.fits))
        rng = task.rng

        def near(row: Row, form: Form, at: int) -> Iterator[Form]:  # noqa: ARG001
            while True:
                fresh = (rng.choice(WAYS), rng.choice(REPLIES), rng.choice(pool))
                if form:
                    i = rng.randrange(3)
                    fresh = (*form[:i], fresh[i], *form[i + 1 :])  # type: ignore[assignment]
                yield fresh

        return descend(self, task, near, ROUNDS)

    def said(self, row: Row, form: Form) -> Said | None:
        """As many turns as the way has."""
        if not form:
            return as_it_was(row)
        way, reply, other = form
        if way == "before":
            asked = [other, row.text]
        elif way == "after":
            asked = [row.text, other]
        else:
            asked = _split(row) + ([other] if way == "split-after" else [])
        prompt = [
            {"role": role, "content": text}
            for i, turn in enumerate(asked)
            for role, text in ([("assistant", reply)] if i else []) + [("user", turn)]
        ]
        return Said(tuple(prompt), row.answer)  # type: ignore[arg-type]

    def read(self, said: Said, form: Form) -> str:
        """The turns one after the other; "it" is the object that was named."""
        text = super().read(said, form)
        there = re.search(THERE.format(o="([a-z]+)"), text)
        return re.sub(r"\bit\b", f"the {there[1]}", text) if there else text


def _split(row: Row) -> list[str]:
    """The deeds of the answer over two turns."""
    from probes.miniature.reading import named

    deeds = named(row.answer)
    if len(deeds) == 1:
        return [THERE.format(o=deeds[0].object), f"{deeds[0].verb.capitalize()} it."]
    return [f"{str(deed).capitalize()}." for deed in deeds]
