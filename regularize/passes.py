"""One pass of a frozen model over rows: its last hidden states at the answers' tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from probes.blocks import evaluating
from regularize.collate import collate
from regularize.data import Encoded
from regularize.losses import Head
from regularize.model import adapter_off, answers_of, base_of, decode, head_of

OfReference = Callable[
    [Float[Tensor, "token d_model"], Head, Int[Tensor, "token"]], Float[Tensor, "token k"]
]
"""Last hidden states, head and target -> numbers of each answer token."""


class Answers(NamedTuple):
    """The answer tokens of some rows, row by row."""

    rows: list[int]
    """Their numbers."""
    counts: list[int]
    """Answer tokens of each."""
    hidden: Float[Tensor, "token d_model"]
    target: Int[Tensor, "token"]


def answer_states(
    base: PreTrainedModel, rows: Sequence[Encoded], *, token_budget: int, pad: int
) -> Iterator[Answers]:
    """Batches of like length; every row is in one of them.

    Args:
        base: The model, in the state that it is to be read in.
        rows: Encoded examples.
        token_budget: Padded tokens in one forward pass.
        pad: Id of the padding token.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    device = next(base.parameters()).device
    for chosen in _batches([len(rows[i].input_ids) for i in order], token_budget):
        numbers = [order[i] for i in chosen]
        batch = collate([rows[i]._asdict() for i in numbers], pad=pad)
        labels = batch["labels"].to(device)
        answer = answers_of(labels)
        hidden = decode(base, batch["input_ids"].to(device), batch["attention_mask"].to(device))
        yield Answers(
            numbers, answer.sum(1).tolist(), hidden[:, :-1][answer], labels[:, 1:][answer]
        )


@torch.no_grad()
def constants(
    model: torch.nn.Module,
    rows: Sequence[Encoded],
    of_reference: OfReference,
    *,
    token_budget: int = 4096,
    pad: int = 0,
    progress: bool = False,
) -> list[Float[Tensor, "token k"]]:
    """What `of_reference` says of each row's answer tokens, in the rows' order, on the CPU.

    Args:
        model: The reference: before training, without an adapter or with it switched off.
        rows: All examples that will be trained on.
        of_reference: Numbers of each answer token.
        token_budget: Padded tokens in one forward pass.
        pad: Id of the padding token.
        progress: Show a bar.
    """
    found = [torch.empty(0)] * len(rows)
    head = head_of(model)
    with (
        adapter_off(model),
        evaluating(model),
        tqdm(total=len(rows), desc="reference", unit="row", disable=not progress) as bar,
    ):
        for one in answer_states(base_of(model), rows, token_budget=token_budget, pad=pad):
            numbers = of_reference(one.hidden, head, one.target).float().cpu()
            for row, part in zip(one.rows, numbers.split(one.counts), strict=True):
                found[row] = part.clone()  # not a view, which would keep the whole batch's
            bar.update(len(one.rows))
    return found


def _batches(lengths: Sequence[int], token_budget: int) -> list[range]:
    """Neighbours whose padded tokens stay within the budget."""
    found, start = [], 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or (end + 1 - start) * lengths[end] > token_budget:
            found.append(range(start, end))
            start = end
    return found
