"""What a person writes to name prompts, taken apart: `source[?field=column&...]`, joined by `+`."""

from __future__ import annotations

import os
from typing import Literal, NamedTuple, get_args
from urllib.parse import unquote

from probes.errors import InputError

Field = Literal["prompt", "messages", "label", "group", "source", "category"]
FIELDS: tuple[Field, ...] = get_args(Field)


class Term(NamedTuple):
    """One source of rows, and which of its columns means what."""

    source: str
    columns: dict[Field, str]

    @property
    def constant_label(self) -> int | None:
        """The label of all rows, where `label=0` or `label=1` says it in place of a column."""
        label = self.columns.get("label")
        return int(label) if label in ("0", "1") else None


def parse(spec: str) -> list[Term]:
    """The terms of a spec. A file whose own name holds a `+` is taken as one file.

    Raises:
        InputError: An empty term, or a mapping that is not `field=column`.
    """
    head = spec.partition("?")[0]
    whole = "+" in head and os.path.isfile(head)
    return [_term(part, spec) for part in ([spec] if whole else spec.split("+"))]


def _term(part: str, spec: str) -> Term:
    source, _, query = part.strip().partition("?")
    if not source:
        raise InputError(
            f"prompts '{spec}': a source is missing; write a file, a set's name or hub:org/name, "
            "and join several with '+'."
        )
    columns: dict[Field, str] = {}
    for pair in query.split("&") if query else ():
        key, _, column = pair.partition("=")
        field = next((name for name in FIELDS if name == key), None)
        if field is None or not column:
            raise InputError(
                f"prompts '{part}': '{pair}' is not field=column; the fields are "
                f"{', '.join(FIELDS)}."
            )
        columns[field] = unquote(column)
    if {"prompt", "messages"} <= columns.keys():
        raise InputError(f"prompts '{part}': give a column for prompt or for messages, not both.")
    return Term(source, columns)
