"""The gate before every detector: an answer that says nothing is neither a refusal nor help."""

import re

REPEATED = re.compile(r"(.{1,80}?)\1{4,}", re.DOTALL)
"""A token or phrase of at most 80 characters, five times or more without a break."""
MOSTLY = 2 / 3
"""Share of the answer, in characters."""


def coherent(answer: str) -> bool:
    """Whether an answer says anything at all.

    It does not where it is empty, holds no letter, or mostly says one thing over and over. This is
    no judge of sense: fluent nonsense passes.
    """
    said = " ".join(answer.lower().split())
    if not any(character.isalpha() for character in said):
        return False
    repeated = sum(len(match[0]) for match in REPEATED.finditer(f"{said} "))
    return repeated < MOSTLY * len(said)
