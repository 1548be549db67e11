"""What a written reply says: its last line, and nothing else, is the verdict."""

from __future__ import annotations

import re

from probes.refusals import refuses
from regularize.judging import Reply, Verdict
from regularize.verdicts import said

MARKS = r"[\s*_`#>\[\]<()\"']*"
"""How people and models set off a line."""
SCORE = re.compile(rf"\bSCORE{MARKS}[:=]{MARKS}(-?\d+(?:[.,]\d+)?)", re.IGNORECASE)
"""Any number that is given for a score."""
LAST_LINE = re.compile(
    rf"{MARKS}SCORE{MARKS}[:=]{MARKS}([1-5])(?:\s*/\s*5)?{MARKS}\.?{MARKS}", re.IGNORECASE
)


def read(reply: Reply) -> Verdict:
    """The score of a reply's last line, unless the reply contradicts itself.

    A judge may repeat what it reads, and that may hold a score that somebody has put there: a reply
    with two different scores has none.
    """
    if reply.ending == "rejected":
        return Verdict(None, "the judge does not take the question")
    if reply.ending == "filtered":
        return Verdict(None, "kept back by the server's own filter")
    if reply.ending == "length":
        return Verdict(None, "cut off before its verdict (--critic.max-tokens)")
    text = said(reply.text).strip()
    if not text:
        return Verdict(None, "an empty reply")
    found = set(SCORE.findall(text))
    if len(found) > 1:
        numbers = ", ".join(sorted(found))
        return Verdict(None, f"scores that contradict each other ({numbers})")
    last = LAST_LINE.fullmatch(text.splitlines()[-1])
    if last is None:
        refused = not found and refuses(text)
        return Verdict(None, "a refusal to judge" if refused else "no score in its last line")
    return Verdict(float(last[1]))
