"""What a sweep reads of a model: each set's activations at every position, kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.markup import escape

from probes import models
from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.errors import InputError
from probes.hooks import LAST, Position
from probes.manifest import Manifest, cache_folder
from probes.models import ChatModel
from probes.prompts import PromptSet

if TYPE_CHECKING:
    from probes.layer_sweep import SweepConfig

SHOWN = 2
"""Of many texts that are read, how many are shown."""


def capture(
    chat: ChatModel, config: SweepConfig, sets: Sequence[PromptSet]
) -> dict[Position, dict[str, ActivationCache]]:
    """The activations of each set by its name, at every position by one forward pass.

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
    found: dict[Position, dict[str, ActivationCache]] = {one: {} for one in config.positions}
    for prompts in sets:
        described: dict[str, Any] = {
            "backend": backend,
            "hook_point": config.hook_point,
            "max_length": config.max_length or models.context_length(chat.model),
            "shard_size": config.shard_size,
            "token_budget": config.token_budget,
            "weights": weights,
        }
        manifests = [
            Manifest.of(chat, prompts, position=position, **described)
            for position in config.positions
        ]
        folders = {cache_folder(config.cache, manifest): manifest for manifest in manifests}
        for cache in ActivationCache.build_each(
            folders, chat, prompts, backend=backend, progress=True
        ):
            found[cache.manifest.position][prompts.name] = cache
    return found


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
