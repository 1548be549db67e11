"""Caching last-token activations of all layers, beside the ways in which one does it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.backends import open_backend
from probes.capture import capture_rows
from probes.hooks import sites
from tests.benchmarks import captures_elsewhere as elsewhere
from tests.benchmarks import pipeline
from tests.benchmarks.cases import Against, Baseline, Group
from tests.benchmarks.workloads import Prompts, Shape, batches, chats, rows, twins

BATCH = 16
LLAMA = Shape()
QWEN2 = Shape("Qwen2", kv_heads=2)
PHI3 = Shape("Phi-3")
BODY = Shape(d_model=768, d_mlp=2048, n_layers=12, heads=12, kv_heads=12, vocabulary=4_000)


class Built(NamedTuple):
    """A model and what it reads."""

    model: PreTrainedModel
    prompts: list[tuple[int, ...]]
    layers: range
    batch: int


class Workload(NamedTuple):
    """What is read of which model, and beside what."""

    name: str
    shape: Shape
    prompts: Prompts
    baselines: tuple[Baseline, ...]
    read: int | None = None
    """Layers that are read, from 0; None: all."""
    batch: int = BATCH
    """Prompts of a padded batch."""
    rounds: int = 3
    memory: bool = False
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def group(self) -> Group:
        """As the benchmarks take it."""
        return Group(
            "capture", self.name, self.build, ours, self.baselines,
            rounds=self.rounds, memory=self.memory,
        )  # fmt: skip

    def build(self) -> Built:
        """The model and its prompts."""
        layers = range(self.read or self.shape.n_layers)
        model = self.shape.model(device=self.device, dtype=self.dtype)
        return Built(model, self.prompts(self.shape.vocabulary), layers, self.batch)


def ours(built: Built) -> Callable[[], Tensor]:
    """The project's capture, from token ids to activations on the CPU."""
    return partial(captured, built.model, built.prompts, built.layers)


def captured(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], layers: range, **options: int
) -> Tensor:
    """Last tokens at the output of each layer: [prompt, layer, d_model]."""
    read = sites("resid_post", layers)
    return capture_rows(open_backend(model), rows(prompts), read, pad_id=0, **options)


def _padded(built: Built, **options: Any) -> Callable[[], Any]:
    return partial(batches, built.prompts, **{"size": built.batch, **options})


def hidden_states(built: Built, *, head: bool, **options: Any) -> Against:
    """Beside transformers' hidden states, whose last are normed: ours are normed to compare."""
    network = built.model if head else built.model.get_decoder()

    def alike() -> Tensor:
        found = ours(built)().to(built.model.device)
        if len(built.layers) == built.model.config.num_hidden_layers:
            with torch.inference_mode():
                found[:, -1] = built.model.get_decoder().norm(found[:, -1])
        return found

    job = partial(elsewhere.hidden_states, network, _padded(built, **options), built.layers)
    return Against(job, alike)


def _lens(built: Built, *, left: bool = False, by_length: bool = False, **run: Any) -> Against:
    # A bridge that shares the weights; the model itself stays as it is.
    bridge = open_backend(built.model, "transformer-lens").bridge  # type: ignore[attr-defined]
    padded = _padded(built, by_length=by_length, left=left)
    if len(built.layers) < built.model.config.num_hidden_layers:
        run = {"stop_at_layer": len(built.layers), **run}
    return Against(partial(elsewhere.with_cache, bridge, padded, built.layers, **run))


def _nnsight(built: Built, *, by_length: bool, stop: bool) -> Against:
    import nnsight

    padded = _padded(built, by_length=by_length)
    # Of a copy: it takes over the modules that it wraps, which the others would feel.
    wrapped = nnsight.NNsight(deepcopy(built.model))
    return Against(partial(elsewhere.trace, wrapped, padded, built.layers, stop=stop))


def _by_pytorch(built: Built) -> Against:
    """Ours, with the matrix products that everything else has."""

    def job() -> Tensor:
        torch.backends.mkldnn.enabled = False
        try:
            return ours(built)()
        finally:
            torch.backends.mkldnn.enabled = True

    return Against(job)


LENS, NNSIGHT = ("transformer_lens",), ("nnsight",)
TUNED = {"left": True, "pos_slice": -1, "by_length": True}
SLOW = {"rounds": 2}
"""Of those that take twice as long as the others."""
SINGLY = Baseline(
    "transformers, one by one, no head", partial(hidden_states, head=False, size=1, by_length=False)
)
PADDED = Baseline(
    "transformers, padded, with head", partial(hidden_states, head=True, by_length=False), **SLOW
)
SORTED = Baseline(
    "transformers, sorted, no head", partial(hidden_states, head=False, by_length=True)
)
LENS_STOPPED = Baseline("TransformerBridge, sorted, stop_at_layer", partial(_lens, **TUNED), LENS)
NNSIGHT_STOPPED = Baseline(
    "nnsight, sorted, stop", partial(_nnsight, by_length=True, stop=True), NNSIGHT
)
NO_ONEDNN = Baseline("ours, without oneDNN", _by_pytorch, memory=False)
CAREFUL = (SORTED, NNSIGHT_STOPPED, NO_ONEDNN)
"""What one uses who knows each library well."""
LADDER = (
    SINGLY._replace(memory=False),
    Baseline(
        "transformers, one by one, with head",
        partial(hidden_states, head=True, size=1, by_length=False), memory=False, **SLOW,
    ),
    PADDED,
    SORTED,
    Baseline("TransformerBridge, names_filter", _lens, LENS, **SLOW),
    Baseline(
        "TransformerBridge, pos_slice", partial(_lens, left=True, pos_slice=-1), LENS,
        memory=False, **SLOW,
    ),
    Baseline(
        "TransformerBridge, pos_slice, sorted", partial(_lens, **TUNED), LENS,
        memory=False, **SLOW,
    ),
    Baseline(
        "TransformerBridge, pos_slice, sorted, 1 logit", partial(_lens, **TUNED, logits_to_keep=1),
        LENS,
    ),
    Baseline(
        "nnsight", partial(_nnsight, by_length=False, stop=False), NNSIGHT, memory=False, **SLOW
    ),
    NNSIGHT_STOPPED,
    NO_ONEDNN,
)  # fmt: skip
WORKLOADS = (
    Workload("Llama, 64 prompts", LLAMA, chats(64), LADDER, rounds=5, memory=True),
    Workload("Llama, 256 prompts", LLAMA, chats(256), CAREFUL, rounds=2),
    Workload("Llama, 64 prompts, layers 0-3 of 8", LLAMA, chats(64),
             (SORTED, LENS_STOPPED, NNSIGHT_STOPPED), read=4),
    Workload("Qwen2 (grouped heads, biases), 64 prompts", QWEN2, chats(64), CAREFUL),
    Workload("Phi-3 (fused qkv), 64 prompts", PHI3, chats(64), CAREFUL),
    Workload("mostly body (head 3.5 %), 12 prompts", BODY, chats(12),
             (PADDED, SORTED, NNSIGHT_STOPPED)),
    Workload("5 prompts of 600 to 1000 tokens", LLAMA, chats(5, 600, 1000),
             (SINGLY, SORTED, NNSIGHT_STOPPED), batch=4),
    Workload("24 prompts, few-shot header of 200 tokens", LLAMA, chats(24, 220, 260, shared=200),
             CAREFUL),
    Workload("24 pairs of twins", LLAMA, twins(24), CAREFUL),
)  # fmt: skip


def groups() -> tuple[Group, ...]:
    """Every workload, and the whole way from a file to a cache on disk."""
    return (*(workload.group() for workload in WORKLOADS), pipeline.group())
