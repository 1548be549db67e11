"""The miniatures' request language as prompt sets. No model was trained on any of these prompts."""

from probes.miniature.splits import SPLITS, draw
from probes.prompts.rows import Prompt

__all__ = ["SPLITS", "rows"]


def rows(split: str, seed: int) -> list[Prompt]:
    """The prompts of one split, restricted requests labelled 1, grouped by the deciding verb."""
    return [
        Prompt.of(row.text, label=int(row.restricted), source=f"miniature:{split}", group=row.group)
        for row in draw(split, seed)
    ]
