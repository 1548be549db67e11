"""Rows into a set: what is done with a prompt that stands there twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from probes.errors import InputError
from probes.prompts.rows import Prompt


class Placed(NamedTuple):
    """A prompt, and where it was read."""

    prompt: Prompt
    place: str
    published: bool
    """Of a published set: nobody here can mend it, so that repeats are dropped and counted."""


def distinct(placed: Iterable[Placed]) -> tuple[list[Placed], tuple[str, ...]]:
    """Rows with each prompt once, and notes on what was left out.

    In a person's file a repeated prompt is an error, for it is theirs to mend. Of published sets
    the first copy is kept; a prompt that they label both ways says nothing and is left out.

    Raises:
        InputError: A prompt repeated in a person's file, or labelled both ways with one of its
            rows in a person's file. Names both rows.
    """
    first: dict[str, Placed] = {}
    contradicted: set[str] = set()
    repeated = 0
    for row in placed:
        seen = first.setdefault(row.prompt.id, row)
        if seen is row:
            continue
        if seen.prompt.label != row.prompt.label:
            if not (seen.published and row.published):
                raise InputError(
                    f"{row.place}: the same prompt as {seen.place}, with label "
                    f"{row.prompt.label} here and {seen.prompt.label} there. Keep one of them."
                )
            contradicted.add(row.prompt.id)
        elif not (seen.published or row.published):
            raise InputError(f"{row.place}: the same prompt as {seen.place}. Keep one of them.")
        else:
            repeated += 1
    notes = []
    if repeated:
        notes.append(f"{repeated} repeated rows left out")
    if contradicted:
        notes.append(f"{len(contradicted)} prompts labelled both ways left out")
    return [row for row in first.values() if row.prompt.id not in contradicted], tuple(notes)
