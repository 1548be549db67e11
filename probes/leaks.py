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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from datasketch import MinHash, MinHashLSH
from jaxtyping import Bool
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
HASHES = 128
"""Of a MinHash: the similarity that it estimates has a standard error of 4 points at .8."""
CANDIDATE = 0.6
"""Similarity around which hashing begins to find pairs: low, for what is found is looked at."""


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
    index = _Index()
    for row, prompt in enumerate(train.prompts):
        index.add(row, prompt.id, prompt.text)
    return list(_found(index, other))


def inside(prompts: PromptSet) -> list[Leak]:
    """For each prompt of a set that has any, the earlier one most like it."""
    index = _Index()
    found: list[Leak] = []
    for row, prompt in enumerate(prompts.prompts):
        found += _found_of(index, row, prompt.id, prompt.text)
        index.add(row, prompt.id, prompt.text)
    return found


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


class _Index:
    """Prompts to be found again, and what is like them."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.words: dict[str, int] = {}
        self.grams: dict[int, frozenset[str]] = {}
        self.hashed = MinHashLSH(threshold=CANDIDATE, num_perm=HASHES)

    def add(self, row: int, id: str, text: str) -> None:
        words = normalised(text)
        self.ids.setdefault(id, row)
        if words in self.words:
            return  # whatever is like it is like the first one
        self.words[words] = row
        self.grams[row] = grams(words)
        self.hashed.insert(row, _hash(self.grams[row]))

    def most_alike(self, words: str) -> tuple[int, float] | None:
        of = grams(words)
        near = [(jaccard(of, self.grams[row]), -row) for row in self.hashed.query(_hash(of))]
        similarity, row = max(near, default=(0.0, 0))
        return (-row, similarity) if similarity >= NEAR else None


def _found(index: _Index, other: PromptSet) -> Iterator[Leak]:
    for row, prompt in enumerate(other.prompts):
        yield from _found_of(index, row, prompt.id, prompt.text)


def _found_of(index: _Index, row: int, id: str, text: str) -> Iterator[Leak]:
    words = normalised(text)
    if id in index.ids:
        yield Leak("exact", index.ids[id], row, 1.0)
    elif words in index.words:
        yield Leak("normalised", index.words[words], row, 1.0)
    elif found := index.most_alike(words):
        yield Leak("near", found[0], row, found[1])


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


def _hash(grams: frozenset[str]) -> MinHash:
    found = MinHash(num_perm=HASHES)
    found.update_batch([gram.encode() for gram in grams])
    return found
