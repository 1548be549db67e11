"""Changes of the residual stream while a model runs.

>>> edit = Edit.ablate(4, direction)                     # or Edit.add(4, shift)
>>> open_editing(model, "nnsight").predict(ids, mask, positions, None, [edit]).logits

An edit acts on what a block gives to the next one, at every token of the prompt, the template's own
among them: what was taken out at the last token alone could still be read from the tokens before
it, through the attention of later blocks. What is removed is removed from generated tokens as well.
What is added need not be: a direction that stands for a refusal where an answer begins, added at
each word of it, has a model say the first word over and over.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.backends import Backend, BackendName, open_backend
from probes.errors import InputError

Tokens = Literal["prompt", "all"]


@dataclass(frozen=True)
class Edit:
    """a <- a - (u.a) u + v, after one block."""

    layer: int
    """The block whose output is changed."""
    removed: Float[Tensor, "d_model"] | None = None
    """Unit vector u; None removes nothing."""
    added: Float[Tensor, "d_model"] | None = None
    """v; None adds nothing."""
    tokens: Tokens = "all"
    """Whether generated tokens are changed too, or those of the prompt alone."""

    @classmethod
    def ablate(cls, layer: int, direction: Float[Tensor, "d_model"]) -> "Edit":
        """Project a direction of any length out: nothing of it is left.

        Raises:
            InputError: The direction is zero or not finite.
        """
        return cls(layer, removed=unit(direction))

    @classmethod
    def add(cls, layer: int, shift: Float[Tensor, "d_model"], tokens: Tokens = "prompt") -> "Edit":
        """Add a vector."""
        return cls(layer, added=shift.float(), tokens=tokens)

    def __call__(
        self, hidden: Float[Tensor, "batch token d_model"]
    ) -> Float[Tensor, "batch token d_model"]:
        """The changed residual stream, in its own dtype; computed in float32 at least."""
        wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        if self.removed is not None:
            u = self.removed.to(wide)
            wide = wide - (wide @ u)[..., None] * u
        if self.added is not None:
            wide = wide + self.added.to(wide)
        return wide.to(hidden.dtype)


def unit(direction: Float[Tensor, "d_model"]) -> Float[Tensor, "d_model"]:
    """A direction at length 1, in float32.

    Raises:
        InputError: It has no length, or none that is finite.
    """
    wide = direction.double()
    norm = wide.norm()
    if not torch.isfinite(norm) or norm == 0:
        raise InputError(f"a vector of length {float(norm):g} has no direction")
    return (wide / norm).float()


class Step(NamedTuple):
    """What one step of generation gives."""

    logits: Float[Tensor, "batch vocab"]
    """Of the token that comes next."""
    past: Any
    """Keys and values of all tokens so far, which the edits have changed too."""


@runtime_checkable
class EditingBackend(Backend, Protocol):
    """A model that can be run while it is changed. All three backends can, on this machine."""

    def predict(
        self,
        ids: Int[Tensor, "batch new"],
        mask: Int[Tensor, "batch token"],
        positions: Int[Tensor, "batch new"],
        past: Any,
        edits: Sequence[Edit],
    ) -> Step:
        """Run some tokens, with the edits, after those that ran before.

        Args:
            ids: New tokens, padded on the left.
            mask: 1 at real tokens, 0 at padding; of all tokens so far.
            positions: Of the new tokens, counted from each row's first real one.
            past: What the step before gave; None at the first.
            edits: In the order of their layers, at most one a layer.
        """
        ...


def open_editing(model: object, name: BackendName) -> EditingBackend:
    """`probes.backends.open_backend`, for a model that is to be changed while it runs."""
    return cast(EditingBackend, open_backend(model, name))


def check_edits(edits: Sequence[Edit], n_layers: int, d_model: int) -> None:
    """Refuse edits that a model has no place for.

    Raises:
        InputError: A layer out of range, named twice or out of order, or a vector of another width.
    """
    layers = [edit.layer for edit in edits]
    if layers != sorted(set(layers)):
        raise InputError(f"edits at the layers {layers}: give them in order, one a layer")
    for edit in edits:
        if not 0 <= edit.layer < n_layers:
            raise InputError(f"layer {edit.layer} does not exist: the model has 0..{n_layers - 1}")
        for vector in (edit.removed, edit.added):
            if vector is not None and vector.shape != (d_model,):
                raise InputError(f"an edit of shape {tuple(vector.shape)} for a width of {d_model}")
