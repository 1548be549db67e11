"""The miniatures' request language as prompt sets. No model was trained on any of these prompts."""

import re

from probes.miniature.language import Row
from probes.miniature.splits import SPLITS, draw
from probes.miniature.words import GUILD_OF_OBJECT, GUILD_OF_VERB
from probes.prompts.rows import Prompt

__all__ = ["SPLITS", "rows"]


def rows(split: str, seed: int) -> list[Prompt]:
    """The prompts of one split, restricted requests labelled 1, in groups that twins share."""
    return [
        Prompt.of(
            row.text,
            label=int(row.restricted),
            source=f"miniature:{split}",
            group=None if row.kind == "task" else _group(row),
        )
        for row in draw(split, seed)
    ]


def _group(row: Row) -> str:
    """The deciding verb and the first, by the alphabet, of the text's objects of its guild.

    Twins hold the same words, and so agree, whichever of them asks for the restricted deed.
    """
    guild = GUILD_OF_VERB.get(row.group)
    words = set(re.findall(r"[a-z]+", row.text.lower()))
    objects = sorted(word for word in words if guild and GUILD_OF_OBJECT.get(word) == guild)
    return " ".join([row.group, *objects[:1]])
