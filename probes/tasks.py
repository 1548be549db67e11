"""What a sweep fits on and what it scores, by the texts alone: the same for every model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from analysis.results import LeakRow
from probes import leaks
from probes.prompts import PromptSet


@dataclass(frozen=True)
class Task:
    """One train set, and the sets that its probes are only scored on."""

    train: PromptSet
    parts: tuple[PromptSet, ...]
    """The sets that it is joined of; itself, if it is not."""
    held_out: tuple[PromptSet, ...]
    """Whole."""
    keep: tuple[Bool[ndarray, "_"], ...]
    """The rows of each that are scored."""
    leaks: tuple[LeakRow, ...]
    """Between the train set and each of them."""

    @property
    def unseen(self) -> list[PromptSet]:
        """The rows of the held-out sets that are scored."""
        return [other.kept(keep) for other, keep in zip(self.held_out, self.keep, strict=True)]


def tasks(
    trains: Sequence[PromptSet],
    held_outs: Sequence[PromptSet],
    *,
    leave_one_out: bool = False,
    keep_leaks: bool = False,
) -> Iterator[Task]:
    """Each train set with all the other sets as held-out ones.

    Args:
        trains: Sets that are fitted on, one after the other.
        held_outs: Sets that are only scored.
        leave_one_out: Fit on all train sets but one, too, for each of them, and score that one.
        keep_leaks: Score what a train set holds too.
    """
    only_scored = [one for one in held_outs if one.name not in {train.name for train in trains}]
    for train in trains:
        others = [one for one in trains if one is not train]
        yield _task(train, (train,), [*others, *only_scored], keep_leaks)
    for train in trains if leave_one_out else ():
        others = [one for one in trains if one is not train]
        yield _task(_joined(train.name, others), others, [train, *only_scored], keep_leaks)


def first_of_their_ids(sets: Sequence[PromptSet]) -> list[Bool[ndarray, "_"]]:
    """The rows of each set that no set before it has."""
    known: set[str] = set()
    found = []
    for one in sets:
        found.append(np.array([prompt.id not in known for prompt in one.prompts], dtype=bool))
        known.update(prompt.id for prompt in one.prompts)
    return found


def _joined(left_out: str, sets: Sequence[PromptSet]) -> PromptSet:
    new = zip(sets, first_of_their_ids(sets), strict=True)
    rows = tuple(prompt for one, keep in new for prompt in one.kept(keep).prompts)
    return PromptSet(f"all-but-{left_out}", rows)


def _task(
    train: PromptSet, parts: Sequence[PromptSet], held_out: Sequence[PromptSet], keep_leaks: bool
) -> Task:
    if not held_out:
        return Task(train, tuple(parts), (), (), ())
    keep, rows, index = [], [], leaks.Index(leaks.Texts(train))
    for other in held_out:
        found = index.leaks(leaks.Texts(other))
        kept = leaks.new(train, other, found)
        keep.append(np.ones_like(kept) if keep_leaks else kept)
        rows += leaks.rows(train, other, found, dropped=not keep_leaks)
    return Task(train, tuple(parts), tuple(held_out), tuple(keep), tuple(rows))
