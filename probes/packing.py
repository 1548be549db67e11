"""Prompts behind one another in one row, without padding, where a common beginning stands once.

A chat template's prefix, a few-shot header or the turns so far begin many prompts. In a decoder a
token's activations follow from the tokens up to it alone, so that what two prompts begin with is
the same in both: it is computed once, and each of them reads it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from probes.rendering import Rendered

# A shorter common beginning is computed again: less than a gather of keys and a mask would cost.
MIN_SHARED = 8
# Of a pass that would have ended: the largest share that its successor may have to compute again.
MAX_AGAIN = 1 / 16
# Tokens that the prompts of a pass have between them, shared ones counted for each, as a multiple
# of the budget: where thousands differ in a word, what each one reads takes memory too.
MAX_REACH = 16


@dataclass(frozen=True)
class Segment:
    """The tokens of one prompt that no prompt before it has."""

    start: int
    """Where they begin in the row."""
    length: int
    """How many there are; never 0."""
    path: Int[Tensor, "key"]
    """Where all tokens of the prompt stand, in order: what these attend to. They end it."""

    @property
    def shared(self) -> int:
        """Tokens of the prompt that stand further to the left in the row."""
        return len(self.path) - self.length


@dataclass(frozen=True)
class Pack:
    """Several prompts in one row."""

    ids: Int[Tensor, "token"]
    """Token ids, each beginning once."""
    positions: Int[Tensor, "token"]
    """Of each token within its prompt, from 0."""
    paths: tuple[Int[Tensor, "_"], ...]
    """Of each prompt, where its tokens stand in the row."""
    segments: tuple[Segment, ...]
    """Of each prompt that has tokens of its own, those; together the whole row, in order."""


def in_order(rows: Sequence[Rendered]) -> list[int]:
    """The places of rows so sorted that those with a long common beginning are neighbours."""
    return sorted(range(len(rows)), key=lambda i: (rows[i].ids, i))


def shared(before: Rendered, row: Rendered) -> int:
    """How many tokens of a row need not be computed beside the one before it."""
    pairs = enumerate(zip(before.ids, row.ids, strict=False))
    common = next((i for i, (a, b) in pairs if a != b), min(len(before.ids), len(row.ids)))
    return common if common >= MIN_SHARED else 0


def size(rows: Sequence[Rendered]) -> int:
    """Tokens of a pack of these rows."""
    known = [shared(before, row) for before, row in pairwise(rows)]
    return sum(len(row.ids) for row in rows) - sum(known)


def pack(rows: Sequence[Rendered]) -> Pack:
    """Put rows into one, in the order of `in_order`.

    Args:
        rows: At least one. Only neighbours share, so that any order is right and a sorted one fast.
    """
    ids: list[int] = []
    positions: list[int] = []
    paths: list[Tensor] = []
    segments: list[Segment] = []
    for i, row in enumerate(rows):
        known = shared(rows[i - 1], row) if i else 0
        start, length = len(ids), len(row.ids) - known
        own = torch.arange(start, start + length)
        path = torch.cat([paths[-1][:known], own]) if known else own
        paths.append(path)
        if length:
            ids += row.ids[known:]
            positions += range(known, len(row.ids))
            segments.append(Segment(start, length, path))
    return Pack(torch.tensor(ids), torch.tensor(positions), tuple(paths), tuple(segments))


def packs(
    rows: Sequence[Rendered], order: Sequence[int], *, token_budget: int, enough: int
) -> list[list[int]]:
    """Divide ordered rows into passes.

    Args:
        rows: All of them.
        order: The places of those to divide, sorted.
        token_budget: Computed tokens of a pass, at most; a longer row goes alone.
        enough: Tokens from which a pass ends as soon as its successor need not compute much again.
    """
    found: list[list[int]] = []
    tokens = reach = 0
    for i in order:
        length = len(rows[i].ids)
        known = shared(rows[found[-1][-1]], rows[i]) if found else 0
        more = length - known
        over = tokens + more > token_budget or reach + length > MAX_REACH * token_budget
        if not found or over or (tokens + more > enough and known <= MAX_AGAIN * tokens):
            found.append([])
            tokens = reach = 0
            more = length
        found[-1].append(i)
        tokens += more
        reach += length
    return found
