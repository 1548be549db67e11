"""Activations as a probe sees them: standardised on its training rows, one layer or pooled.

The scaler is fitted once a training split; the inner folds that choose C share their split's.
Whatever is linear in the features is linear in the activations: `Features.fold` says which.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float64
from numpy import ndarray
from torch import Tensor

from probes.solver import Design

Pooling = Literal["mean", "concat"]

MEMORY = 2**28
"""Bytes that a fit may hold of one thing (activations, features, a square matrix), and it holds a
few; what is larger is streamed from its source."""

ROWS, NUMBERS = 1024, 2**20
"""Most rows, and most numbers, to compute with at a time: float64 copies of them are several."""


@runtime_checkable
class Layers(Protocol):
    """Activations of prompts at every layer, wherever they lie."""

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        ...

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        ...

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        ...

    def blocks(
        self, layers: Sequence[int]
    ) -> Iterator[tuple[slice, Float[Tensor, "prompt layer d_model"]]]:
        """Stream some layers of all prompts, in the prompts' order."""
        ...


@dataclass(frozen=True)
class Stacked:
    """Activations held in memory."""

    activations: Float[Tensor, "prompt layer d_model"]

    @property
    def n_prompts(self) -> int:
        """Number of prompts."""
        return self.activations.shape[0]

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return self.activations.shape[1]

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.activations.shape[2]

    def layer(self, layer: int) -> Float[Tensor, "prompt d_model"]:
        """All prompts at one layer."""
        return self.activations[:, layer]

    def blocks(
        self, layers: Sequence[int]
    ) -> Iterator[tuple[slice, Float[Tensor, "prompt layer d_model"]]]:
        """Some prompts at a time, so that a fit's copies stay small."""
        for rows in _slices(self.n_prompts, ROWS):
            yield rows, self.activations[rows][:, list(layers)]


