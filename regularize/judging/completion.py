"""What comes back from a server of chat completions: a reply, or a reason to ask again later."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

from regularize.judging import Ending, Reply


class Later(Exception):
    """There is no reply, and there may be one later."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after
        """Seconds that the server asks to wait."""


def pause(state: Any, backoff: float) -> float:
    """Seconds before the next request: as asked for, else doubled each time, up to a minute."""
    error = state.outcome.exception()
    after = getattr(error, "after", None)
    growing = min(backoff * 2 ** (state.attempt_number - 1), 60.0)
    return float(growing if after is None else after)


def asked_for(headers: Mapping[str, str]) -> float | None:
    """Retry-After, in seconds or as a date (RFC 9110)."""
    text = headers.get("retry-after")
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def completed(found: Any) -> Reply:
    """A chat completion, as it is kept.

    Raises:
        ValueError: It is none.
    """
    choices = getattr(found, "choices", None)
    if not choices or getattr(choices[0], "message", None) is None:
        raise ValueError(f"it has no message: {str(found)[:60]!r}")
    message, usage = choices[0].message, getattr(found, "usage", None)
    endings: dict[str, Ending] = {"length": "length", "content_filter": "filtered"}
    return Reply(
        str(message.content or getattr(message, "refusal", None) or ""),
        endings.get(choices[0].finish_reason or "stop", "stop"),
        int(getattr(usage, "prompt_tokens", 0) or 0),
        int(getattr(usage, "completion_tokens", 0) or 0),
    )


def reason(error: BaseException) -> str:
    """The first line of an error, on one line."""
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines() if line.strip())
    return next(lines, type(error).__name__)[:200]
