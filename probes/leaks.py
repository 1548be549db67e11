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
from typing import Literal, NamedTuple

import numpy as np
from datasketch import MinHash, MinHashLSH
from jaxtyping import Bool
from numpy import ndarray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from analysis.results import LeakRow
from probes.prompts import Prompt, PromptSet

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
    return Index.of(train).leaks(other)


def inside(prompts: PromptSet) -> list[Leak]:
    """For each prompt of a set that has any, the earlier one most like it."""
    index, found = Index(), []
    for row, prompt in enumerate(prompts.prompts):
        text = _Text.of(prompt)
        found.append(index.leak(row, text))
        index.add(row, text)
    return [leak for leak in found if leak]


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


class _Text(NamedTuple):
    """A prompt as it is compared."""

    id: str
    words: str
    grams: frozenset[str]
    hashed: MinHash

    @classmethod
    def of(cls, prompt: Prompt) -> _Text:
        words = normalised(prompt.text)
        of_words, hashed = grams(words), MinHash(num_perm=HASHES)
        hashed.update_batch([gram.encode() for gram in of_words])
        return cls(prompt.id, words, of_words, hashed)


class Index:
    """Prompts to be found again, and what is like them."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._words: dict[str, int] = {}
        self._grams: dict[int, frozenset[str]] = {}
        self._hashed = MinHashLSH(threshold=CANDIDATE, num_perm=HASHES)

    @classmethod
    def of(cls, prompts: PromptSet) -> Index:
        """Of a whole set, to hold others against it one after the other."""
        index = cls()
        for row, prompt in enumerate(prompts.prompts):
            index.add(row, _Text.of(prompt))
        return index

    def leaks(self, other: PromptSet) -> list[Leak]:
        """For each prompt of another set that has any, the one most like it."""
        found = [self.leak(row, _Text.of(prompt)) for row, prompt in enumerate(other.prompts)]
        return [leak for leak in found if leak]

    def add(self, row: int, text: _Text) -> None:
        """One more prompt."""
        self._ids.setdefault(text.id, row)
        if text.words in self._words:
            return  # whatever is like it is like the first one
        self._words[text.words] = row
        self._grams[row] = text.grams
        self._hashed.insert(row, text.hashed)

    def leak(self, row: int, text: _Text) -> Leak | None:
        """The prompt most like one of another set, in that row of it."""
        if text.id in self._ids:
            return Leak("exact", self._ids[text.id], row, 1.0)
        if text.words in self._words:
            return Leak("normalised", self._words[text.words], row, 1.0)
        near = [(jaccard(text.grams, self._grams[i]), -i) for i in self._hashed.query(text.hashed)]
        similarity, found = max(near, default=(0.0, 0))
        return Leak("near", -found, row, similarity) if similarity >= NEAR else None


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