def pieces(
    acts: Layers, layers: Sequence[int]
) -> Iterator[tuple[slice, Float[Tensor, "prompt layer d_model"]]]:
    """`acts.blocks`, cut to at most `NUMBERS`: a shard of a large model is many times that."""
    for rows, block in acts.blocks(layers):
        step = max(NUMBERS // block.shape[1:].numel(), 1)
        for part in _slices(len(block), step):
            yield slice(rows.start + part.start, rows.start + part.stop), block[part]


class Scaler(NamedTuple):
    """Per layer and feature, over the training rows."""

    mean: Float64[Tensor, "layer d_model"]
    inverse: Float64[Tensor, "layer d_model"]
    """1 / standard deviation (population); 0 for a constant feature, which thus weighs nothing."""

    @classmethod
    def of(cls, acts: Layers, layers: Sequence[int], train: Bool[Tensor, "prompt"]) -> "Scaler":
        """One pass over the activations."""
        shift = total = squares = None
        for rows, block in pieces(acts, layers):
            x = block[train[rows]].double()
            if not len(x):
                continue
            # From the first row, a constant feature has a variance of exactly 0.
            shift = x[0] if shift is None else shift
            x = x - shift
            total = x.sum(0) if total is None else total + x.sum(0)
            squares = x.square().sum(0) if squares is None else squares + x.square().sum(0)
        assert shift is not None and total is not None and squares is not None
        n = int(train.sum())
        variance = squares / n - (total / n).square()
        # Below this, the variance is the rounding of the sums.
        varies = variance > 1e-14 * squares / n
        return cls(shift + total / n, torch.where(varies, variance, torch.inf).rsqrt())


class Rotated(NamedTuple):
    """Features as the solver takes them, and the way back."""

    design: Design
    weight: Callable[[Float64[Tensor, "axis column"]], Float64[Tensor, "feature column"]]
    """Turns the solver's weights into weights on the features."""


@dataclass(frozen=True)
class Features:
    """Features of the training rows of one split."""

    acts: Layers
    layers: tuple[int, ...]
    pooling: Pooling
    """`mean` over the standardised layers, or their `concat`enation over sqrt(number of layers):
    either way the row's length does not grow with their number, so that one grid of C serves."""
    train: Bool[Tensor, "prompt"]
    scaler: Scaler

    @classmethod
    def of(
        cls, acts: Layers, layers: Sequence[int], train: Bool[ndarray, "prompt"], pooling: Pooling
    ) -> "Features":
        """Fit the scaler."""
        rows = torch.from_numpy(train)
        return cls(acts, tuple(layers), pooling, rows, Scaler.of(acts, layers, rows))

    @property
    def size(self) -> int:
        """Features a row."""
        return self.acts.d_model * (1 if self.pooling == "mean" else len(self.layers))

    @property
    def n(self) -> int:
        """Training rows."""
        return int(self.train.sum())

    def blocks(self) -> Iterator[tuple[slice, Float64[Tensor, "row feature"]]]:
        """The training rows' features, in the blocks that the activations come in."""
        return self._stream(slice(None))

    def _stream(self, which: slice) -> Iterator[tuple[slice, Float64[Tensor, "row feature"]]]:
        """`blocks` of some of the layers."""
        start = 0
        whole = self.pooling == "mean"
        mean, inverse = self.scaler.mean[which], self.scaler.inverse[which]
        scale = inverse if whole else inverse / len(self.layers) ** 0.5
        for rows, block in pieces(self.acts, self.layers[which]):
            x = block[self.train[rows]].double().sub_(mean).mul_(scale)
            x = x.mean(1) if whole else x.flatten(1)
            yield slice(start, start + len(x)), x
            start += len(x)

    def _columns(self) -> Iterator[Float64[Tensor, "row feature"]]:
        """All training rows, a layer's features at a time where they are concatenated."""
        whole = self.pooling == "mean"
        for which in [slice(None)] if whole else [slice(i, i + 1) for i in range(len(self.layers))]:
            yield torch.cat([x for _, x in self._stream(which)])

    def fold(
        self, weight: Float64[Tensor, "feature"], bias: float
    ) -> tuple[Float[Tensor, "layer d_model"], float]:
        """The same function on raw activations: sum_l <w_l, a_l> + b.

        The weight is rounded to float32 before the bias is computed, so that what is rounded is
        the deviation from the mean of the training rows, not the much larger mean itself.
        """
        if self.pooling == "mean":
            share = (weight / len(self.layers)).expand_as(self.scaler.mean)
        else:
            share = weight.reshape(self.scaler.mean.shape) / len(self.layers) ** 0.5
        raw = (share * self.scaler.inverse).float()
        return raw, bias - float((raw.double() * self.scaler.mean).sum())

    def design(self, memory: int = MEMORY) -> Rotated:
        """The rows for the solver, along their principal axes, held if they fit into `memory`.

        n rows of at least n features are n numbers each, by the eigenvectors of their Gram matrix,
        gathered a layer at a time. Fewer features are rotated by those of their covariance, or,
        where even they do not fit, streamed as they are at every pass.

        Args:
            memory: Bytes.
        """
        if self.n <= self.size and 8 * self.n**2 <= memory:
            return self._by_gram()
        if 8 * self.n * self.size <= memory:
            z = torch.empty(self.n, self.size, dtype=torch.float64)
            for rows, x in self.blocks():
                z[rows] = x
            curvature, rotation = _principal(z.T @ z)
            for rows in _slices(self.n, ROWS):
                z[rows] = z[rows] @ rotation
            return Rotated(_held(z, curvature), rotation.mm)
        axes: Tensor | None = None
        if 8 * self.size**2 <= memory:
            curvature, axes = _principal(_sum(x.T @ x for _, x in self.blocks()))
        else:
            curvature = _sum(x.square().sum(0) for _, x in self.blocks())
        radius = max(_radius(x) for _, x in self.blocks())
        return Rotated(Design(self.blocks, curvature, radius, axes), lambda weight: weight)

    def _by_gram(self) -> Rotated:
        values, vectors = _principal(_sum(x @ x.T for x in self._columns()))
        kept = values > 1e-13 * values[-1]
        values, vectors = values[kept], vectors[:, kept]

        def weight(along_axes: Tensor) -> Tensor:
            dual = vectors @ (along_axes / values.sqrt()[:, None])
            return torch.cat([x.T @ dual for x in self._columns()])

        return Rotated(_held(vectors * values.sqrt(), values), weight)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return reduce(Tensor.add_, tensors)


def _principal(symmetric: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(symmetric)
    return values.clamp_min(0), vectors


def _held(z: Tensor, curvature: Tensor) -> Design:
    rows = list(_slices(len(z), ROWS))
    return Design(
        lambda: ((part, z[part]) for part in rows),
        curvature,
        max(_radius(z[part]) for part in rows),
    )


def _slices(n: int, step: int) -> Iterator[slice]:
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))


def _radius(z: Tensor) -> float:
    """Length of the longest row; 0 without any."""
    return max(z.square().sum(1).sqrt().tolist(), default=0.0)
