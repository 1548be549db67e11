"""Cells of a table as texts, labels and chats: every rule that a cell must keep is in this file."""

from __future__ import annotations

import json
from collections.abc import Sequence

from probes.errors import InputError
from probes.files import Row
from probes.prompts.rows import Message

ROLES = ("system", "user", "assistant")
LABELS = {"0": 0, "1": 1, "false": 0, "true": 1}


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
    chat = turns(value, place)
    if chat[-1]["role"] != "user":
        raise InputError(
            f"{place}: the last message is the {chat[-1]['role']}'s; it must be the user's, "
            "for the model is read where it is about to answer."
        )
    return chat


def turns(value: object, place: str) -> list[Message]:
    """A chat in OpenAI's form, whoever speaks last.

    Raises:
        InputError: No such list, an unknown role, or no content.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise InputError(f"{place}: not JSON ({error.msg}, column {error.colno}).") from error
    if not isinstance(value, list) or not value:
        raise InputError(f"{place}: a list of messages is needed, this is {_show(value)}.")
    return [_message(message, f"{place}, message {i}") for i, message in enumerate(value, 1)]


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


def names(row: Row, field: str) -> tuple[str, ...]:
    """A name, or a list of names; none where the cell is empty."""
    value = row[field]
    if isinstance(value, list) and all(isinstance(one, str) and one for one in value):
        return tuple(dict.fromkeys(value))
    one = group(row, field)
    return () if one is None else (one,)


def _show(value: object) -> str:
    """A value for a message: short, and never a page of somebody's text."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
