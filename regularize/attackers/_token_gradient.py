"""How the probe's log-odds move with each token of a prompt (arXiv 2307.15043, equation 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from probes.blocks import blocks, decoder
from probes.errors import InputError
from probes.hooks import LAST

if TYPE_CHECKING:
    from probes.frozen import FrozenProbe
    from probes.models import ChatModel


class Slopes(NamedTuple):
    """Of some prompts of token ids."""

    logits: Float[Tensor, "prompt"]
    """Log-odds of harm, as the probe itself gives them."""
    gradients: list[Float[Tensor, "token vocab"]]
    """d logit / d one-hot, of each prompt's tokens."""


def slopes(chat: ChatModel, probe: FrozenProbe, prompts: Sequence[Sequence[int]]) -> Slopes:
    """Log-odds and their gradients in the one-hot tokens.

    A token's embedding is its one-hot times E [vocab, d_model], so that the gradient in the one-hot
    is E times that in the embedding.

    Args:
        chat: The model that the probe was fitted on.
        probe: Reads resid_post at the last input token.
        prompts: Token ids, with their generation prompts.

    Raises:
        InputError: The probe reads elsewhere.
    """
    if (probe.config.hook_point, probe.config.position) != ("resid_post", LAST):
        raise InputError(
            f"the probe reads {probe.config.hook_point} at the {probe.config.position}; gradients "
            f"are known of resid_post at the {LAST} only"
        )
    body: Any = decoder(chat.model)
    table: Tensor = body.get_input_embeddings().weight.detach()
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, prompt in enumerate(prompts):  # causal, so that padding on the right is never read
        ids[i, : len(prompt)] = torch.tensor(prompt)
        mask[i, : len(prompt)] = 1
    ids, mask = ids.to(table.device), mask.to(table.device)
    last = mask.sum(1) - 1
    read: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: object, args: object, output: Any) -> None:  # noqa: ARG001
            hidden = output[0] if isinstance(output, tuple) else output
            read[layer] = hidden[torch.arange(len(ids)), last]

        return hook

    layers = probe.config.layers
    handles = [
        block.register_forward_hook(keep(i)) for i, block in enumerate(blocks(body)) if i in layers
    ]
    try:
        with torch.enable_grad():
            embedded = table[ids].requires_grad_()
            body(inputs_embeds=embedded, attention_mask=mask, use_cache=False)
            activations = torch.stack([read[layer] for layer in layers], 1)
            logits = probe(activations.to(probe.weight.device))
            (gradient,) = torch.autograd.grad(logits.sum(), embedded)
    finally:
        for handle in handles:
            handle.remove()
    moved = [gradient[i, : len(prompt)] @ table.T for i, prompt in enumerate(prompts)]
    return Slopes(logits.detach().cpu(), [one.cpu() for one in moved])
