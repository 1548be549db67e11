"""Filling caches: one run of the model over the prompts for all positions that lack a shard.

While an accelerator reads a shard, a thread beside it renders the next one and writes the last one:
one thread, so that at most one shard waits to be written. A CPU does one after the other, for both
would want the same cores.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from probes.backends import Backend
from probes.capture import capture_rows, capture_spans, pad_id
from probes.hooks import LAST
from probes.models import ChatModel, render
from probes.positions import Locator, Span
from probes.prompts import Prompt
from probes.rendering import Rendered
from probes.shards import Shards


class Piece(NamedTuple):
    """One shard of a prompt set, in each of its caches: what one process does at a time."""

    caches: Sequence[Shards]
    """Their manifests differ in their position alone."""
    prompts: Sequence[Prompt]
    """The whole set."""
    shard: int

    @property
    def chunk(self) -> Sequence[Prompt]:
        """The prompts of the shard."""
        return self.prompts[self.caches[0].manifest.rows(self.shard)]

    @property
    def lacking(self) -> list[Shards]:
        """The caches that do not have it yet."""
        return [cache for cache in self.caches if not cache.path(self.shard).exists()]


def pieces(caches: Sequence[Shards], prompts: Sequence[Prompt]) -> list[Piece]:
    """All shards of a prompt set."""
    return [Piece(caches, prompts, shard) for shard in range(caches[0].manifest.n_shards)]


def fill(pieces: Sequence[Piece], chat: ChatModel, backend: Backend, progress: bool) -> list[Piece]:
    """Compute those of some shards that are missing.

    Args:
        pieces: Shards of any number of prompt sets, of one model's activations.
        chat: The model and its tokenizer.
        backend: What runs the model.
        progress: Whether to show a bar over the prompts, with the time left.

    Returns:
        What was missing, and is there now.

    Raises:
        InputError: If a prompt lacks a position.
        CacheError: If a shard cannot be written. Those that are there are kept.
    """
    missing = [piece for piece in pieces if piece.lacking]
    if not missing:
        return []
    locator = Locator(chat.tokenizer)
    total = sum(len(piece.chunk) for piece in pieces)
    there = total - sum(len(piece.chunk) for piece in missing)
    with (
        tqdm(
            total=total,
            initial=there,
            desc=f"{chat.name}: activations",
            unit="prompt",
            disable=not progress,
        ) as bar,
        ThreadPoolExecutor(1) if runs_elsewhere(chat) else _AtOnce() as beside,
    ):
        ready, written = beside.submit(_asked, missing[0], locator), None
        for piece, after in zip(missing, [*missing[1:], None], strict=True):
            asked = ready.result()
            if after is not None:
                ready = beside.submit(_asked, after, locator)
            # Another build of these caches may have been faster.
            if lacking := piece.lacking:
                captured = _captured(lacking, asked, backend, pad_id(chat.tokenizer), bar.update)
                _finish(written)
                written = beside.submit(_write, lacking, piece.shard, captured)
                del captured  # handed over, not kept
            else:
                bar.update(len(piece.chunk))
        _finish(written)
    return missing


def runs_elsewhere(chat: ChatModel) -> bool:
    """Whether this process's cores wait while the model runs: on an accelerator, or remotely."""
    return chat.model.device.type != "cpu"


class _AtOnce(Executor):
    """Does what it is given when it is given."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """Give the result, or raise what goes wrong."""
        done: Future[Any] = Future()
        done.set_result(work(*args, **options))
        return done


class _Asked(NamedTuple):
    """What the model is to read of a shard."""

    rows: list[Rendered]
    spans: dict[str, list[Span]]
    """Of each position the tokens of each prompt; not of the last input token."""


def _asked(piece: Piece, locator: Locator) -> _Asked:
    """Render a shard's prompts, and find the positions that its caches lack."""
    chunk, lacking = piece.chunk, piece.lacking
    limit = piece.caches[0].manifest.max_length
    rows = [render(locator.tokenizer, one.messages, max_length=limit) for one in chunk]
    positions = [cache.manifest.position for cache in lacking]
    if not lacking or positions == [LAST]:
        return _Asked(rows, {})
    found = [
        locator.spans(one.messages, row, positions) for one, row in zip(chunk, rows, strict=True)
    ]
    return _Asked(rows, dict(zip(positions, map(list, zip(*found, strict=True)), strict=True)))


def _captured(
    caches: Sequence[Shards],
    asked: _Asked,
    backend: Backend,
    pad: int,
    on_batch: Callable[[int], None],
) -> list[Float[Tensor, "prompt site d_model"]]:
    """A shard of each cache, from one run of the model."""
    every, budget = caches[0].manifest, caches[0].manifest.token_budget
    positions = [cache.manifest.position for cache in caches]
    if positions == [LAST]:
        return [
            capture_rows(
                backend, asked.rows, every.sites, pad_id=pad, token_budget=budget, on_batch=on_batch
            )
        ]
    spans = list(zip(*(asked.spans[position] for position in positions), strict=True))
    return list(
        capture_spans(
            backend, asked.rows, spans, every.sites, pad_id=pad, token_budget=budget,
            on_batch=on_batch,
        )
    )  # fmt: skip


def _write(
    caches: Sequence[Shards], shard: int, captured: list[Float[Tensor, "prompt site d_model"]]
) -> None:
    """A shard of each cache to the disk."""
    for cache in caches:
        # Handed over, not kept: `write` frees it before it encodes its own copy.
        cache.write(shard, captured.pop(0))


def _finish(writing: Future[None] | None) -> None:
    """Wait until a shard is on the disk; raises what went wrong."""
    if writing is not None:
        writing.result()
