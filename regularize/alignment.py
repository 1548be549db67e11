"""What alignment has changed in a model's weights: d = W_aligned - W_base, matrix by matrix."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from probes.errors import InputError


class Pair(NamedTuple):
    """A weight of the aligned model, and the same one before alignment."""

    aligned: Tensor
    base: Tensor

    @torch.no_grad()
    def difference(self) -> Float[Tensor, "*aligned"]:
        """d where the aligned weight is, in float32 or wider."""
        wide = wider(self.aligned.dtype)
        return self.aligned.to(wide) - self.base.to(self.aligned.device, wide)


def pairs(aligned: nn.Module, base: PreTrainedModel) -> dict[str, Pair]:
    """The weights of two dimensions and more, by their names in the model without an adapter.

    Tied weights come once, under their first name. An adapter's own weights are left out.

    Args:
        aligned: The model itself, out of an adapter's wrapper; it may have the adapter's layers.
        base: The same model before it was aligned.

    Raises:
        InputError: The two are not the same model before and after; names the weight.
    """
    theirs = dict(base.named_parameters(remove_duplicate=False))
    found: dict[str, Pair] = {}
    first: dict[int, str] = {}
    for name, weight in _own(aligned).items():
        if weight.ndim < 2:
            continue
        other = theirs.get(name)
        if other is None:
            raise InputError(
                f"the base model has no {name}, which the aligned one has: --base must be the "
                "model that was aligned, as it was before"
            )
        if not (weight.is_floating_point() and other.is_floating_point()):
            raise InputError(f"{name} is quantised, so that alignment's change cannot be read")
        if other.shape != weight.shape:
            raise InputError(
                f"{name} is {_shape(other)} in the base model and {_shape(weight)} in the aligned "
                "one: --base must be the model that was aligned, as it was before, with the same "
                "vocabulary"
            )
        before = first.setdefault(id(weight), name)
        if before == name:
            found[name] = Pair(weight, other)
        elif other is not theirs[before]:
            raise InputError(
                f"{name} and {before} are tied in the aligned model but not in the base model"
            )
    if not any(pair.difference().any() for pair in found.values()):
        raise InputError(
            "the base model has the very weights of the aligned one: --base must be the model as "
            "it was before alignment"
        )
    return found


class Along(NamedTuple):
    """C = scale * factor @ factor^T, which picks out what lies along d."""

    factor: Float[Tensor, "d_out rank"]
    scale: float

    @staticmethod
    def of(
        change: Float[Tensor, "d_out d_in"], how: Literal["frobenius", "exact", "none"]
    ) -> Along:
        """frobenius: d d^T / ||d||_F, or 0 for d = 0; exact: the projector on d's columns; none: 0.

        Args:
            change: d.
            how: Which C.
        """
        if how == "none":
            return Along(change[:, :0], 0.0)
        if how == "frobenius":
            norm = float(change.norm())
            return Along(change, 1 / norm if norm else 0.0)
        u, s, _ = torch.linalg.svd(change, full_matrices=False)
        rounding = torch.finfo(s.dtype).eps * max(change.shape)
        return Along(u[:, s > s.amax() * rounding], 1.0)

    def rest(
        self, left: Float[Tensor, "d_out r"], right: Float[Tensor, "r d_in"] | None = None
    ) -> Float[Tensor, ""]:
        """||(I - C) dW||_F^2 of an update dW = left @ right; with right None, of left.

        Computed in the update's number format, and nothing larger than left or d is formed.
        """
        return _Rest.apply(left, right, self.factor.to(left.dtype), self.scale)


class _Rest(torch.autograd.Function):
    """With X = (I - C) left: trace((X^T X) (right right^T)), and the gradient on the way.

    By autograd alone each d would be kept in float32 until the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor | None, factor: Tensor, scale: float
    ) -> Tensor:
        def rest(x: Tensor) -> Tensor:  # in the order that takes the fewest operations
            return x - scale * torch.linalg.multi_dot([factor, factor.T, x])

        x = rest(left)
        if right is None:
            ctx.save_for_backward(2 * rest(x), None)
            return x.square().sum()
        inner, outer = x.T @ x, right @ right.T
        ctx.save_for_backward(2 * rest(x) @ outer, 2 * inner @ right)
        return (inner * outer).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        left, right = ctx.saved_tensors
        return gradient * left, None if right is None else gradient * right, None, None


def wider(dtype: torch.dtype) -> torch.dtype:
    """float32 for narrower number formats."""
    return torch.promote_types(dtype, torch.float32)


def _own(model: nn.Module) -> dict[str, Tensor]:
    """All weights by their names without an adapter, tied ones under each name."""
    wrapped = tuple(
        f"{name}." for name, module in model.named_modules() if hasattr(module, "base_layer")
    )
    found: dict[str, Tensor] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        own = name.replace(".base_layer.", ".")
        if own != name or not name.startswith(wrapped):
            found[own] = weight
    return found


def _shape(weight: Tensor) -> str:
    return "x".join(map(str, weight.shape))
