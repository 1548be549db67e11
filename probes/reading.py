"""What a sweep reads of a model: each set's activations at every position, kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from probes import models
from probes.backends import Backend, open_backend
from probes.cache import ActivationCache, CacheError
from probes.errors import InputError
from probes.filling import Piece, fill, pieces
from probes.hooks import LAST, Position
from probes.manifest import Manifest, cache_folder
from probes.models import ChatModel
from probes.prompts import PromptSet
from probes.ranks import ALONE, Ranks, deal, uneven
from probes.shards import seen

if TYPE_CHECKING:
    from probes.layer_sweep import SweepConfig

SHOWN = 2
"""Of many texts that are read, how many are shown."""

log = logging.getLogger(__name__)


def capture(
    chat: ChatModel, config: SweepConfig, sets: Sequence[PromptSet], ranks: Ranks = ALONE
) -> dict[Position, dict[str, ActivationCache]]:
    """The activations of each set by its name, at every position by one forward pass.

    The shards are dealt to the processes by their tokens; each has the same bytes whoever computes
    it. The first process begins every cache, and returns when all are whole.

    Raises:
        InputError: The model cannot be read so, or there is no layer to export of that number.
    """
    backend = open_backend(
        chat.model, config.backend, remote=config.remote, revision=config.revision
    )
    for option, layer in (("export", config.export), *(("also", one) for one in config.also)):
        if layer.isdecimal() and int(layer) >= backend.n_layers:
            raise InputError(
                f"--{option} {layer}: {chat.name} has the layers 0 to {backend.n_layers - 1}"
            )
    weights = models.weights_fingerprint(chat.model)
    described: dict[str, Any] = {
        "backend": backend,
        "hook_point": config.hook_point,
        "max_length": config.max_length or models.context_length(chat.model),
        "shard_size": config.shard_size,
        "token_budget": config.token_budget,
        "weights": weights,
    }
    found: dict[Position, dict[str, ActivationCache]] = {one: {} for one in config.positions}
    work: list[Piece] = []
    with ranks.first_goes_first():
        for prompts in sets:
            manifests = [
                Manifest.of(chat, prompts, position=position, **described)
                for position in config.positions
            ]
            folders = {cache_folder(config.cache, manifest): manifest for manifest in manifests}
            if ranks.first:
                caches = ActivationCache.begin(folders, chat, prompts)
            else:
                caches = ActivationCache.begun(folders)
            for cache in caches:
                found[cache.manifest.position][prompts.name] = cache
            work += pieces([cache.shards for cache in caches], prompts.prompts)
    _share(work, found, chat, backend, ranks)
    return found


def _share(
    work: Sequence[Piece],
    found: Mapping[Position, Mapping[str, ActivationCache]],
    chat: ChatModel,
    backend: Backend,
    ranks: Ranks,
) -> None:
    """Fill the caches together, and tell who has done what."""
    if ranks.size == 1:
        fill(work, chat, backend, progress=True)
        return
    owner = [0] * len(work)
    if ranks.first:
        costs = _tokens(work, found)
        owner = deal(costs, ranks.size)
        if uneven(costs, owner, ranks.size):
            log.info("%d shards are too few for %d processes to share evenly: a smaller "
                     "--shard-size takes less time", len(work), ranks.size)  # fmt: skip
    owner = ranks.agreed(owner)
    mine = [piece for piece, rank in zip(work, owner, strict=True) if rank == ranks.rank]
    done = fill(mine, chat, backend, progress=ranks.first)
    log.info(
        "rank %d of %d: %d of %d shards of %s%s", ranks.rank, ranks.size, len(done), len(work),
        chat.name, "".join(f"\n  {cache.path(one.shard)}" for one in done for cache in one.caches),
    )  # fmt: skip
    ranks.wait()
    paths = [cache.path(one.shard) for one in work for cache in one.caches]
    if ranks.first and (lost := [path for path in paths if not seen(path)]):
        raise CacheError(
            f"{lost[0]}: another process has written it, but it is not to be seen from here: "
            "--cache must lie on a disk that all machines share"
        )


def _tokens(
    work: Sequence[Piece], found: Mapping[Position, Mapping[str, ActivationCache]]
) -> list[int]:
    """What each shard costs: its tokens, as the index counts them; 0 for what is there already."""
    by_shard = [
        cache.index.groupby("shard")["n_tokens"].sum()
        for cache in next(iter(found.values())).values()
    ]
    costs = [int(tokens) for one in by_shard for tokens in one]
    return [tokens if one.lacking else 0 for tokens, one in zip(costs, work, strict=True)]


def say(caches: Sequence[ActivationCache], console: Console) -> None:
    """The text of the tokens read, for anyone to see that they are the right ones."""
    index = pd.concat([cache.index for cache in caches])
    manifest = caches[0].manifest
    read = index.groupby(["token_id", "token_text"])["truncated"].agg(["size", "sum"])
    shown, where = read, "the last input token"
    if manifest.position != LAST:  # there may be as many texts as prompts: the most frequent tell
        shown, where = read.nlargest(SHOWN, "size"), manifest.position
    for (token, text), (n, cut) in zip(shown.index, shown.to_numpy(), strict=True):
        text = repr(text if len(text) <= 60 else f"{text[:60]}...")
        console.print(
            f"  reads {manifest.hook_point} at {where} {escape(text)} (id {token}) of {n} prompts"
            f"{_shortened(cut)}"
        )
    if len(read) > len(shown):
        others = read["size"].sum() - shown["size"].sum()
        console.print(f"  and {len(read) - len(shown)} other texts of {others} prompts")


def _shortened(n: int) -> str:
    return f", {n} of them shortened to --max-length" if n else ""
