"""Leaks: prompts that stand in two sets, or twice in one, word for word or nearly.

A held-out score is worth what is new in the held-out set, and public sets copy each other. Three
kinds, the first that holds: `exact` (the same chat), `normalised` (the same letters and digits, in
whatever case and punctuation), `near` (Jaccard similarity of character 5-grams of at least .8).
Candidates come from MinHash (Broder 1997) with locality-sensitive hashing, so that the cost grows
with the number of prompts and not with that of pairs; the similarity of each is then exact.

What becomes of them: a held-out set is scored without its prompts that stand in the train set
(`new`), and prompts of the train set that are alike are of one group, so that no fold tests on what
it was fitted on (`grouped`). A near-duplicate of the *other* label stays in its held-out set: it is
a twin, which flatters no probe and shames many.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal, NamedTuple

import numpy as np
from datasketch import MinHash
from jaxtyping import Bool, Int64
from numpy import ndarray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from analysis.results import LeakRow
from probes.prompts import PromptSet

Kind = Literal["exact", "normalised", "near"]

NEAR = 0.8
"""Jaccard similarity from which two prompts are near-duplicates: a word in ten of another."""
N = 5
"""Characters of an n-gram."""
BANDS, HASHES = 25, 5
"""MinHash's hashes go in so many bands of so many; what agrees in a whole band is looked at.

