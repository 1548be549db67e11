"""What a judge says once it has thought, and whether enough of it can be read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from probes.errors import InputError

UNPARSED = 0.05
"""Share of verdicts that may be unreadable before the whole judgement is refused."""
THOUGHT = re.compile(r"</think>|assistantfinal")
"""What stands before the last of these are drafts. The second is gpt-oss's: of its harmony format,
`<|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...`, no more
is left when special tokens are not decoded."""
DRAFT = re.compile(r"\s*(?:<think>|analysis[^\s:.*])")
"""How thinking begins that has no end."""


def said(text: str) -> str:
    """What stands after the thinking; nothing where the thinking was cut off."""
    last = THOUGHT.split(text)[-1]
    return "" if DRAFT.match(last) else last


def refuse_unread(judge: str, unread: Sequence[str], n: int, most: float) -> None:
    """Refuse a judge of whose `n` verdicts more than the share `most` cannot be read.

    Args:
        judge: Its name, as it was asked for.
        unread: The verdicts that cannot be read.
        n: All of them.
        most: A share, 0 to 1.

    Raises:
        InputError: There are too many.
    """
    if len(unread) > most * n:
        raise InputError(
            f"{judge}: {len(unread)} of {n} verdicts cannot be read, such as {unread[0][:80]!r}; "
            "take a better judge, let it write more with ?tokens=4096, or allow more with "
            "?unparsed=.2"
        )
