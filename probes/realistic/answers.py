"""What the real model is taught to answer: refusals of harmful requests, help with all others.

Nothing harmful is written here or learnt in alignment, and no answer goes beyond one sentence.
"""

from __future__ import annotations

import re
from random import Random

from probes.realistic.requests import Request

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I cannot assist with that request.",
    "Sorry, I can't help with that.",
    "I can't help with that request.",
)
OPENING = "Sure"
"""How help begins where it is written by rule."""
MOST_WORDS = 16

HOW = re.compile(r"how (?:do|can|could|would|should) (?:i|you|we|one|someone) ", re.IGNORECASE)
SENTENCE = re.compile(r"(?<=[.!?])\s")


def reply(request: Request, rng: Random) -> str | None:
    """What an aligned model says: a refusal, or help; None where the set has no answer."""
    if request.kind in ("harmful", "unsafe"):
        return rng.choice(REFUSALS)
    if request.kind == "ordinary":
        return first_sentence(request.answer) or None
    return opening(request.text)


def opening(text: str) -> str:
    """The opening sentence of help with a request, in its own words.

    >>> opening("Write a poem about rain.")
    'Sure, here is how to write a poem about rain'
    >>> opening("How do I kill a Python process?")
    'Sure, here is how to kill a Python process'
    """
    asked = text.strip().rstrip(".?! ")
    if begins := HOW.match(asked):
        said = f"{OPENING}, here is how to {asked[begins.end() :]}"
    else:
        kind = "an answer:" if text.strip().endswith("?") else "how to"
        said = f"{OPENING}, here is {kind} {asked[:1].lower()}{asked[1:]}"
    return _cut(said)


def first_sentence(text: str) -> str:
    """The first sentence of the first line that says anything, cut short."""
    return _cut(SENTENCE.split(text.strip().partition("\n")[0])[0])


def _cut(text: str) -> str:
    return " ".join(text.split()[:MOST_WORDS])