Of pairs of similarity .8 that is all but one in 20,000, of .3 one in 17.
"""
SIDES: Final = ("left", "right")


class Leak(NamedTuple):
    """A prompt of the train set and one like it."""

    kind: Kind
    train: int
    """Row in the train set."""
    other: int
    """Row in the other set."""
    similarity: float
    """Jaccard similarity of character n-grams, 0 to 1."""


def between(train: PromptSet, other: PromptSet) -> list[Leak]:
    """For each prompt of another set that has any, the one of the train set most like it."""
    return Index(Texts(train)).leaks(Texts(other))


def inside(prompts: PromptSet) -> list[Leak]:
    """For each prompt of a set that has any, the earlier one most like it."""
    texts = Texts(prompts)
    return Index(texts).leaks(texts)


def new(train: PromptSet, other: PromptSet, leaks: Sequence[Leak]) -> Bool[ndarray, "prompt"]:
    """The rows of the other set that are scored: those that the train set does not hold.

    Args:
        train: The set that is fitted on.
        other: The set that is scored.
        leaks: `between` the two.
    """
    keep = np.ones(len(other), dtype=bool)
    for leak in leaks:
        keep[leak.other] = not _is_dropped(leak, train, other)
    return keep


def grouped(prompts: PromptSet, leaks: Sequence[Leak]) -> PromptSet:
    """The set with the groups of prompts that are alike made one.

    Args:
        prompts: A set.
        leaks: `inside` of it.
    """
    names, of = np.unique(prompts.groups, return_inverse=True)
    pairs = np.array([(of[leak.train], of[leak.other]) for leak in leaks], dtype=np.int64)
    pairs = pairs.reshape(-1, 2)
    shape = (len(names), len(names))
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape)
    _, part = connected_components(graph, directed=False)
    first = np.unique(part, return_index=True)[1]
    joined = [str(names[first[part[group]]]) for group in of]
    return replace(
        prompts,
        prompts=tuple(
            prompt if prompt.group == group else replace(prompt, group=group)
            for prompt, group in zip(prompts.prompts, joined, strict=True)
        ),
    )


def alike_grouped(prompts: PromptSet) -> PromptSet:
    """The set as a sweep fits and scores it: with what is alike in one group."""
    return grouped(prompts, inside(prompts))


def rows(
    train: PromptSet, other: PromptSet, leaks: Sequence[Leak], *, dropped: bool = True
) -> list[LeakRow]:
    """The table's rows; of one set alone where it is given twice.

    Args:
        train: The set that is fitted on.
        other: The set that is scored.
        leaks: `between` the two, or `inside` of the one.
        dropped: Whether the other set is scored without those that are not `new`.
    """
    return [
        LeakRow(
            train_set=train.name,
            eval_set=other.name,
            kind=leak.kind,
            train_id=(ours := train.prompts[leak.train]).id,
            eval_id=(theirs := other.prompts[leak.other]).id,
            similarity=leak.similarity,
            same_label=ours.label == theirs.label,
            same_group=ours.group == theirs.group,
            dropped=dropped and train is not other and _is_dropped(leak, train, other),
        )
        for leak in leaks
    ]


def _is_dropped(leak: Leak, train: PromptSet, other: PromptSet) -> bool:
    same = train.prompts[leak.train].label == other.prompts[leak.other].label
    return leak.kind != "near" or same


class Texts:
    """A set as it is compared: what says that two prompts are the same, and which may be alike."""

    def __init__(self, prompts: PromptSet) -> None:
        self.ids = [prompt.id for prompt in prompts.prompts]
        self.words = [normalised(prompt.text) for prompt in prompts.prompts]
        self.bands = np.array([_bands(words) for words in self.words]).reshape(-1, BANDS)
        """(n, BANDS): alike prompts agree in one at least."""


class Index:
    """A train set's prompts, to hold others against them.

    It keeps no n-grams, which take a hundred times the room of a text: those of the few candidates
    are made anew.
    """

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._ids = _first_rows(texts.ids)
        self._words = _first_rows(texts.words)
        # Whatever is like a later prompt of the same words is like the first.
        self._rows = np.fromiter(self._words.values(), dtype=np.int64)
        bands = texts.bands[self._rows]
        self._order = np.argsort(bands, axis=0, kind="stable")
        self._bands = np.take_along_axis(bands, self._order, axis=0)

    def leaks(self, other: Texts) -> list[Leak]:
        """For each prompt of a set that has any, the one most like it.

        Of the indexed set itself, it is the one most like it among those before it.
        """
        found = [self._leak(row, other) for row in range(len(other.ids))]
        return [leak for leak in found if leak]

    def _leak(self, row: int, other: Texts) -> Leak | None:
        words, end = other.words[row], row if other is self._texts else len(self._texts.ids)
        if (same := self._ids.get(other.ids[row], end)) < end:
            return Leak("exact", same, row, 1.0)
        if (same := self._words.get(words, end)) < end:
            return Leak("normalised", same, row, 1.0)
        of_words, alike = grams(words), [i for i in self._alike(other.bands[row]) if i < end]
        near = [(jaccard(of_words, grams(self._texts.words[i])), -i) for i in alike]
        similarity, found = max(near, default=(0.0, 0))
        return Leak("near", -found, row, similarity) if similarity >= NEAR else None

    def _alike(self, bands: Int64[ndarray, "band"]) -> set[int]:
        alike: set[int] = set()
        for k, band in enumerate(bands):
            first, last = (np.searchsorted(self._bands[:, k], band, side) for side in SIDES)
            alike.update(self._rows[self._order[first:last, k]].tolist())
        return alike


def _first_rows(names: Sequence[str]) -> dict[str, int]:
    return {name: row for row, name in reversed(list(enumerate(names)))}


def _bands(words: str) -> list[int]:
    hashed = MinHash(num_perm=BANDS * HASHES)
    hashed.update_batch([gram.encode() for gram in grams(words)])
    return [hash(band.tobytes()) for band in hashed.hashvalues.reshape(BANDS, HASHES)]


def normalised(text: str) -> str:
    """Letters and digits, in one case, with one space for whatever stands between them.

    A text that has none is itself.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.findall(r"[^\W_]+", folded)) or text


def grams(words: str) -> frozenset[str]:
    """Its character n-grams; a shorter text is its own."""
    return frozenset(words[i : i + N] for i in range(max(len(words) - N + 1, 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a and b| / |a or b|."""
    return len(a & b) / len(a | b)
