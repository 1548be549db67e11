"""Synthetic activations with a known answer."""

from typing import NamedTuple

import numpy as np
import torch
from numpy import ndarray

from probes.probe import Folds, Stacked


class Planted(NamedTuple):
    acts: Stacked
    labels: ndarray
    groups: ndarray
    folds: Folds


def planted(
    n: int = 200,
    layers: int = 3,
    d_model: int = 12,
    *,
    gap: float = 2.0,
    at: int = 1,
    seed: int = 0,
) -> Planted:
    """Correlated features of power-law spectrum, far from 0; one layer tells the classes apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    spectrum = torch.arange(1, d_model + 1) ** -0.7
    mixing = torch.linalg.qr(torch.randn(layers, d_model, d_model, generator=generator))[0]
    x = torch.randn(n, layers, d_model, generator=generator) * spectrum
    x[:, at, 0] += gap * (labels - 0.5)
    x = torch.einsum("pld,lde->ple", x, mixing) + 5 * torch.randn(
        layers, d_model, generator=generator
    )
    groups = np.arange(n).astype(str)
    return Planted(Stacked(x), labels.numpy(), groups, Folds.of(labels.numpy(), groups, seed=seed))


class Sharded(Stacked):
    """The same, given in blocks, as a cache on disk does."""

    size = 37

    def blocks(self, layers):
        for start in range(0, self.n_prompts, self.size):
            rows = slice(start, min(start + self.size, self.n_prompts))
            yield rows, self.activations[rows][:, list(layers)]


class WithEmbedding(Stacked):
    """A constant last token: its embedding tells nothing."""

    def embedding_blocks(self):
        yield slice(0, self.n_prompts), torch.full((self.n_prompts, 1, self.d_model), 0.1)
