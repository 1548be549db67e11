"""Greedy answers of a model whose residual stream is changed meanwhile, through any backend.

>>> greedy(open_editing(model, "nnsight"), rows, [edit], pad_id=0, stops=(1,), new_tokens=16)
"""

from collections.abc import Callable, Sequence

import torch

from probes.batches import in_batches, padded
from probes.blocks import position_ids
from probes.edits import Edit, EditingBackend, check_edits
from probes.models import ChatModel
from probes.rendering import Rendered


@torch.inference_mode()
def greedy(
    backend: EditingBackend,
    rows: Sequence[Rendered],
    edits: Sequence[Edit] = (),
    *,
    pad_id: int,
    stops: Sequence[int],
    new_tokens: int,
    token_budget: int = 4096,
    on_batch: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """The likeliest tokens after each prompt, without the one that ends the answer.

    Args:
        backend: The model.
        rows: Prompts; batches are of like length, padded on the left.
        edits: Changes of the residual stream; none for the model as it is.
        pad_id: Fills up short rows; masked, so any id of the vocabulary will do.
        stops: Tokens that end an answer.
        new_tokens: Longest answer (tokens).
        token_budget: Tokens of prompts and answers, padding included, in memory at a time. Halved
            whenever the accelerator is out of memory.
        on_batch: Called after each batch with the number of its prompts.

    Returns:
        Token ids, in the order of the rows.

    Raises:
        InputError: An edit that the model has no place for, or one prompt that is too large.
    """
    check_edits(edits, backend.n_layers, backend.d_model)
    made: list[list[int]] = [[] for _ in rows]

    def answer(batch: list[int]) -> None:
        answers = _batch(backend, [rows[i] for i in batch], edits, pad_id, stops, new_tokens)
        for i, one in zip(batch, answers, strict=True):
            made[i] = one

    in_batches(
        rows,
        answer,
        token_budget=token_budget,
        new_tokens=new_tokens,
        advice="give --dtype bfloat16",
        on_batch=on_batch,
    )
    return made


def _batch(
    backend: EditingBackend,
    rows: Sequence[Rendered],
    edits: Sequence[Edit],
    pad_id: int,
    stops: Sequence[int],
    new_tokens: int,
) -> list[list[int]]:
    new, mask = padded(rows, pad_id, "left")
    positions, past, columns = position_ids(mask), None, []
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(new_tokens):
        logits, past = backend.predict(new, mask, positions, past, edits)
        new = logits.argmax(-1, keepdim=True).cpu()
        columns.append(new)
        ended |= torch.isin(new[:, 0], torch.tensor(stops))
        if ended.all():
            break
        edits = [edit for edit in edits if edit.tokens == "all"]
        mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        positions = positions[:, -1:] + 1
    return [until(answer, stops) for answer in torch.cat(columns, dim=1).tolist()]


def stops_of(chat: ChatModel) -> list[int]:
    """Every token that ends a turn: some models have several."""
    known = getattr(chat.model.generation_config, "eos_token_id", None)
    ids = known if isinstance(known, list) else [known]
    return sorted({token for token in (*ids, chat.tokenizer.eos_token_id) if token is not None})


def until(ids: list[int], stops: Sequence[int]) -> list[int]:
    """The tokens before the first that ends a turn."""
    end = next((i for i, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]
