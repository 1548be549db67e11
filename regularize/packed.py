"""A training batch in one row: no padding, and what several examples begin with once.

An example's tokens follow from those up to them alone, so that examples that begin alike (a chat
template's prefix, a task's wording) share what they begin with; its gradient is the sum of theirs.
Losses and gradients are those of the padded batch but for rounding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from probes.blocks import blocks, input_device
from probes.packable import packable
from probes.packing import Pack, in_order, pack
from probes.rendering import Rendered

# Examples of this many tokens and more attend one by one, by the kernel that needs no mask.
LONG = 256


class Packed(NamedTuple):
    """A batch in one row."""

    pack: Pack
    at: Int[Tensor, "batch token"]
    """Where each token of the batch stands in the row; of padding, anywhere."""

    @property
    def loop(self) -> bool:
        """Whether its examples are best attended to one by one."""
        return len(self.pack.ids) >= LONG * len(self.pack.segments)


def limit(base: PreTrainedModel, longest: int) -> int:
    """Longest examples (tokens) that may be packed in training this model; 0 for none.

    None where dropout falls on attention, or the model's attention is not `probes.attention`'s. Nor
    on an accelerator: there padding costs less than it does here, and nothing was measured.
    """
    decoder: nn.Module = base.get_decoder()
    drops = any(getattr(module, "attention_dropout", 0) for module in decoder.modules())
    if input_device(base).type != "cpu" or drops:
        return 0
    return packable(decoder, longest).limit


def packed(ids: Int[Tensor, "batch token"], mask: Int[Tensor, "batch token"]) -> Packed:
    """The tokens of a batch that is padded on either side, in one row."""
    real = mask.bool()
    rows = [
        Rendered(tuple(row[kept].tolist()), int(kept.sum()) - 1, truncated=False)
        for row, kept in zip(ids, real, strict=True)
    ]
    order = in_order(rows)
    found = pack([rows[i] for i in order])
    at = torch.zeros_like(ids)
    for i, path in zip(order, found.paths, strict=True):
        at[i, real[i]] = path
    return Packed(found, at)


def checkpointed(decoder: nn.Module) -> bool:
    """Whether its blocks run again in the backward pass, when nothing is packed any more."""
    return any(getattr(block, "gradient_checkpointing", False) for block in blocks(decoder))
