"""The tokens that are read of a packed row, and their means.

Each position is read by itself, in matrices whose shape follows from it and the prompts alone, so
that what is read beside it changes nothing, to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.packing import Pack


@dataclass(frozen=True)
class Column:
    """One position: the tokens of each prompt whose mean is taken."""

    slots: Int[Tensor, "batch width"]
    """Where they stand."""
    beyond: Bool[Tensor, "batch width"]
    """Which are too many, in prompts that have fewer than the widest."""

    def read(self, hidden: Float[Tensor, "token d_model"]) -> Float[Tensor, "batch d_model"]:
        """(sum over t of h_t) / n, summed in float32 at least; of one token its copy.

        Never holds more tokens than there are, whichever is more: one prompt's or all of `hidden`.
        """
        slots = self.slots.to(hidden.device)
        if slots.shape[1] == 1:
            return hidden[slots[:, 0]]
        at_once = max(1, len(hidden) // slots.shape[1])
        beyond = self.beyond.to(hidden.device)[..., None]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        means = [
            hidden[some].to(wide).masked_fill_(none, 0).sum(1) / (~none).sum(1)
            for some, none in zip(slots.split(at_once), beyond.split(at_once), strict=True)
        ]
        return torch.cat(means).to(hidden.dtype)

    def alone(self) -> tuple[Int[Tensor, "kept"], "Column"]:
        """The tokens that are read, each once, and the same position among them alone."""
        kept = self.slots.unique()
        return kept, Column(torch.searchsorted(kept, self.slots), self.beyond)


@dataclass(frozen=True)
class Spots:
    """All positions of a packed row."""

    columns: tuple[Column, ...]
    """In the order asked for."""
    single: bool
    """Whether one token of each prompt was asked for, without an axis of positions."""

    def of(
        self, hidden: Float[Tensor, "1 token d_model"]
    ) -> Float[Tensor, "batch *position d_model"]:
        """What is read of the packed row's activations."""
        return self.together([column.read(hidden[0]) for column in self.columns])

    def together(
        self, found: Sequence[Float[Tensor, "batch d_model"]]
    ) -> Float[Tensor, "batch *position d_model"]:
        """What was read of each position, along its axis."""
        return found[0] if self.single else torch.stack(list(found), dim=1)


def spots(pack: Pack, positions: Int[Tensor, "batch"] | Int[Tensor, "batch position 2"]) -> Spots:
    """Where positions stand in a packed row; they count tokens of each prompt, from 0."""
    if positions.ndim == 1:
        return Spots((_column(pack, torch.stack([positions, positions + 1], dim=1)),), single=True)
    return Spots(tuple(_column(pack, spans) for spans in positions.unbind(1)), single=False)


def _column(pack: Pack, spans: Int[Tensor, "batch 2"]) -> Column:
    start, stop = spans[:, :1], spans[:, 1:]
    wanted = start + torch.arange(int((stop - start).max()))
    tokens = torch.minimum(wanted, stop - 1)
    slots = [path[of_row] for path, of_row in zip(pack.paths, tokens, strict=True)]
    return Column(torch.stack(slots), wanted >= stop)
