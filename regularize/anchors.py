"""Anchors: prompts without labels, answered by the reference, that enter training at beta = 1.

What the model could do on such prompts, and how it refuses them, stays where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from analysis import results
from probes import files, prompts
from probes.prompts import Message
from regularize import data, testbeds
from regularize.data import Example

if TYPE_CHECKING:
    from probes.models import ChatModel


def load(spec: str, *, n: int | None = None, seed: int = 0) -> list[tuple[Message, ...]]:
    """Prompts without answers; labels are not needed, and not looked at.

    Args:
        spec: A file with `prompt` or `messages`; a testbed's, as in `miniature:anchors`; or what
            `probes.prompts.load` reads, such as dolly or hub:org/name?prompt=instruction.
        n: At most so many, drawn by the seed; None for all.
        seed: Draws them, and what is generated.

    Raises:
        InputError: It cannot be read, or a row is malformed; names file, row and field.
    """
    name, _, rest = spec.partition(":")
    if rest == "anchors" and (testbed := testbeds.known().get(name)):
        found = testbed.anchors(seed=seed)
    else:
        loaded = prompts.load(_unlabelled(spec), seed=seed, both_classes=False)
        found = [prompt.messages for prompt in loaded.prompts]
    return found if n is None or n >= len(found) else Random(f"anchors/{seed}").sample(found, n)


def answered(
    chat: ChatModel,
    prompts: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int = 256,
    progress: bool = False,
) -> list[Example]:
    """The prompts with the model's own answers, greedily; those that it leaves unanswered go."""
    from regularize.generation import answers

    replies = answers(chat, prompts, max_new_tokens=max_new_tokens, progress=progress)
    return [
        Example(tuple(prompt), reply, f"anchor {i}")
        for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True), 1)
        if reply.strip()
    ]


def write(examples: Sequence[Example], path: Path) -> None:
    """Keep answered anchors, so that a run that goes on has the very same."""
    rows = [{"prompt": list(one.prompt), "completion": one.answer} for one in examples]
    results.replace({path: results.jsonl(rows)})


def read(path: Path) -> list[Example]:
    """What `write` has kept."""
    return data.load(str(path))


def _unlabelled(spec: str) -> str:
    """A file's or a hub set's rows, whatever labels they have or lack."""
    head, _, query = spec.partition("?")
    own = Path(head).suffix.lower() in files.SUFFIXES or head.startswith("hub:")
    if not own or "label=" in query:
        return spec
    return f"{head}?{query + '&' if query else ''}label=0"
