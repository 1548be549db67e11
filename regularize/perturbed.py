"""Training under perturbed attention outputs, the step of Vaccine (Huang et al., arXiv 2402.01109).

h_l is the output of block l's attention module, for all tokens of a batch. Each forward pass that
is learnt from is preceded by one that finds the perturbation:

    g_l = dL / dh_l,    G = sqrt(sum_l ||g_l||^2),    h_l <- h_l + rho g_l / (G + 1e-7)

To first order no other change of all h_l together, of norm rho, makes the loss larger. The
parameters' gradient is taken at the changed h_l, with the changes as constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainingArguments

from probes.blocks import blocks, taps
from probes.errors import InputError
from regularize.model import base_of

EPSILON = 1e-7
"""What keeps a gradient of zero from being divided by zero."""


class PerturbedTrainer(Trainer):
    """A Trainer that learns from forward passes whose attention outputs are perturbed."""

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, rho: float, **options: Any
    ) -> None:
        """Find the attention modules.

        Args:
            model: A causal language model, with an adapter or without.
            args: transformers' own.
            rho: Norm of the perturbation of a forward pass, over all its tokens and layers; 0 is
                `Trainer` itself.
            options: More for `Trainer`.

        Raises:
            InputError: The attention modules cannot be told by name.
        """
        self._rho = rho
        self._attentions = attentions(model)
        super().__init__(model, args, **options)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Find the perturbation, and take the step's gradient under it.

        Both in this one forward pass's batch: with gradient accumulation, and in each of several
        processes, every batch has a perturbation of norm rho.
        """
        if self._rho == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        inputs = self._prepare_inputs(inputs)
        # Out of the wrapper of several processes: this pass leaves them no gradients to exchange.
        inner = self.accelerator.unwrap_model(model)
        with outputs(self._attentions) as found, self.compute_loss_context_manager():
            loss: Any = self.compute_loss(inner, inputs)
        constants = perturbations(loss, found, self._rho)
        with shifted(self._attentions, constants):
            return super().training_step(model, inputs, num_items_in_batch)


def perturbations(loss: Tensor, hidden: Sequence[Tensor], rho: float) -> list[Tensor]:
    """rho g_l / (G + 1e-7) of each h_l, of its shape, without gradient.

    No parameter's gradient is touched, so that what was accumulated stays.

    Args:
        loss: A number, computed from `hidden`.
        hidden: h_l of all layers.
        rho: Norm of all perturbations together.
    """
    gradients = torch.autograd.grad(loss, hidden)
    scale = rho / (get_total_norm(gradients) + EPSILON)
    return [gradient * scale.to(gradient.device) for gradient in gradients]


def attentions(model: nn.Module) -> list[nn.Module]:
    """The modules that attention's contribution to the residual stream comes out of, in order.

    Raises:
        InputError: A block's cannot be told by name.
    """
    base, found = base_of(model), []
    for i, block in enumerate(blocks(base)):
        tap = taps(block).get("attn_out")
        if tap is None:
            raise InputError(
                f"no attention output was found in block {i} of {type(base).__name__}, to perturb: "
                "its submodules are not called as in Llama, Qwen, Phi or Gemma"
            )
        found.append(block.get_submodule(tap.module))
    return found


@contextmanager
def outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What the modules give in the forward pass within, in the modules' order."""
    found = [torch.empty(0)] * len(modules)

    def keep(i: int, hidden: Tensor) -> Tensor:
        found[i] = hidden
        return hidden

    with _through(modules, keep):
        yield found


@contextmanager
def shifted(modules: Sequence[nn.Module], by: Sequence[Tensor]) -> Iterator[None]:
    """The modules give so much more in what is within; backward passes are part of it.

    For gradient checkpointing runs the modules anew there.
    """
    with _through(modules, lambda i, hidden: hidden + by[i]):
        yield


@contextmanager
def _through(modules: Sequence[nn.Module], act: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Put `act` behind each module's output, or the first part of it where it is a tuple."""

    def hook(i: int) -> Callable[..., Any]:
        def changed(module: nn.Module, inputs: object, output: Any) -> Any:  # noqa: ARG001
            if isinstance(output, tuple):
                return (act(i, output[0]), *output[1:])
            return act(i, output)

        return changed

    with ExitStack() as stack:
        for i, module in enumerate(modules):
            stack.enter_context(module.register_forward_hook(hook(i)))
        yield
