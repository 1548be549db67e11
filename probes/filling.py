"""Filling caches: one run of the model over the prompts for all positions that lack a shard."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from probes.backends import Backend
from probes.capture import capture_rows, capture_spans, pad_id
from probes.hooks import LAST
from probes.models import ChatModel, render
from probes.positions import Locator
from probes.prompts import Prompt
from probes.shards import Shards


def fill(
    caches: Sequence[Shards],
    chat: ChatModel,
    prompts: Sequence[Prompt],
    backend: Backend,
    progress: bool,
) -> None:
    """Compute the missing shards.

    Args:
        caches: Where they go: caches whose manifests differ in their position alone.
        chat: The model and its tokenizer.
        prompts: What it reads; rendered a shard at a time, and not kept.
        backend: What runs the model.
        progress: Whether to show a bar over the prompts, with the time left.

    Raises:
        InputError: If a prompt lacks a position.
        CacheError: If a shard cannot be written. Those that are there are kept.
    """
    every = caches[0].manifest
    missing = sorted({shard for cache in caches for shard in cache.missing()})
    if not missing:
        return
    locator = Locator(chat.tokenizer)
    there = every.n_prompts - sum(len(prompts[every.rows(shard)]) for shard in missing)
    with tqdm(
        total=every.n_prompts,
        initial=there,
        desc=f"{every.model}: activations",
        unit="prompt",
        disable=not progress,
    ) as bar:
        for shard in missing:
            chunk = prompts[every.rows(shard)]
            # Another build of these caches may have been faster.
            lacking = [cache for cache in caches if not cache.path(shard).exists()]
            if not lacking:
                bar.update(len(chunk))
                continue
            captured = _captured(lacking, chunk, locator, backend, bar.update)
            for cache in lacking:
                # Handed over, not kept: `write` frees it before it encodes its own copy.
                cache.write(shard, captured.pop(0))


def _captured(
    caches: Sequence[Shards],
    prompts: Sequence[Prompt],
    locator: Locator,
    backend: Backend,
    on_batch: Callable[[int], None],
) -> list[Float[Tensor, "prompt site d_model"]]:
    """A shard of each cache, from one run of the model."""
    every = caches[0].manifest
    tokenizer = locator.tokenizer
    rows = [render(tokenizer, one.messages, max_length=every.max_length) for one in prompts]
    pad, budget = pad_id(tokenizer), every.token_budget
    positions = [cache.manifest.position for cache in caches]
    if positions == [LAST]:
        return [
            capture_rows(
                backend, rows, every.sites, pad_id=pad, token_budget=budget, on_batch=on_batch
            )
        ]
    spans = [
        locator.spans(one.messages, row, positions) for one, row in zip(prompts, rows, strict=True)
    ]
    return list(
        capture_spans(
            backend, rows, spans, every.sites, pad_id=pad, token_budget=budget, on_batch=on_batch
        )
    )
