"""Activations of the last input token, or at other positions, batch by batch.

    >>> from probes.capture import capture
    >>> capture(model, tokenizer, ["How do I open the vault?"])   # [prompt, layer, d_model]

`model`, which a notebook holds, is a transformers model, a `TransformerBridge` or an nnsight
`LanguageModel`.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.backends import Backend, PackingBackend, open_backend
from probes.batches import in_batches, in_packs, padded
from probes.errors import InputError
from probes.hooks import LAST, HookPoint, Position, Site, check_position, sites
from probes.packing import pack
from probes.positions import Locator, Span
from probes.prompts import Message
from probes.rendering import Rendered, render

# Tokens of all prompts below which it is not looked into whether they can be packed.
WORTH_PACKING = 512
ADVICE = (
    "give a smaller --max-length or --dtype bfloat16, or spread the model with --device-map auto"
)


def capture(
    model: object,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[Message]],
    *,
    hook_point: HookPoint = "resid_post",
    position: Position = LAST,
    layers: Sequence[int] | None = None,
    max_length: int | None = None,
    token_budget: int = 4096,
) -> Float[Tensor, "prompt layer d_model"]:
    """Activations of each prompt, at the last input token unless another position is asked for.

    Args:
        model: A transformers model, a `TransformerBridge` or an nnsight `LanguageModel`, as it is.
        tokenizer: The model's own, with its chat template. It is not changed.
        prompts: Texts of one user turn, or whole chats.
        hook_point: Where in each block to read.
        position: Which tokens to read; of several the mean. See `probes.positions`.
        layers: Blocks to read, from 0; None for all.
        max_length: Longest rendered prompt (tokens); see `probes.rendering.render`.
        token_budget: Tokens in one forward pass; see `capture_rows`.

    Returns:
        On the CPU, in the model's dtype; layers in the order given.

    Raises:
        InputError: There are no prompts, the model has no such layer or hook point, or a prompt has
            no such position.
    """
    check_position(position)
    backend = open_backend(model)
    chats = [
        [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    rows = [render(tokenizer, chat, max_length=max_length) for chat in chats]
    wanted = sites(hook_point, range(backend.n_layers) if layers is None else layers)
    pad = pad_id(tokenizer)
    if position == LAST:
        return capture_rows(backend, rows, wanted, pad_id=pad, token_budget=token_budget)
    locate = Locator(tokenizer).spans
    spans = [locate(chat, row, [position]) for chat, row in zip(chats, rows, strict=True)]
    (captured,) = capture_spans(backend, rows, spans, wanted, pad_id=pad, token_budget=token_budget)
    return captured


def capture_rows(
    backend: Backend,
    rows: Sequence[Rendered],
    sites: Sequence[Site],
    *,
    pad_id: int,
    token_budget: int = 4096,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "prompt site d_model"]:
    """Read the last input token of rendered prompts.

    Prompts are packed into one row, without padding, and what several begin with is computed once
    (`probes.packing`), if the model reads them so as it does one by one (`probes.packable`). Else
    they are read in batches of like length, padded on the right.

    Args:
        backend: The model.
        rows: What it reads.
        sites: Hook points to keep.
        pad_id: Fills up short rows; masked, so any id of the vocabulary will do.
        token_budget: Tokens that one forward pass computes, padding included; a longer row runs
            alone. Halved whenever the accelerator is out of memory. On a CPU passes end sooner.
        on_batch: Called after each batch with the number of its prompts.

    Returns:
        In the order of `rows`, on the CPU, in the model's dtype.

    Raises:
        InputError: There are no rows, or a single one does not fit into memory.
    """
    positions = torch.tensor([row.position for row in rows], dtype=torch.long)
    return _captured(backend, rows, positions, sites, pad_id, token_budget, on_batch)


def capture_spans(
    backend: Backend,
    rows: Sequence[Rendered],
    spans: Sequence[Sequence[Span]],
    sites: Sequence[Site],
    *,
    pad_id: int,
    token_budget: int = 4096,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[Float[Tensor, "prompt site d_model"], ...]:
    """Read several positions of rendered prompts in one forward pass, in the same batches.

    Args:
        backend: The model.
        rows: What it reads.
        spans: Of each prompt the tokens of each position; `probes.positions.Locator` finds them.
        sites: Hook points to keep.
        pad_id: As in `capture_rows`.
        token_budget: As in `capture_rows`.
        on_batch: As in `capture_rows`.

    Returns:
        The means, a tensor a position, as in `capture_rows`. Each is the same to the last bit
        whatever other positions are read beside it.

    Raises:
        InputError: As in `capture_rows`.
    """
    columns = [[tuple(span) for span in of_row] for of_row in spans]
    positions = torch.tensor(columns, dtype=torch.long)
    return _captured(backend, rows, positions, sites, pad_id, token_budget, on_batch).unbind(2)


def _captured(
    backend: Backend,
    rows: Sequence[Rendered],
    positions: Int[Tensor, "prompt"] | Int[Tensor, "prompt position 2"],
    sites: Sequence[Site],
    pad_id: int,
    token_budget: int,
    on_batch: Callable[[int], None] | None,
) -> Float[Tensor, "prompt site *position d_model"]:
    """Read packed batches where the model allows it, and batches of like length where not."""
    if not rows:
        raise InputError("there are no prompts to read")
    captured: Tensor | None = None

    def keep(batch: list[int], read: Tensor) -> None:
        nonlocal captured
        if captured is None:
            captured = read.new_empty(len(rows), *read.shape[1:])
        captured[batch] = read

    limit = _packable(backend, rows)
    packed = [i for i, row in enumerate(rows) if len(row.ids) <= limit]
    longer = [i for i, row in enumerate(rows) if len(row.ids) > limit]
    if longer:

        def capture_padded(places: list[int]) -> None:
            batch = [longer[i] for i in places]
            ids, mask = padded([rows[i] for i in batch], pad_id, "right")
            keep(batch, backend.capture(ids, mask, positions[batch], sites))

        in_batches(
            [rows[i] for i in longer],
            capture_padded,
            token_budget=token_budget,
            advice=ADVICE,
            on_batch=on_batch,
        )
    if packed:
        assert isinstance(backend, PackingBackend)

        def capture_packed(places: list[int]) -> None:
            batch = [packed[i] for i in places]
            one = pack([rows[i] for i in batch])
            keep(batch, backend.capture_packed(one, positions[batch], sites))

        in_packs(
            [rows[i] for i in packed],
            capture_packed,
            token_budget=token_budget,
            enough=backend.enough,
            advice=ADVICE,
            on_batch=on_batch,
        )
    assert captured is not None
    return captured


def _packable(backend: Backend, rows: Sequence[Rendered]) -> int:
    """Length of the longest prompt that is packed. To find out costs two runs of a few tokens."""
    lengths = [len(row.ids) for row in rows]
    if not isinstance(backend, PackingBackend) or sum(lengths) < WORTH_PACKING:
        return 0
    return backend.packable(max(lengths))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """An id to fill rows up with; padding is masked, so that a tokenizer may well have none."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(int(token) for token in known if token is not None)
