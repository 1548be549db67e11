"""Cells into prompts, and prompts into a set: every rule that a row must keep is in this file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from probes.errors import InputError
from probes.prompts._files import Row
from probes.prompts.rows import Message, Prompt

ROLES = ("system", "user", "assistant")
LABELS = {"0": 0, "1": 1, "false": 0, "true": 1}


class Placed(NamedTuple):
    """A prompt, and where it was read."""

    prompt: Prompt
    place: str
    published: bool
    """Of a published set: nobody here can mend it, so that repeats are dropped and counted."""


def text(value: object, place: str) -> str:
    """A text that says something.

    Raises:
        InputError: Not a text, empty, only white space, or with half a surrogate pair.
    """
    if not isinstance(value, str):
        raise InputError(f"{place}: a text is needed, this is {_show(value)}.")
    if not value.strip():
        raise InputError(f"{place}: the text is empty.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{place}: character {error.start + 1} is half of a surrogate pair, which no "
            "tokenizer can read. Write the text again as UTF-8."
        ) from error
    return value


def label(value: object, place: str) -> int:
    """1 or 0 from 1, 0, true, false, as a number, a boolean or a text.

    Raises:
        InputError: Anything else; a number 1.0 and a missing value too.
    """
    known = LABELS.get(str(value).lower()) if isinstance(value, str | int) else None
    if known is None:
        raise InputError(
            f"{place}: the label is {_show(value)}; it must be 1 (harmful) or 0 (harmless)."
        )
    return known


def messages(value: object, place: str) -> Sequence[Message]:
    """A chat in OpenAI's form: a list of {"role", "content"}, or the same as JSON text.

    Raises:
        InputError: No such list, an unknown role, no content, or the last word not the user's.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: a list of messages is needed, this is {_show(value)}.")
    chat = [_message(message, f"{place}, message {i}") for i, message in enumerate(value, 1)]
    if chat[-1]["role"] != "user":
        raise InputError(
            f"{place}: the last message is the {chat[-1]['role']}'s; it must be the user's, "
            "for the model is read where it is about to answer."
        )
    return chat


def _message(value: object, place: str) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise InputError(
            f'{place}: an object with "role" and "content" is needed, this is {_show(value)}.'
        )
    if value["role"] not in ROLES:
        raise InputError(
            f"{place}: the role is {_show(value['role'])}; it must be one of {', '.join(ROLES)}."
        )
    return Message(role=value["role"], content=text(value["content"], f"{place}, content"))


def group(row: Row, field: str) -> str | None:
    """The row's group, or None where the cell is empty: the row is then a group of its own."""
    value = row[field]
    if value is None or value != value or value == "":  # NaN is not itself
        return None
    if not isinstance(value, str | int | float):
        raise InputError(f"{row.at(field)}: a name or a number is needed, this is {_show(value)}.")
    return str(value)


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


def _show(value: object) -> str:
    """A value for a message: short, and never a page of somebody's text."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
