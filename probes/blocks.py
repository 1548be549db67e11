"""Where the hook points lie in a transformers model.

Nothing is listed per family: the blocks are the decoder's one list of `num_hidden_layers` modules,
and the points inside a block follow from the names of its norms. What is found that way is checked
by arithmetic before it is trusted (`probes.backends.transformers`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from probes.errors import InputError
from probes.hooks import HookPoint
from probes.onednn import by_onednn


class Tap(NamedTuple):
    """Where a hook point is read: what goes into, or comes out of, a submodule of the block."""

    module: str
    """Name within the block; empty for the block itself."""
    side: Literal["input", "output"]


# The order in which `resid_mid` goes through the norms tells the two arrangements apart.
# Llama, Qwen, Phi, Mistral: a norm before attention and one before the MLP.
PRE_NORM: dict[HookPoint, Tap] = {
    "attn_out": Tap("self_attn", "output"),
    "resid_mid": Tap("post_attention_layernorm", "input"),
    "mlp_out": Tap("mlp", "output"),
}
# Gemma 2 and 3: norms before and after both; what is added is what the second one gives.
SANDWICH_NORM: dict[HookPoint, Tap] = {
    "attn_out": Tap("post_attention_layernorm", "output"),
    "resid_mid": Tap("pre_feedforward_layernorm", "input"),
    "mlp_out": Tap("post_feedforward_layernorm", "output"),
}


def decoder(model: nn.Module) -> nn.Module:
    """The model without its language-model head.

    Raises:
        InputError: It is not a transformers model.
    """
    if not hasattr(model, "get_decoder"):
        raise InputError(
            f"{type(model).__name__} is no transformers language model; give a transformers model, "
            "a TransformerBridge or an nnsight LanguageModel"
        )
    return model.get_decoder()  # type: ignore[operator]


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder's blocks, in order.

    Raises:
        InputError: It is not a decoder-only language model.
    """
    body = decoder(model)
    config = body.config.get_text_config()  # type: ignore[operator,union-attr]
    lists = [
        child
        for child in body.children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if len(lists) != 1 or config.is_encoder_decoder:
        raise InputError(
            f"{type(model).__name__} is not a decoder-only language model: no single list of its "
            f"{config.num_hidden_layers} blocks was found"
        )
    return lists[0]


def taps(block: nn.Module) -> dict[HookPoint, Tap]:
    """Where the hook points of a block are read, as far as they can be told by name."""
    names = dict(block.named_children())
    found: dict[HookPoint, Tap] = {"resid_pre": Tap("", "input"), "resid_post": Tap("", "output")}
    if "input_layernorm" in names:
        inner = SANDWICH_NORM if "pre_feedforward_layernorm" in names else PRE_NORM
        found |= {point: tap for point, tap in inner.items() if tap.module in names}
    return found


def input_device(model: nn.Module) -> torch.device:
    """Where a model takes its ids. Of weights that are offloaded, accelerate's hook knows.

    Raises:
        InputError: The weights were never loaded.
    """
    embedding = decoder(model).get_input_embeddings()  # type: ignore[operator]
    device = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    device = torch.device(embedding.weight.device if device is None else device)
    if device.type == "meta":
        raise InputError(
            f"the weights of this {type(model).__name__} were not loaded: it can only be run "
            "remotely"
        )
    return device


def position_ids(mask: Int[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
    """Positions counted from each row's first real token, on whichever side the padding is."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module's training mode is as before afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with by_onednn(model):
            yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def reading(model: nn.Module) -> Iterator[None]:
    """As `evaluating`, and without gradients."""
    with evaluating(model), torch.inference_mode():
        yield
