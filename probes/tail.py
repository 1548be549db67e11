"""The last block that is read, past its attention, for the tokens that are read alone.

Attention needs keys of every token. What follows it takes each token by itself, so that the rest of
the block need not run for tokens that nobody asks for.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.blocks import SANDWICH_NORM, taps
from probes.hooks import ORDER, HookPoint

Tail = Callable[
    [Float[Tensor, "1 token d_model"], Float[Tensor, "1 token d_heads"]],
    dict[HookPoint, Float[Tensor, "1 token d_model"]],
]
OUTPUT = "self_attn.o_proj"


def tail(block: nn.Module) -> Tail | None:
    """A block's hook points, from its input and what its attention's heads give.

    Follows from names alone: to be compared with the block itself before it is trusted.

    Returns:
        None where the names are others.
    """
    found = taps(block)
    if len(found) < len(ORDER) or not isinstance(_child(block, OUTPUT), nn.Module):
        return None
    sandwich = found["resid_mid"] == SANDWICH_NORM["resid_mid"]
    before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
    mix, norm, mlp = (block.get_submodule(it) for it in (OUTPUT, before_mlp, "mlp"))
    after = [block.get_submodule(found[it].module) for it in ("attn_out", "mlp_out")]

    def rest(pre: Tensor, heads: Tensor) -> dict[HookPoint, Tensor]:
        attn = mix(heads)
        attn = after[0](attn) if sandwich else attn
        mid = pre + attn
        out = mlp(norm(mid))
        out = after[1](out) if sandwich else out
        values = (pre, attn, mid, out, mid + out)
        return dict(zip(ORDER, values, strict=True))

    return rest


def _child(block: nn.Module, name: str) -> nn.Module | None:
    try:
        return block.get_submodule(name)
    except AttributeError:
        return None


def offloaded(block: nn.Module) -> bool:
    """Whether weights come and go with the block's run, which must then run to its end."""
    return any(
        getattr(getattr(module, "_hf_hook", None), "offload", False) for module in block.modules()
    ) or any(weight.is_meta for weight in block.parameters())


def gap(found: Float[Tensor, "*token d_model"], wanted: Float[Tensor, "*token d_model"]) -> float:
    """Largest distance of two activations of a token, as a share of the second's length."""
    found, wanted = found.double(), wanted.double().to(found.device)
    return float(torch.nan_to_num((found - wanted).norm(dim=-1) / wanted.norm(dim=-1), 1e9).max())
