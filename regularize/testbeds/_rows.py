"""What training data of all testbeds have in common: rows as examples, a share in a name."""

from __future__ import annotations

from collections.abc import Iterable

from probes.errors import InputError
from probes.prompts import Message
from regularize.data import Example


def examples(spec: str, rows: Iterable[tuple[str, str, int]]) -> list[Example]:
    """Rows of prompt, answer and label, named by their number in `spec`."""
    return [
        Example((Message(role="user", content=text),), answer, f"{spec}, row {i}", label=label)
        for i, (text, answer, label) in enumerate(rows, 1)
    ]


def share(spec: str, text: str, most: float) -> float:
    """The share of harmful rows that the end of a spec says.

    Raises:
        InputError: It is none from 0 to `most`.
    """
    try:
        found = float(text)
    except ValueError:
        found = float("nan")
    if not 0 <= found <= most:
        raise InputError(f"{spec}: {text!r} is no share of harmful rows from 0 to {most:.2g}")
    return found
