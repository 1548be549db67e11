"""Requests in real English, in parts that share no near-duplicate (`probes.realistic.requests`).

No model was aligned on any of them. `probe` is for fitting; the others, for scoring, are parted
from it and from each other by what harmful requests stand against.
"""

from probes.prompts.rows import Prompt
from probes.realistic.requests import Kind, Part, requests

SPLITS: dict[str, tuple[Part, tuple[Kind, ...]]] = {
    "probe": ("probe", ("harmful", "twin", "unsafe", "safe", "ordinary")),
    "twins": ("test", ("harmful", "twin")),
    "xstest": ("test", ("unsafe", "safe")),
    "ordinary": ("test", ("harmful", "ordinary")),
}

__all__ = ["SPLITS", "rows"]


def rows(split: str, seed: int) -> list[Prompt]:  # noqa: ARG001
    """The prompts of one split; the seed changes nothing."""
    part, kinds = SPLITS[split]
    return [
        Prompt.of(
            one.text,
            label=int(one.kind in ("harmful", "unsafe")),
            source=f"realistic:{one.kind}",
            group=f"realistic-{one.group}",
        )
        for one in requests(part, *kinds)
    ]
