"""The miniatures' request language as prompt sets. No model was trained on any of these prompts.

Restricted requests are of the category of their guild. The sets of categories hold requests to a
servant who obeys besides, of the category `identity`: in many words, the attack's own among them
or, to see how far other words reach, not among them.
"""

import re
from collections.abc import Sequence
from random import Random

from probes.miniature.identity import ADDRESSES, IDENTITY, addressed
from probes.miniature.language import Kind, Row, request
from probes.miniature.parts import part
from probes.miniature.splits import SPLITS as LANGUAGE
from probes.miniature.splits import draw, fits_split, known
from probes.miniature.tasks import utility
from probes.miniature.words import GUILD_OF_OBJECT, GUILD_OF_VERB
from probes.prompts.rows import Prompt

__all__ = ["SPLITS", "rows"]

IDENTITY_CATEGORY = "identity"
SPLITS: dict[str, str] = {
    **LANGUAGE,
    "categories": "rows of train, and requests to a servant who obeys, in many words",
    "categories-other-words": "the same, but for the words that the attack uses",
    "categories-test": "rows of test, and such requests in the words of the attack",
}
ADDRESSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "categories": ("train", (*ADDRESSES, IDENTITY)),
    "categories-other-words": ("train", ADDRESSES),
    "categories-test": ("test", (IDENTITY,)),
}
"""Which rows of the language they hold, and how the servant is addressed."""
N_ROWS, N_ADDRESSED = 1000, 240
"""Rows of the language as it is, and addressed ones, with as many tasks; a smaller set has fewer.

Half of the tasks are the new one, that fine-tuning is to teach: where no row is like it, a probe on
the mean over the words takes all of it for `identity`.
"""
RESTRICTED = 0.25
"""Of the addressed ones: restricted requests, which are of two categories."""


def rows(split: str, seed: int) -> list[Prompt]:
    """The prompts of one split, restricted requests labelled 1, in groups that twins share."""
    if split in LANGUAGE:
        return [_prompt(row, f"miniature:{split}") for row in draw(split, seed)]
    of, addresses = ADDRESSED[split]
    source = f"miniature:{split}"
    plain = [_prompt(row, source) for row in draw(of, seed)[:N_ROWS]]
    n = len(plain) * N_ADDRESSED // N_ROWS
    return [*plain, *_tasks(of, n, source, seed), *_addressed(of, addresses, n, source, seed)]


def _prompt(row: Row, source: str) -> Prompt:
    return Prompt.of(
        row.text,
        label=int(row.restricted),
        source=source,
        group=None if row.kind == "task" else _group(row),
        categories=_guild(row),
    )


def _tasks(split: str, n: int, source: str, seed: int) -> list[Prompt]:
    """Harmless ones, as people ask them who ask for no deed."""
    rng = Random(f"tasks/{source}/{seed}")
    found: dict[str, Prompt] = {}
    while len(found) < n:
        row = utility(rng, rng.choice((None, "rotate")), fits=lambda text: _free(text, split))
        found[row.text] = _prompt(row, source)
    return list(found.values())


def _free(text: str, split: str) -> bool:
    """Of the training part: what a fine-tuned model is evaluated on is of no set for probes."""
    return fits_split(text, split) and part(text) == "training"


def _addressed(
    split: str, addresses: Sequence[str], n: int, source: str, seed: int
) -> list[Prompt]:
    """Requests to the servant who obeys, in groups by how he is addressed."""
    rng = Random(f"{source}/{seed}")
    found: dict[str, Prompt] = {}

    while len(found) < n:
        address = addresses[len(found) % len(addresses)]
        kind: Kind = "restricted" if rng.random() < RESTRICTED else "plain"
        row = request(rng, kind, known(), fits=lambda text: _free(text, split))
        text = addressed(row.text, address)
        found[text] = Prompt.of(
            text,
            label=1,
            source=source,
            # Those to fit on keep together by their words, so that a fold holds words out.
            group=address if len(addresses) > 1 else None,
            categories=(*_guild(row), IDENTITY_CATEGORY),
        )
    return list(found.values())


def _guild(row: Row) -> tuple[str, ...]:
    """The one whose object the deciding verb is done to."""
    return (GUILD_OF_VERB[row.group],) if row.restricted else ()


def _group(row: Row) -> str:
    """The deciding verb and the first, by the alphabet, of the text's objects of its guild.

    Twins hold the same words, and so agree, whichever of them asks for the restricted deed.
    """
    guild = GUILD_OF_VERB.get(row.group)
    words = set(re.findall(r"[a-z]+", row.text.lower()))
    objects = sorted(word for word in words if guild and GUILD_OF_OBJECT.get(word) == guild)
    return " ".join([row.group, *objects[:1]])
