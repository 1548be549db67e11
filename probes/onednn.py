"""Linear maps in float32 on a CPU by oneDNN, where PyTorch would take MKL.

MKL leaves AVX-512 unused on processors that are not Intel's: oneDNN, which PyTorch brings along and
takes for bfloat16 anyway, is there about twice as fast. Its sums have one order, whatever the
number of threads and of rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

# Rows come in multiples of this many; fewer than half of it are PyTorch's.
STEP = 64
# Products of two numbers below which a call costs more than it saves.
WORTH_IT = 2**21


@contextmanager
def by_onednn(model: nn.Module) -> Iterator[None]:
    """Meanwhile, a model's plain linear layers are `affine`; afterwards as before.

    Hooks run as ever. Nothing is done to a layer whose `forward` somebody has replaced.
    """
    modules = () if _pointwise is None else model.modules()
    found = [one for one in modules if type(one) is nn.Linear and "forward" not in vars(one)]
    try:
        for layer in found:
            layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in found:
            vars(layer).pop("forward", None)


def _forward(layer: nn.Linear, input: Tensor) -> Tensor:
    return affine(input, layer.weight, layer.bias)


def affine(
    x: Float[Tensor, "*batch d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, "d_out"] | None = None,
) -> Float[Tensor, "*batch d_out"]:
    """x W^T + b: `torch.nn.functional.linear`, by oneDNN for plain float32 tensors on the CPU.

    The same in exact arithmetic, rounded otherwise. Without gradients alone (and so within an
    `autograd.Function` too): the operator, which is also what `torch.compile` makes of a linear
    layer, has none. PyTorch's own where a product is small or has few rows, under autocast, and
    where oneDNN is switched off (`torch.backends.mkldnn.enabled = False`).
    """
    return _filled_up(x, weight, bias) if _fits(x, weight, bias) else linear(x, weight, bias)


def product(a: Float[Tensor, "n k"], b: Float[Tensor, "k m"]) -> Float[Tensor, "n m"]:
    """a b, as `affine`, for a b that has one shape again and again; it may be a transposed view."""
    return _filled_up(a, b.T, None) if _fits(a, b.T) else a @ b


def _filled_up(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """By oneDNN, with rows of zeros up to one of few numbers of them.

    For each number of rows it compiles code, half a megabyte for each layer's shape, and keeps it.
    """
    rows = x.reshape(-1, x.shape[-1])
    n = len(rows)
    if more := -n % STEP:
        rows = torch.cat([rows, rows.new_zeros(more, rows.shape[1])])
    found = _pointwise(rows, weight, bias, "none", [], "")
    return found[:n].view(*x.shape[:-1], len(weight))


def _operator() -> Any:
    """None where there is no oneDNN, or no AVX-512, without which the two are alike."""
    wide = "AVX512" in torch.backends.cpu.get_cpu_capability()
    if not (wide and torch.backends.mkldnn.is_available()):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_pointwise = _operator()


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    return (
        _pointwise is not None
        and weight.ndim == 2
        and x.shape[-1:] == weight.shape[1:]
        and x.numel() * len(weight) >= WORTH_IT
        and 2 * x.numel() >= STEP * x.shape[-1]
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and bool(torch.backends.mkldnn.enabled)
        and all(map(_plain, (x, weight) if bias is None else (x, weight, bias)))
    )


def _plain(one: Tensor) -> bool:
    return (
        type(one) in (Tensor, nn.Parameter)
        and one.dtype == torch.float32
        and one.device.type == "cpu"
        and one.layout == torch.strided
    )
