"""The same activations as one would read them with transformers, TransformerLens and nnsight.

Each takes padded batches and returns [prompt, layer, d_model] of the last tokens on the CPU. What
they are given is prepared anew in each run, as ours prepares its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from probes.blocks import position_ids
from tests.benchmarks.workloads import Batch

Batches = Callable[[], list[Batch]]


def hidden_states(network: nn.Module, batches: Batches, layers: range) -> Tensor:
    """`output_hidden_states`: of the last block it is what comes out of the final norm."""

    def read(batch: Batch) -> Tensor:
        with torch.inference_mode():
            states = network(
                input_ids=batch.ids.to(network.device),
                attention_mask=batch.mask.to(network.device),
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
        row = torch.arange(len(batch.ids))
        return torch.stack([states[layer + 1][row, batch.last] for layer in layers], 1).cpu()

    return _in_order(batches(), read)


def with_cache(bridge: Any, batches: Batches, layers: range, **options: Any) -> Tensor:
    """TransformerLens: `run_with_cache`, of the layers' outputs alone."""
    names = [f"blocks.{layer}.hook_resid_post" for layer in layers]

    def read(batch: Batch) -> Tensor:
        with torch.inference_mode():
            _, cache = bridge.run_with_cache(
                batch.ids,
                attention_mask=batch.mask,
                # Given outright: they have been derived wrongly under left padding.
                position_ids=position_ids(batch.mask),
                names_filter=names,
                use_cache=False,
                **options,
            )
        row = torch.arange(len(batch.ids))
        return torch.stack([_last(cache[name], row, batch.last) for name in names], dim=1)

    return _in_order(batches(), read)


def _last(kept: Tensor, row: Tensor, last: Tensor) -> Tensor:
    """Of a whole sequence its last token; what `pos_slice` has cut is that token."""
    if kept.ndim == 3 and kept.shape[1] > 1:
        return kept[row, last]
    return kept.reshape(len(row), -1)


def trace(wrapped: Any, batches: Batches, layers: range, *, stop: bool) -> Tensor:
    """Nnsight: save the last token of each block's output; if told so, stop after the last one."""
    import nnsight

    def read(batch: Batch) -> Tensor:
        row, last = torch.arange(len(batch.ids)), batch.last
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
        with torch.inference_mode():  # noqa: SIM117  nnsight wants a `with` of its own
            with wrapped.trace(**inputs, use_cache=False) as tracer:
                saved = nnsight.save([])  # the list too must be saved, not its items alone
                for layer in layers:
                    hidden = wrapped.model.layers[layer].output
                    hidden = hidden[0] if isinstance(hidden, tuple) else hidden
                    saved.append(hidden[row, last])
                if stop:
                    tracer.stop()
        return torch.stack(list(saved), dim=1)

    return _in_order(batches(), read)


def _in_order(batches: list[Batch], read: Callable[[Batch], Tensor]) -> Tensor:
    """Rows of all batches, in the prompts' own order."""
    parts = [read(batch) for batch in batches]
    out = parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
    for batch, part in zip(batches, parts, strict=True):
        out[batch.chosen] = part
    return out
