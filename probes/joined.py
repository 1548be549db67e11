"""Several sets' activations as one set's, without computing or storing them anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from numpy import ndarray
from torch import Tensor

from probes.cache import ActivationCache
from probes.prompts import PromptSet
from probes.tasks import first_of_their_ids


@dataclass(frozen=True)
class Joined:
    """The caches of one model, one after the other, each without the rows that are left out."""

    parts: tuple[ActivationCache, ...]
    keep: tuple[Bool[ndarray, "_"], ...]
    """Rows of each part."""

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return sum(int(keep.sum()) for keep in self.keep)

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.parts[0].n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.parts[0].d_model

    def blocks(
        self, layers: Sequence[int]
    ) -> Iterator[tuple[slice, Float[Tensor, "prompt layer d_model"]]]:
        """Stream some layers of all prompts, shard by shard."""
        return self._kept(part.blocks(layers) for part in self.parts)

    def embedding_blocks(self) -> Iterator[tuple[slice, Float[Tensor, "prompt 1 d_model"]]]:
        """Stream the embedding, as one layer, shard by shard."""
        return self._kept(part.embedding_blocks() for part in self.parts)

    def _kept(
        self, streams: Iterable[Iterable[tuple[slice, Tensor]]]
    ) -> Iterator[tuple[slice, Tensor]]:
        start = 0
        for stream, keep in zip(streams, self.keep, strict=True):
            for rows, block in stream:
                kept = block[torch.from_numpy(keep[rows])]
                yield slice(start, start + len(kept)), kept
                start += len(kept)


def activations(
    sets: Sequence[PromptSet], caches: Mapping[str, ActivationCache]
) -> ActivationCache | Joined:
    """Of several sets' prompts, each counting once; a single set's cache is itself."""
    parts = tuple(caches[one.name] for one in sets)
    return parts[0] if len(parts) == 1 else Joined(parts, tuple(first_of_their_ids(sets)))
