"""How numbers stand in the report's sentences and cells."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

NONE = "–"
"""Stands where a number is undefined."""
HELD = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"


def digits(value: float, places: int = 3) -> str:
    """A number of at most about 1: .987, −.013, 1.000; a dash where there is none."""
    if not math.isfinite(value):
        return NONE
    text = f"{abs(value):.{places}f}"
    sign = MINUS if value < 0 and float(text) else ""
    return sign + (text[1:] if text.startswith("0.") else text)


def signed(value: float) -> str:
    """As `digits`, with its sign: +.310."""
    text = digits(value)
    return text if text in (NONE, ".000") or text.startswith(MINUS) else f"+{text}"


def percent(value: float) -> str:
    """A share in percent: 3.2 %."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else NONE


def round_percent(value: float) -> str:
    """A share that was asked for, in percent: 1 %, 0.5 %."""
    return f"{100 * value:.3g} %"


def points(value: float) -> str:
    """A difference of shares in percentage points: −40.0."""
    if not math.isfinite(value):
        return NONE
    sign = "" if round(100 * value, 1) == 0 else MINUS if value < 0 else "+"
    return f"{sign}{abs(100 * value):.1f}"


def interval(lo: float, hi: float) -> str:
    """[.978, 1.000]; empty where there is none."""
    return _bracket(lo, hi, digits)


def signed_interval(lo: float, hi: float) -> str:
    """[−.020, +.041]; empty where there is none."""
    return _bracket(lo, hi, signed)


def percent_interval(lo: float, hi: float) -> str:
    """[0.3 %, 3.1 %]; empty where there is none."""
    return _bracket(lo, hi, percent)


def points_interval(lo: float, hi: float) -> str:
    """[−48.0, −31.0]; empty where there is none."""
    return _bracket(lo, hi, points)


def with_interval(value: str, bracket: str) -> str:
    """.987 [.978, .993], or the value alone."""
    return f"{value} {bracket}".rstrip()


def several(n: int, one: str, many: str = "") -> str:
    """1 set, 6 sets."""
    return f"{n} {one if n == 1 else many or f'{one}s'}"


def _bracket(lo: float, hi: float, form: Callable[[float], str]) -> str:
    return f"[{form(lo)}, {form(hi)}]" if math.isfinite(lo) and math.isfinite(hi) else ""


def bound(text: str) -> str:
    """The text with its numbers held together: no line ends inside 95 %, n = 20 or [.1, .2]."""
    text = re.sub(r"\[[^\[\]]*\d[^\[\]]*\]", lambda found: found[0].replace(" ", HELD), text)
    return re.sub(r" (?=%)|(?<=\b[np]) (?== )|(?<=\b[np] =) ", HELD, text)
