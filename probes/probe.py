"""Fit linear probes: L2 logistic regression per layer or pooled over layers, and class means.

    >>> folds = Folds.of(prompts.labels, prompts.groups)
    >>> scored = cross_validate(cache, prompts.labels, folds, readout="layer", layers=[12])
    >>> probe = fit(cache, prompts.labels, folds, readout="layer", layers=[12])
    >>> probe.logits(other_cache)

Every readout ends as one linear map on raw activations, sum_l <w_l, a_l> + b; scaler and pooling
are folded into it. C is chosen inside each training split by the mean log-loss of its inner folds,
for a probability is what the probe will be asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy import ndarray
from torch import Tensor

from probes.errors import InputError
from probes.features import MEMORY, Features, Layers, Pooling, Stacked, pieces
from probes.folds import Folds
from probes.metrics import auroc
from probes.tuning import Tuned, tune

__all__ = ["CrossValidated", "Folds", "Layers", "LinearReadout", "Stacked", "cross_validate", "fit"]

Readout = Literal["layer", "pooled-mean", "pooled-concat", "class-mean", "embedding"]

CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@runtime_checkable
class Embedded(Protocol):
    """Activations that come with what enters the first block."""

    def embedding_blocks(self) -> Iterator[tuple[slice, Float[Tensor, "prompt 1 d_model"]]]:
        """Stream what enters block 0, in the prompts' order."""
        ...


@dataclass(frozen=True)
class LinearReadout:
    """A fitted probe: logit = sum_l <w_l, a_l> + b on raw activations."""

    readout: Readout
    layers: tuple[int, ...]
    """Blocks read; empty for the embedding."""
    weight: Float[Tensor, "layer d_model"]
    """float32."""
    bias: float
    C: float | None
    """Chosen inverse strength of the penalty; None for class means."""

    def logits(self, acts: Layers) -> Float64[ndarray, "prompt"]:
        """Log-odds of harm. Those of class means rank, but are no calibrated log-odds.

        Raises:
            InputError: The activations are of another width, or have too few layers.
        """
        source, layers = _source(acts, self.readout, self.layers)
        if source.d_model != self.weight.shape[1]:
            raise InputError(
                f"the probe reads activations of width {self.weight.shape[1]}, not {source.d_model}"
            )
        return self._on(source, layers)

    def _on(self, source: Layers, layers: Sequence[int]) -> Float64[ndarray, "prompt"]:
        weight = self.weight.double()
        return torch.cat(
            [
                torch.einsum("pld,ld->p", block.double(), weight) + self.bias
                for _, block in pieces(source, layers)
            ]
        ).numpy()


class CrossValidated(NamedTuple):
    """Each row's logit by the probe that was not trained on its fold."""

    logits: Float64[ndarray, "prompt"]
    """Comparable within a fold only: score each fold, then average."""
    fold: Int64[ndarray, "prompt"]
    C: Float64[ndarray, "fold"]
    """Chosen in each training split; NaN for class means."""
    inner: Float64[ndarray, "fold"] | None = None
    """AUROC at that C on each training split's own inner folds, none of which saw the rows that
    it is scored on; None for class means, which choose nothing."""


def cross_validate(
    acts: Layers,
    labels: Int64[ndarray, "prompt"],
    folds: Folds,
    *,
    readout: Readout,
    layers: Sequence[int],
    Cs: Sequence[float] = CS,
    memory: int = MEMORY,
) -> CrossValidated:
    """Out-of-fold logits of a readout: what its in-distribution AUROC is computed from.

    Args: as in `fit`.
    """
    rows = _rows(acts, labels, folds, readout, layers, memory)
    logits, chosen = np.empty(len(labels)), np.full(folds.n, np.nan)
    inner = np.full(folds.n, np.nan)
    for split in range(folds.n):
        probe, tuned = _fit(rows, split, Cs)
        test = folds.fold == split
        logits[test] = probe._on(rows.source, rows.columns)[test]
        if tuned is not None:
            train = folds.train(split)
            chosen[split] = probe.C
            inner[split] = _inner_auroc(
                labels[train], tuned.logits[:, 0].numpy(), folds.inner[split, train]
            )
    return CrossValidated(logits, folds.fold, chosen, None if readout == "class-mean" else inner)


def fit(
    acts: Layers,
    labels: Int64[ndarray, "prompt"],
    folds: Folds,
    *,
    readout: Readout,
    layers: Sequence[int],
    Cs: Sequence[float] = CS,
    memory: int = MEMORY,
) -> LinearReadout:
    """A probe fitted on all rows.

    Args:
        acts: Activations. `embedding` is read from `acts.embedding_blocks()`.
        labels: 1 = harmful.
        folds: Of the same rows; the same for every readout that is to be compared.
        readout: `layer` and `class-mean` read one layer, the pooled ones several.
        layers: Which; ignored for the embedding.
        Cs: Inverse strengths of the penalty to choose from, as in scikit-learn.
        memory: Bytes of features to hold; more are streamed block by block.

    Raises:
        InputError: Rows, labels and folds do not belong together, or the layers do not exist or
            are not as many as the readout takes.
    """
    return _fit(_rows(acts, labels, folds, readout, layers, memory), folds.n, Cs)[0]


