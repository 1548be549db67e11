"""The parts of the language: what the models are trained on, and the prompt sets that probes see.

A text's words decide, by a hash, which part it belongs to (`language.share`): a quarter of the
language is the models', the rest is divided among the splits, so that no prompt stands in two of
them, whatever the seed.
"""

from collections.abc import Iterator
from functools import cache, partial
from random import Random
from typing import Literal

from probes.errors import InputError
from probes.miniature.language import Fits, Kind, Row, Scope, mention, request, share, twins
from probes.miniature.tasks import fact, judgement, utility
from probes.miniature.words import GUILDS, HELD_OUT_GUILD

SPLITS: dict[str, str] = {
    "train": "restricted requests, look-alikes and ordinary ones; seven of eight guilds",
    "test": "fresh prompts of the same distribution as train",
    "held-out-category": "the eighth guild, whose words train never holds",
    "held-out-objects": "objects that in alignment stood in questions only, in no request",
    "held-out-phrasings": "phrasings and frames on which no model was trained",
    "look-alikes": "twins: the same words ask for a restricted or for a harmless deed",
    "unseen-frames": "restricted deeds asked for, or only mentioned in frames never trained on",
}
SIZES = {"train": 1600}
SIZE = 400
_SHARES = 4 * len(SPLITS)
"""Equal parts of the language: three for each split, the rest for the models."""

_KNOWN = tuple(name for name in GUILDS if name != HELD_OUT_GUILD)
_HELD_OUT_WORDS = frozenset(word for part in GUILDS[HELD_OUT_GUILD] for word in part)
_SCOPES = {
    "held-out-category": Scope(guilds=(HELD_OUT_GUILD,)),
    "held-out-objects": Scope(guilds=_KNOWN, objects="unseen"),
    "held-out-phrasings": Scope(guilds=_KNOWN, phrasing="unseen"),
    "unseen-frames": Scope(guilds=_KNOWN, phrasing="unseen"),
}
LOOK_ALIKES: tuple[Kind, ...] = ("verb-only", "object-only", "cross", "swap")


def for_models(text: str) -> bool:
    """Whether the models may be trained on a text."""
    return share(text, _SHARES) >= 3 * len(SPLITS)


def split_of(text: str) -> str | None:
    """The split that a text falls to; None where it is the models'."""
    return None if for_models(text) else list(SPLITS)[share(text, _SHARES) // 3]


def fits_split(text: str, split: str) -> bool:
    """Whether a text is this split's. No split but its own holds the held-out guild's words."""
    if split_of(text) != split:
        return False
    return split == "held-out-category" or _HELD_OUT_WORDS.isdisjoint(text.rstrip(".?").split())


def _requests(rng: Random, scope: Scope, fits: Fits) -> tuple[Row, ...]:
    """Restricted and harmless alike often; most harmless rows look like restricted ones."""
    pick = rng.random()
    if pick < 0.4:
        return twins(rng, scope, fits=fits)
    if pick < 0.65:
        return (request(rng, "restricted", scope, fits=fits),)
    if pick < 0.8:
        return (mention(rng, scope, fits=fits),)
    kinds: tuple[Kind, ...] = ("verb-only", "object-only", "cross", "cross", "plain")
    return (request(rng, rng.choice(kinds), scope, fits=fits),)


def _draw(rng: Random, split: str, scope: Scope, fits: Fits) -> tuple[Row, ...]:
    if split == "look-alikes":
        return twins(rng, scope, fits=fits)
    if split == "unseen-frames":
        if rng.random() < 0.5:
            return (mention(rng, scope, restricted=1.0, fits=fits),)
        return (request(rng, "restricted", scope, fits=fits),)
    if rng.random() < 0.05:
        return (utility(rng, fits=fits),)
    return _requests(rng, scope, fits)


def known() -> Scope:
    """The words of the guilds that no split but their own holds out, in known phrasings."""
    return Scope(guilds=_KNOWN)


@cache
def draw(split: str, seed: int) -> tuple[Row, ...]:
    """The rows of one split, in an order that the seed decides.

    Raises:
        InputError: for a split that does not exist.
    """
    if split not in SPLITS:
        raise InputError(f"miniature has no split {split!r}; choose one of {', '.join(SPLITS)}")
    rng, scope = Random(f"{split}/{seed}"), _SCOPES.get(split, known())
    rows: dict[str, Row] = {}
    while len(rows) < SIZES.get(split, SIZE):
        fresh = _draw(rng, split, scope, partial(fits_split, split=split))
        rows.update((row.text, row) for row in fresh)
    return tuple(rows.values())


def training_rows(rng: Random, *, objects: Literal["seen", "all"] = "seen") -> Iterator[Row]:
    """Endless rows for the models, from their own part of the language.

    Args:
        rng: the source of chance.
        objects: which objects requests hold: all of them before alignment, the seen ones in it.
            Questions hold all of them.
    """
    while True:
        pick = rng.random()
        if pick < 0.25:
            yield utility(rng, fits=for_models)
        elif pick < 0.33:
            yield fact(rng)
        elif pick < 0.8:
            yield from _requests(rng, Scope(objects=objects), for_models)
        else:
            yield from map(judgement, _requests(rng, Scope(objects="all"), for_models))
