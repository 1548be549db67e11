"""What the loss needs of a causal language model: its last hidden states and its head."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from probes.attention import Plan, attending
from probes.blocks import evaluating, position_ids
from probes.errors import InputError
from regularize import packed
from regularize.losses import Head
from regularize.sharding import whole


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, out of an adapter's wrapper."""
    inner = getattr(model, "get_base_model", lambda: model)()
    return cast(PreTrainedModel, inner)


def adapter_off(model: nn.Module) -> AbstractContextManager[None]:
    """The model as it was before its adapter; without one, as it is."""
    off = getattr(model, "disable_adapter", nullcontext)()
    return cast(AbstractContextManager[None], off)


def head_of(model: nn.Module) -> Head:
    """The map from last hidden states to logits.

    Whole, also where the model is sharded: gathered in all processes, which all must ask for it.

    Raises:
        InputError: An adapter sits on it, or trains it, so that the reference's would be another.
    """
    base = base_of(model)
    found: Any = base.get_output_embeddings()
    if not _is_plain(found):
        raise InputError(
            f"the head of {base.config.name_or_path} is a {type(found).__name__}, not a plain "
            "linear layer: an adapter on the head changes the reference too; leave lm_head out of "
            "the adapter's targets and of modules_to_save"
        )
    if model is not base and found.weight.requires_grad:
        raise InputError(
            f"the head of {base.config.name_or_path} is trained beside the adapter; leave lm_head "
            "(and the embeddings that it is tied to) out of modules_to_save"
        )
    return Head(whole(found.weight), None if found.bias is None else whole(found.bias))


def _is_plain(module: object) -> bool:
    """Whether it is a linear layer and nothing else, sharded or not: no adapter's, say."""
    kind = type(module)
    if isinstance(module, FSDPModule):  # a class made for it, from FSDPModule and its own
        kind = kind.__mro__[2]
    return kind is nn.Linear


def refuse_prompt_learning(model: nn.Module) -> None:
    """Refuse adapters that put tokens before the prompt: they have no reference at a token's place.

    Raises:
        InputError: It is one.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise InputError(
            "prompt tuning and its kin put virtual tokens before the prompt, so that the "
            "reference's hidden states stand elsewhere; train a LoRA adapter instead"
        )


@torch.no_grad()
def check_logits(model: nn.Module, ids: list[int]) -> None:
    """Make sure that the model's logits are its head's output, on some tokens.

    Raises:
        InputError: They are not: the model caps or scales them (Gemma 2, Cohere, Granite), and a
            loss from the hidden states would be another model's.
    """
    base = base_of(model)
    tokens = torch.tensor([ids[:32]], device=base.device)
    with evaluating(base):
        hidden = decode(base, tokens, torch.ones_like(tokens))
        theirs = base(input_ids=tokens, use_cache=False).logits
    head = head_of(model)
    ours = nn.functional.linear(hidden, head.weight, head.bias)
    scale = theirs.float().std() + 1e-6
    # Small logits hardly feel a cap, but they grow.
    capped = getattr(base.config.get_text_config(), "final_logit_softcapping", None)
    if capped or not torch.allclose(
        ours.float() / scale, theirs.float() / scale, atol=0.05, rtol=0.05
    ):
        raise InputError(
            f"the logits of {base.config.name_or_path} are not those of its head: it caps or "
            "scales them, which the fused loss does not do; choose a model that does not"
        )


def decode(
    base: PreTrainedModel, ids: Int[Tensor, "batch token"], mask: Int[Tensor, "batch token"]
) -> Float[Tensor, "batch token d_model"]:
    """Last hidden states, after the final norm, without the head."""
    decoder: Any = base.get_decoder()
    found = decoder(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), use_cache=False
    )
    return cast(Tensor, found.last_hidden_state)


class Capture:
    """Runs a model as a whole, wrappers and all, and catches its last hidden states on the way.

    The head is given no token to work on: its logits are the loss's own business. Where the model
    allows it, a batch goes through it in one row without padding (`packed`).
    """

    def __init__(self, model: nn.Module, *, longest: int = 0) -> None:
        """Find out how the model may be run.

        Args:
            model: As it will be trained, not yet wrapped for several processes.
            longest: Longest example (tokens) that may be packed; 0 to pack none.
        """
        base = base_of(model)
        self._decoder: Any = base.get_decoder()
        self._limit = packed.limit(base, longest) if longest else 0
        takes = inspect.signature(base.forward).parameters
        self._keep = "logits_to_keep" in takes
        self._caught: Tensor | None = None
        base.get_decoder().register_forward_hook(self._catch)

    def __call__(
        self, model: nn.Module, ids: Int[Tensor, "batch token"], mask: Int[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token d_model"]:
        """Last hidden states of a forward pass through `model`, which may be wrapped (DDP)."""
        if ids.shape[1] > self._limit or packed.checkpointed(self._decoder):
            return self._run(model, ids, mask, position_ids(mask))
        batch = packed.packed(ids, mask)
        row = batch.pack.ids[None]
        with attending(self._decoder, Plan(batch.pack, loop=batch.loop)):
            hidden = self._run(model, row, torch.ones_like(row), batch.pack.positions[None])
        return hidden[0, batch.at]

    def _run(self, model: nn.Module, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        none = {"logits_to_keep": torch.empty(0, dtype=torch.long, device=ids.device)}
        model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            **(none if self._keep else {}),
        )
        caught, self._caught = self._caught, None
        assert caught is not None, "the decoder was not run"
        return caught

    def _catch(self, module: nn.Module, inputs: object, output: Any) -> None:  # noqa: ARG002
        self._caught = output.last_hidden_state


def answers_of(labels: Int[Tensor, "batch token"]) -> Bool[Tensor, "batch place"]:
    """Where the next token is an answer's. place = token - 1."""
    from regularize.data import IGNORE

    return labels[:, 1:] != IGNORE
