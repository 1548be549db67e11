"""LoRA's linear map in one piece: y = x W^T + b + s (x A^T) B^T (arXiv 2106.09685, equation 3).

peft's own is four maps and two passes over what is as wide as the layer, forwards and again
backwards, which small models and short batches feel: there the adapter costs as much as the layer.
Here both products are added in place to what the frozen layer gives. Of the adapted layers peft's
remain, with all that it does to them: switched off, merged, saved.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from probes.onednn import affine, product


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = product(rows, a.T)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.s, ctx.shape = s, x.shape
        return affine(rows, weight, bias).addmm_(low, b.T, alpha=s).view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        given = given.reshape(-1, given.shape[-1])
        back = product(given, b).mul_(ctx.s)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = product(given, weight).addmm_(back, a).view(ctx.shape)
        # Over rows, of which there are others each time: see `product`.
        return of_x, None, None, back.T @ rows, (given.T @ low).mul_(ctx.s), None


def adapted(
    x: Float[Tensor, "*batch d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"] | None,
    a: Float[Tensor, "r d_in"],
    b: Float[Tensor, "d_out r"],
    s: float,
) -> Float[Tensor, "*batch d_out"]:
    """x W^T + b + s (x A^T) B^T, whose gradient goes to x, A and B; W and b are frozen."""
    return _Linear.apply(x, weight, bias, a, b, s)


def fuse(model: nn.Module) -> int:
    """Have the adapted linear layers of a peft model compute in one piece where they can.

    A layer that cannot, and a pass in which it cannot, goes through peft as before: under autocast,
    with several adapters, dropout, DoRA and its kin, quantised or trained weights, merged or off,
    or with a hook on a part of it.

    Returns:
        How many layers may.
    """
    from peft.tuners.lora import Linear

    found = [one for one in model.modules() if type(one) is Linear and _plain(one)]
    for layer in found:
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
    return len(found)


def _plain(layer: Any) -> bool:
    """Whether a layer's weights are as `adapted` takes them."""
    base = layer.base_layer
    return (
        type(base) is nn.Linear
        and not layer.fan_in_fan_out
        and not any(one.requires_grad for one in base.parameters())
    )


def _forward(layer: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    """As `peft.tuners.lora.Linear.forward`."""
    names = layer.active_adapters
    if len(names) != 1 or names[0] not in layer.lora_A or args or options:
        return _theirs(layer, x, *args, **options)
    (name,), base = names, layer.base_layer
    a, b = layer.lora_A[name], layer.lora_B[name]
    if (
        layer.disable_adapters
        or layer.merged
        or name in layer.lora_variant
        or type(layer.lora_dropout[name]) is not nn.Identity
        or b.bias is not None
        or not x.dtype == base.weight.dtype == a.weight.dtype == b.weight.dtype
        or torch.is_autocast_enabled(x.device.type)
        or any(map(_watched, (base, a, b)))
    ):
        return _theirs(layer, x)
    return adapted(x, base.weight, base.bias, a.weight, b.weight, layer.scaling[name])


def _watched(module: nn.Module) -> bool:
    """Whether somebody waits for a module to be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _theirs(layer: Any, x: Tensor, *args: Any, **options: Any) -> Tensor:
    return type(layer).forward(layer, x, *args, **options)
