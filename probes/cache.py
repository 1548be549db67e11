"""ActivationCache: one position's activations at every layer, computed once and kept on disk.

    manifest.json                what the activations were made from
    index.parquet                a row a prompt: label, group, which tokens were read, where it lies
    shard-00000.safetensors ...  a tensor a layer [prompt, d_model], and the embedding

The files are written in this order, each by atomic rename, and depend on the manifest alone: a run
killed at any moment goes on at the first missing file and ends with the same bytes as one that
nobody disturbed. A cache costs d_model numbers a layer and prompt. Several positions are several
caches, each as if it were alone, which one run of the model fills (`ActivationCache.build_each`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from probes.backends import Backend
from probes.errors import InputError
from probes.filling import fill, pieces
from probes.hooks import EMBEDDING, LAST, HookPoint, Position, Site
from probes.index import read_index, write_index
from probes.manifest import Manifest, cache_folder
from probes.models import ChatModel
from probes.prompts import PromptSet
from probes.shards import (
    INDEX,
    MANIFEST,
    CacheError,
    Shards,
    make_folder,
    seen,
    write_atomically,
)

__all__ = ["ActivationCache", "CacheError", "Manifest", "cache_folder"]


class Block(NamedTuple):
    """Activations of consecutive prompts."""

    rows: slice
    """Which prompts, in the order of the prompt set."""
    activations: Float[Tensor, "prompt layer d_model"]
    """In the order of the layers asked for, in the dtype the model computed in."""


@dataclass(frozen=True)
class ActivationCache:
    """A complete cache on disk; nothing of it but the index is held in memory.

    Layer l is the hook point of block l, 0..n_layers-1. Activations are given in the dtype that
    the model computed in: bfloat16 stays bfloat16 until its reader converts it.
    """

    directory: Path
    manifest: Manifest

    @classmethod
    def build(
        cls,
        directory: Path | str,
        chat: ChatModel,
        prompts: PromptSet,
        *,
        backend: Backend,
        hook_point: HookPoint = "resid_post",
        position: Position = LAST,
        max_length: int | None = None,
        shard_size: int = 1024,
        token_budget: int = 4096,
        weights: str | None = None,
        progress: bool = False,
    ) -> "ActivationCache":
        """Compute what is missing of a cache, which may be all of it or nothing.

        Args:
            directory: The cache's folder; `cache_folder` names one for each manifest.
            chat: The model, its tokenizer and where they came from.
            prompts: What it reads.
            backend: What runs the model.
            hook_point: Where each block is read.
            position: Which tokens of each prompt are read.
            max_length: Tokens that a prompt may have before it is cut; None: never cut.
            shard_size: Prompts a shard: what is lost at most when a run is killed.
            token_budget: Padded tokens a batch.
            weights: `weights_fingerprint(chat.model)` if it is known, to save computing it.
            progress: Whether to show a bar over the prompts, with the time left.

        Raises:
            CacheError: If the folder holds another manifest's cache (the message names the field),
                a file in it is damaged, or it cannot be written. What was there is kept.
            InputError: If a value is out of its range, or a prompt has no such position.
        """
        manifest = Manifest.of(
            chat,
            prompts,
            backend=backend,
            hook_point=hook_point,
            position=position,
            max_length=max_length,
            shard_size=shard_size,
            token_budget=token_budget,
            weights=weights,
        )
        folders = {Path(directory): manifest}
        return cls.build_each(folders, chat, prompts, backend=backend, progress=progress)[0]

    @classmethod
    def build_each(
        cls,
        folders: Mapping[Path, Manifest],
        chat: ChatModel,
        prompts: PromptSet,
        *,
        backend: Backend,
        progress: bool = False,
    ) -> "list[ActivationCache]":
        """Compute what is missing of caches that differ in their position alone.

        The model reads each prompt once, whatever number of positions it is missing from; a shard
        of each of them is held in memory. Every cache ends with the bytes that `build` gives it.

        Args:
            folders: Each cache's folder and manifest, from `Manifest.of` with these same things.
            chat: As in `build`.
            prompts: As in `build`.
            backend: As in `build`.
            progress: As in `build`.

        Raises:
            CacheError: As in `build`.
            InputError: If a prompt lacks a position, or the manifests differ in more than that.
        """
        caches = cls.begin(folders, chat, prompts)
        shards = [cache.shards for cache in caches]
        fill(pieces(shards, prompts.prompts), chat, backend, progress)
        return caches

    @classmethod
    def begin(
        cls, folders: Mapping[Path, Manifest], chat: ChatModel, prompts: PromptSet
    ) -> "list[ActivationCache]":
        """All of `build_each` but the shards: folders, manifests, indices, and what is there read.

        Raises:
            CacheError: As in `build`.
            InputError: As in `build_each`.
        """
        caches = [cls(folder, manifest) for folder, manifest in folders.items()]
        if len({replace(manifest, position=LAST).hash for manifest in folders.values()}) != 1:
            raise InputError("caches that are built together may differ in their position alone")
        for cache in caches:
            make_folder(cache.directory)
            cache._claim()
            if not (cache.directory / INDEX).exists():
                write_index(cache.directory, cache.manifest, chat.tokenizer, prompts.prompts)
            cache._check()
        return caches

    @classmethod
    def begun(cls, folders: Mapping[Path, Manifest]) -> "list[ActivationCache]":
        """What another process has begun just now, to fill a part of it.

        Raises:
            CacheError: It is not to be seen from here.
        """
        caches = [cls(folder, manifest) for folder, manifest in folders.items()]
        for cache in caches:
            if not seen(cache.directory / INDEX):
                raise CacheError(
                    f"{cache.directory}: this process does not see the cache that the first one "
                    "has begun. --cache must lie on a disk that all machines share, and all must "
                    "have the same weights, tokenizer and releases of the libraries"
                )
            cache._claim()
        return caches

    @classmethod
    def open(cls, directory: Path | str) -> "ActivationCache":
        """Open a complete cache, without its model.

        Raises:
            CacheError: If there is none, it is damaged, or it is not complete.
        """
        cache = cls(Path(directory), _read_manifest(Path(directory) / MANIFEST))
        missing = len(cache.shards.missing())
        if missing:
            raise CacheError(
                f"{directory} is not complete: {missing} of {cache.manifest.n_shards} shards are "
                "missing. Run the command that began it again: it goes on where it stopped"
            )
        cache._check()
        return cache

    @property
    def shards(self) -> Shards:
        """The activations' files."""
        return Shards(self.directory, self.manifest)

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.manifest.n_prompts

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.manifest.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.manifest.d_model

    @cached_property
    def index(self) -> pd.DataFrame:
        """A row a prompt: id, label, source, group; its shard and row; the tokens that were read.

        `n_tokens` counts the rendered prompt, `token_id` is the token whose activations are kept,
        or the last of those whose mean is, `token_text` the text of them all, `truncated` tells
        whether the prompt was cut.

        Raises:
            CacheError: If the file is damaged.
        """
        return read_index(self.directory, self.manifest)

    def layer(self, layer: int) -> Float[Tensor, "prompt d_model"]:
        """Activations of all prompts after one block; reads that block's tensors only.

        Raises:
            CacheError: If a shard is damaged.
            IndexError: If there is no such layer.
        """
        return self._column(self._site(layer))

    def embedding(self) -> Float[Tensor, "prompt d_model"]:
        """What enters block 0. It is constant where all prompts end in the same token."""
        return self._column(EMBEDDING)

    def embedding_blocks(self) -> Iterator[Block]:
        """Stream the embedding, as one layer, shard by shard."""
        return self._stream([EMBEDDING])

    def blocks(self, layers: Sequence[int]) -> Iterator[Block]:
        """Stream some layers of all prompts, shard by shard, one shard in memory at a time.

        Raises:
            CacheError: If a shard is damaged.
            IndexError: If there is no such layer.
        """
        return self._stream([self._site(layer) for layer in layers])

    def _site(self, layer: int) -> Site:
        if not 0 <= layer < self.n_layers:
            raise IndexError(f"layer {layer} of a model with layers 0..{self.n_layers - 1}")
        return Site(self.manifest.hook_point, layer)

    def _stream(self, sites: Sequence[Site]) -> Iterator[Block]:
        for shard in range(self.manifest.n_shards):
            yield Block(self.manifest.rows(shard), self.shards.read(shard, sites))

    def _column(self, site: Site) -> Float[Tensor, "prompt d_model"]:
        column = torch.empty(0)
        for rows, block in self._stream([site]):
            if rows.start == 0:
                column = block.new_empty((self.n_prompts, self.d_model))
            column[rows] = block[:, 0]
        return column

    def _claim(self) -> None:
        """Write the manifest, or find that this one's cache is what the folder holds."""
        path = self.directory / MANIFEST
        if not path.exists():
            write_atomically(path, self.manifest.to_json().encode())
            return
        different = _read_manifest(path).differences(self.manifest)
        if different:
            raise CacheError(
                f"{self.directory} holds the activations of something else. In the cache here and "
                f"in what is asked for there: {'; '.join(different)}. Give another folder, or "
                "delete this one"
            )

    def _check(self) -> None:
        """Read the index and the headers of the shards that are there."""
        _ = self.index
        for shard in set(range(self.manifest.n_shards)).difference(self.shards.missing()):
            self.shards.check(shard)


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({error.strerror}): is it a cache?") from error
    except ValueError as error:
        raise CacheError(
            f"{path} is no manifest of this version ({error}): delete the folder to have the cache "
            "computed anew, or give another one"
        ) from error
