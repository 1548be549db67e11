"""AsFT: fine-tuning may move weights along what alignment has changed, and is held otherwise.

Yang et al. 2025, arXiv 2506.08473 ("AsFT: Anchoring Safety During LLM Fine-Tuning Within Narrow
Safety Basin"). With d = W_aligned - W_base of a weight matrix and dW its update in fine-tuning,

    L = NLL + lambda ||C_perp dW||^2,    C_perp = I - C,    C = d (d^T d)^-1 d^T    (eq. 3 and 4)

summed over the matrices that are trained, lambda = 1. C is the projector on the columns of d, or in
other words on what alignment has changed in a layer's output. But a d with no more rows than
columns is nearly always of full rank: then C = I, and nothing is held. In a Llama only gate and up
are left. The released code has, as Safe LoRA (arXiv 2405.16833) before it,

    C = d d^T / ||d||_F

instead, no projector: with singular values s_i of d, an update along the i-th direction is weighted
by (1 - s_i^2 / ||d||_F)^2, which is near 1 where alignment has changed little and falls as it has
changed more, up to a point (s_i^2 = ||d||_F), beyond which it rises again. We follow the code
(`projection` frobenius; exact is eq. 3). Where alignment has changed nothing at all, C = 0.

As C is small beside I in most directions, much of the penalty is weight decay towards the aligned
model, whatever alignment has changed. The control is `projection` none: C = 0 everywhere. On
miniature/llama it protects as well.

The released code takes dW = B A of LoRA, without the scale alpha / r, which `scaled` puts back. It
pairs adapters with d by their order, here they are paired by name. It adds the penalty to every
micro-batch, so that lambda grows with gradient accumulation; here it counts once a step. With
lambda = 0 it is plain fine-tuning.

For LoRA of rank r nothing larger than d_out x r is formed: X = B - C B, and ||X A||^2 is the trace
of (X^T X)(A A^T). As released, C is formed and multiplied with B A, for a 7B model some 10^13
operations a step. What is kept beside the model is d of each trained matrix, in its number format.
With --full, dW = W - W_aligned, of all matrices, embeddings and head included: the paper says that
it works as well, and not how. That takes two copies of the model more, and products of whole
matrices at each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from probes.errors import InputError
from regularize.defences import Defence, Given, Steps

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from jaxtyping import Float
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn

    from regularize.alignment import Along

    Update = Callable[[], tuple[Tensor, Tensor | None]]
    """A matrix's update as it is now, in float32 or wider: [d_out, r] and [r, d_in], whose product
    it is, or [d_out, d_in] and None."""

Projection = Literal["frobenius", "exact", "none"]


@dataclass(frozen=True)
class AsFT(Defence):
    """L = NLL + lambda sum over matrices of ||(I - C) dW||_F^2."""

    strength: float = 1.0
    """lambda, of the penalty; the paper finds .1 to 10 to work alike."""
    projection: Projection = "frobenius"
    """C. frobenius: d d^T / ||d||_F, as in the released code; exact: the projector on the columns
    of d, the paper's eq. 3, which holds nothing in matrices with no more rows than columns; none:
    0, the control, which holds the update to zero in all directions alike."""
    scaled: bool = False
    """Whether LoRA's B A is taken with its scale alpha / r, which makes it the update itself."""

    needs_risk = False
    needs = ("base",)

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        if not (self.strength >= 0 and math.isfinite(self.strength)):
            raise InputError(
                f"--defence.strength {self.strength}: must be a number that is not negative"
            )

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        """The penalty.

        Raises:
            InputError: The base model is another one, or nothing that is trained can be held.
        """
        from regularize.alignment import Along, pairs
        from regularize.model import base_of

        model = base_of(policy)
        assert given.base is not None
        found = pairs(model, given.base)
        layers = _layers(model)
        trained = {
            name: pair
            for name, pair in found.items()
            if pair.aligned.ndim == 2 and (name in layers or pair.aligned.requires_grad)
        }
        if not trained:
            raise InputError(
                "AsFT holds LoRA adapters on linear layers and models that are trained whole; what "
                "is trained here is neither"
            )
        if not self.strength:
            return Steps()
        held = []
        for name, pair in trained.items():
            factor, scale = Along.of(pair.difference(), self.projection)
            if self.projection == "exact" and factor.shape[0] == factor.shape[1]:
                continue  # C = I
            layer = layers.get(name)
            update = _whole(pair.aligned) if layer is None else _adapter(layer, self.scaled)
            held.append(_Held(update, Along(factor.to(pair.aligned.dtype), scale)))
        if not held:
            raise InputError(
                "--defence.projection exact: W_aligned - W_base has full rank in every matrix that "
                "is trained, so that nothing is held; give frobenius"
            )
        return _Penalty(held, self.strength, model.get_output_embeddings().weight.device)


class _Held(NamedTuple):
    update: Update
    along: Along


class _Penalty(Steps):
    """lambda sum ||(I - C) dW||_F^2."""

    def __init__(self, held: list[_Held], strength: float, device: torch.device) -> None:
        self._held, self._strength, self._device = held, strength, device

    def penalty(self) -> Float[Tensor, ""]:
        """At the weights as they are now."""
        import torch

        with torch.autocast(self._device.type, enabled=False):
            terms = [along.rest(*update()).to(self._device) for update, along in self._held]
            return self._strength * torch.stack(terms).sum()


def _adapter(layer: Any, scaled: bool) -> Update:
    """B A of LoRA."""
    import torch

    from regularize.alignment import wider

    def update() -> tuple[Tensor, Tensor]:
        names = [name for name in layer.active_adapters if name in layer.lora_A]
        scales = [layer.scaling[name] if scaled else 1.0 for name in names]
        left = [layer.lora_B[name].weight * c for name, c in zip(names, scales, strict=True)]
        b, a = torch.cat(left, 1), torch.cat([layer.lora_A[name].weight for name in names])
        return b.to(wider(b.dtype)), a.to(wider(a.dtype))

    return update


def _whole(weight: Tensor) -> Update:
    """W - W_aligned, from where W is now."""
    from regularize.alignment import wider

    aligned, wide = weight.detach().clone(), wider(weight.dtype)
    return lambda: (weight.to(wide) - aligned.to(wide), None)


def _layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers with LoRA, by the names of their weights in the model without it.

    Raises:
        InputError: One of them changes its weight otherwise than by B A.
    """
    from peft.tuners.lora import LoraLayer
    from torch import nn

    found = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if layer.lora_variant or not isinstance(layer.get_base_layer(), nn.Linear):
            raise InputError(
                f"AsFT knows plain LoRA on linear layers, and the adapter on {name} is none (DoRA, "
                "embeddings, convolutions, ...)"
            )
        found[f"{name}.weight"] = layer
    return found
