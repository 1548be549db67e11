"""Rendered prompts in batches of like length, that grow smaller where memory runs out."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from probes.errors import InputError
from probes.packing import in_order, packs, size
from probes.rendering import Rendered


def padded(
    rows: Sequence[Rendered], pad: int, side: Literal["left", "right"]
) -> tuple[Int[Tensor, "batch token"], Int[Tensor, "batch token"]]:
    """Ids, and a mask that is 0 at padding.

    Args:
        rows: The prompts.
        pad: Fills up short rows; masked, so any id of the vocabulary will do.
        side: Where the padding goes. On the left, all prompts end in one column.
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        n = len(row.ids)
        place = slice(width - n, width) if side == "left" else slice(n)
        ids[i, place] = torch.tensor(row.ids)
        mask[i, place] = 1
    return ids, mask


def in_batches(
    rows: Sequence[Rendered],
    work: Callable[[list[int]], None],
    *,
    token_budget: int,
    new_tokens: int = 0,
    alike: float = 0.0,
    advice: str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Do a piece of work on all rows.

    Args:
        rows: What is worked on.
        work: Takes the places of a batch's rows, the longest first.
        token_budget: Tokens of a batch, padding included; a longer row goes alone. Halved whenever
            the accelerator is out of memory.
        new_tokens: Room that each row needs beside its own tokens.
        alike: Share of a batch's longest row that each of its rows has at least.
        advice: What a person can do where one row does not fit; None to hand on torch's own error.
        on_batch: Called after each batch with the number of its rows.

    Raises:
        InputError: One row does not fit into memory by itself.
    """
    # Longest first: what does not fit into memory fails at once, and the time left only falls.
    waiting = sorted(range(len(rows)), key=lambda i: (-len(rows[i].ids), i))
    while waiting:
        longest = len(rows[waiting[0]].ids)
        size = max(1, token_budget // (longest + new_tokens))
        batch = [i for i in waiting[:size] if len(rows[i].ids) >= alike * longest]
        try:
            work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) > 1:
                token_budget = len(batch) // 2 * (longest + new_tokens)
                continue
            if advice is None:
                raise
            raise _too_long(longest, advice) from error
        waiting = waiting[len(batch) :]
        if on_batch is not None:
            on_batch(len(batch))


def in_packs(
    rows: Sequence[Rendered],
    work: Callable[[list[int]], None],
    *,
    token_budget: int,
    enough: int,
    advice: str,
    on_batch: Callable[[int], None] | None = None,
) -> None:
    """Do a piece of work on all rows, those with a long common beginning together.

    Args:
        rows: What is worked on.
        work: Takes the places of a batch's rows, in the order in which `probes.packing.pack` shares
            most.
        token_budget: As in `in_batches`, of the tokens that are computed: there is no padding, and
            what is shared counts once.
        enough: Tokens at which a batch may end before that; see `probes.packing.packs`.
        advice: What a person can do where one row does not fit.
        on_batch: Called after each batch with the number of its rows.

    Raises:
        InputError: One row does not fit into memory by itself.
    """
    waiting = packs(rows, in_order(rows), token_budget=token_budget, enough=enough)
    # As above: the longest prompt first.
    waiting.sort(key=lambda batch: -max(len(rows[i].ids) for i in batch))
    while waiting:
        batch = waiting[0]
        try:
            work(batch)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise _too_long(len(rows[batch[0]].ids), advice) from error
            half = max(1, size([rows[i] for i in batch]) // 2)
            waiting = [
                part
                for whole in waiting
                for part in packs(rows, whole, token_budget=half, enough=enough)
            ]
            continue
        waiting = waiting[1:]
        if on_batch is not None:
            on_batch(len(batch))


def _too_long(tokens: int, advice: str) -> InputError:
    return InputError(
        f"a prompt of {tokens} tokens does not fit into the accelerator's memory by itself; "
        f"{advice}"
    )