class _Rows(NamedTuple):
    """What all splits of one readout share."""

    source: Layers
    columns: Sequence[int]
    """The layers to read, as the source numbers them."""
    labels: ndarray
    folds: Folds
    readout: Readout
    layers: tuple[int, ...]
    memory: int


def _rows(
    acts: Layers,
    labels: ndarray,
    folds: Folds,
    readout: Readout,
    layers: Sequence[int],
    memory: int,
) -> _Rows:
    source, columns = _source(acts, readout, layers)
    if not source.n_prompts == len(labels) == len(folds.fold):
        raise InputError(
            f"activations of {source.n_prompts} prompts, {len(labels)} labels and folds of "
            f"{len(folds.fold)} rows do not belong together"
        )
    source, columns = held(source, columns, memory)
    kept = () if readout == "embedding" else tuple(layers)
    return _Rows(source, columns, labels, folds, readout, kept, memory)


def _fit(rows: _Rows, split: int, Cs: Sequence[float]) -> tuple[LinearReadout, Tuned | None]:
    train = rows.folds.train(split)
    pooling: Pooling = "mean" if rows.readout == "pooled-mean" else "concat"
    features = Features.of(rows.source, rows.columns, train, pooling)
    y = torch.from_numpy(rows.labels[train])
    if rows.readout == "class-mean":
        raw, offset = features.fold(*_class_means(features, y))
        return LinearReadout(rows.readout, rows.layers, raw, offset, None), None
    rotated = features.design(rows.memory)
    inner = torch.from_numpy(rows.folds.inner[split, train])
    tuned = tune(rotated.design, y[:, None].bool(), inner[:, None], Cs)
    raw, offset = features.fold(rotated.weight(tuned.weight)[:, 0], float(tuned.bias))
    return LinearReadout(rows.readout, rows.layers, raw, offset, float(tuned.C)), tuned


def _inner_auroc(labels: ndarray, logits: ndarray, inner: ndarray) -> float:
    """Mean over the inner folds that hold both classes; NaN if there is none."""
    parts = [inner == i for i in np.unique(inner)]
    found = [auroc(labels[p], logits[p]) for p in parts if len(np.unique(labels[p])) == 2]
    return float(np.mean(found)) if found else float("nan")


def _class_means(
    features: Features, y: Int64[Tensor, "row"]
) -> tuple[Float64[Tensor, "feature"], float]:
    """The difference of the standardised class means, with the threshold halfway between them."""
    share = torch.stack([(1 - y) / (1 - y).sum(), y / y.sum()]).double()
    harmless, harmful = torch.stack([share[:, rows] @ x for rows, x in features.blocks()]).sum(0)
    weight = harmful - harmless
    return weight, -float(weight @ (harmful + harmless)) / 2


def _source(acts: Layers, readout: Readout, layers: Sequence[int]) -> tuple[Layers, Sequence[int]]:
    """Where a readout's features come from."""
    if readout not in get_args(Readout):
        raise InputError(f"readout {readout!r} is none of: {', '.join(get_args(Readout))}")
    if readout == "embedding":
        if not isinstance(acts, Embedded):
            raise InputError("these activations come without the embedding")
        return _OneLayer(acts.n_prompts, acts.d_model, acts.embedding_blocks), (0,)
    if not layers or (readout in ("layer", "class-mean") and len(layers) != 1):
        raise InputError(
            f"the readout {readout} reads {'layers' if 'pooled' in readout else 'one layer'}, "
            f"but {len(layers)} were given"
        )
    if not all(0 <= layer < acts.n_layers for layer in layers):
        raise InputError(f"layers {list(layers)}: the activations have 0..{acts.n_layers - 1}")
    return acts, layers


def held(
    source: Layers, layers: Sequence[int], memory: int = MEMORY
) -> tuple[Layers, Sequence[int]]:
    """Some layers in memory if they fit, to be read once and not at each pass; and their numbers.

    Args:
        source: Activations.
        layers: Which.
        memory: Bytes; where the layers take more, they are left where they are.
    """
    if 4 * source.n_prompts * len(layers) * source.d_model > memory:
        return source, layers
    acts = torch.empty(0)
    for rows, block in source.blocks(layers):
        if rows.start == 0:
            acts = block.new_empty((source.n_prompts, *block.shape[1:]))
        acts[rows] = block
    return Stacked(acts), range(len(layers))


class _OneLayer(NamedTuple):
    """Activations of a single layer, streamed."""

    n_prompts: int
    d_model: int
    stream: Callable[[], Iterator[tuple[slice, Float[Tensor, "prompt 1 d_model"]]]]
    n_layers: int = 1

    def blocks(
        self, layers: Sequence[int]
    ) -> Iterator[tuple[slice, Float[Tensor, "prompt layer d_model"]]]:
        for rows, block in self.stream():
            yield rows, block[:, list(layers)]
