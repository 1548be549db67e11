"""The search that attackers share: small changes of a form, those kept that lower the risk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from regularize.attackers import AS_IT_WAS, Attacker, Form, Said, Task

if TYPE_CHECKING:
    from probes.miniature.language import Row

Neighbours = Callable[["Row", Form, int], Iterable[Form]]
"""Row, its form so far, round from 0 -> forms to try, the most promising first; may be endless."""
TRIES = 20
"""Forms looked at for one that is asked about: not every one fits."""


def descend(attacker: Attacker, task: Task, neighbours: Neighbours, rounds: int) -> list[Form]:
    """Steepest descent of all rows side by side, so that a round is one batch of queries.

    In each round each row asks about an equal part of the budget and goes to the form of lowest
    risk, if that is lower than its own.
    """
    forms: list[Form] = [AS_IT_WAS] * len(task.rows)
    risks = task.oracle([_said(attacker, row, AS_IT_WAS).prompt for row in task.rows])
    for at in range(rounds):
        tried = [
            (i, form, said.prompt)
            for i, row in enumerate(task.rows)
            for form, said in _some(attacker, task, row, forms[i], neighbours, at, rounds)
        ]
        found = task.oracle([prompt for _, _, prompt in tried])
        for (i, form, _), risk in zip(tried, found, strict=True):
            if risk < risks[i]:
                risks[i], forms[i] = risk, form
    return forms


def wander(attacker: Attacker, task: Task, neighbours: Neighbours, rounds: int) -> list[Form]:
    """The control: as many rounds of as many changes, of which chance takes one each time."""
    forms: list[Form] = [AS_IT_WAS] * len(task.rows)
    for at in range(rounds):
        for i, row in enumerate(task.rows):
            some = list(_some(attacker, task, row, forms[i], neighbours, at, rounds))
            if some:
                forms[i] = task.rng.choice(some)[0]
    return forms


def _some(
    attacker: Attacker, task: Task, row: Row, form: Form, neighbours: Neighbours, at: int, of: int
) -> Iterator[tuple[Form, Said]]:
    """A round's part of the budget: forms that may be tried, each once."""
    most, seen = attacker.budget // of, {form}

    def allowed() -> Iterator[tuple[Form, Said]]:
        for one in islice(neighbours(row, form, at), TRIES * most):
            if one in seen:
                continue
            seen.add(one)
            said = attacker.said(row, one)
            if said is not None and _allowed(said, task):
                yield one, said

    return islice(allowed(), most)


def _allowed(said: Said | None, task: Task) -> bool:
    """Chats of several turns are no texts of the language, so that no part of it owns them."""
    return said is not None and (len(said.prompt) > 1 or task.fits(said.prompt[0]["content"]))


def _said(attacker: Attacker, row: Row, form: Form) -> Said:
    said = attacker.said(row, form)
    assert said is not None, f"{attacker.name} cannot say {row.text!r} as {form}"
    return said
