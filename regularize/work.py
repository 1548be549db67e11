"""What a cell of a comparison has to do, counted without its weights: tokens, FLOP, bytes.

Tokens are those of the very training rows, rendered and encoded with the model's tokenizer, padded
as batches are; and those of the evaluation, which is walked through with a model that hears all and
answers nothing. N are the weights that a token is multiplied by: all, but for an embedding that is
not the head too.

    forward pass            2 N FLOP a token
    LoRA step               4 N: the frozen weights pass the gradient on and have none of their own
    generation              2 N a token, read or written

Attention's own products are left out (a few percent at these lengths), and so is what a defence
does besides: the reference is computed once for all cells that have the same data. Memory is the
weights, the adapter with its gradient and Adam's two moments in float32, and what the backward pass
keeps of the largest batch, as torch tells when a step is gone through on its meta device; or, if
that is more, the cache of generation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from probes import models
from probes.blocks import blocks
from probes.models import ChatModel
from probes.rendering import render
from regularize.data import encode
from regularize.generation import BATCH_TOKENS
from regularize.losses import CHUNK

if TYPE_CHECKING:
    from regularize.arms import Run
    from regularize.testbeds import Recipe, Split, Testbed

ADAM = 16
"""Bytes of a weight that is trained: itself, its gradient, two moments."""


@dataclass(frozen=True)
class Shape:
    """A model without its weights."""

    chat: ChatModel
    """On the meta device, in the number format that it would have."""
    blocks: int
    """N of the blocks."""
    head: int
    """N of the head."""
    weights: int
    """Bytes."""

    @property
    def n(self) -> int:
        """Weights that a token is multiplied by."""
        return self.blocks + self.head


class Work(NamedTuple):
    """What there is to do, of a training or an evaluation."""

    trained: int = 0
    """Tokens of all steps, padding included."""
    read: int = 0
    """Tokens of prompts."""
    written: int = 0
    """Tokens of answers, at most."""


def shape(model: str, recipe: Recipe) -> Shape:
    """A model as a cell would load it, from its config and tokenizer alone.

    Raises:
        InputError: They are not to be had.
    """
    chat = models.load(model, weights=False)
    bare: Any = chat.model
    on_cpu = recipe.device_map == "cpu" or not torch.accelerator.is_available()
    dtype = bare.config.dtype or torch.float32
    if recipe.dtype != "auto":
        dtype = getattr(torch, recipe.dtype)
    elif dtype == torch.float16 and on_cpu:
        dtype = torch.float32
    bare.to(dtype)
    every = dict(bare.named_parameters())  # each once, where two are tied
    inner = sum(weight.numel() for weight in blocks(bare).parameters())
    head = bare.get_output_embeddings()
    return Shape(chat, inner, head.weight.numel(), sum(weight.nbytes for weight in every.values()))


def lengths(run: Run, testbed: Testbed, chat: ChatModel, recipe: Recipe) -> list[int]:
    """Tokens of each row that is trained on; of an anchor's answer, the most there can be."""
    limit = recipe.max_length or models.context_length(chat.model)
    found = [
        len(encode(one, chat.tokenizer, max_length=limit).input_ids)
        for one in testbed.training(testbed.source(run.data), seed=run.seed)
    ]
    if wanted := run.arm.anchors:
        prompts = testbed.anchors(wanted.n, kind=wanted.kind, seed=run.seed)
        found += [len(render(chat.tokenizer, one).ids) + recipe.new_tokens for one in prompts]
    return found


def training(lengths: Sequence[int], recipe: Recipe) -> Work:
    """All steps on rows of these lengths."""
    order = sorted(lengths)
    if not recipe.by_length:
        Random(0).shuffle(order)
    size = recipe.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return Work(round(recipe.epochs * sum(max(batch) * len(batch) for batch in batches)))


def evaluation(
    testbed: Testbed, chat: ChatModel, *, attack: str, n: int, seed: int, split: Split
) -> Work:
    """All that a model is asked after an attack."""
    heard: Any = _Listener(chat)
    testbed.evaluate(replace(chat, model=heard), attack=attack, n=n, seed=seed, split=split)
    return Work(read=heard.read, written=heard.written)


def flop(work: Work, shape: Shape, recipe: Recipe) -> float:
    """Of all of it."""
    upper = 1 - recipe.lora_from / len(blocks(shape.chat.model))
    step = 2 * shape.n + 2 * (upper * shape.blocks + shape.head)
    return work.trained * step + 2.0 * shape.n * (work.read + work.written)


def memory(shape: Shape, recipe: Recipe, longest: int, *, base: bool) -> int:
    """Bytes that a cell holds at most, beside those of Python and the libraries.

    Args:
        shape: Of the model.
        recipe: Its batches and its adapter.
        longest: Tokens of the longest row.
        base: Whether a second model stands beside it.
    """
    config: Any = shape.chat.model.config.get_text_config()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * width
    generating = BATCH_TOKENS * cache * shape.chat.model.dtype.itemsize
    with _adapted(shape, recipe) as (model, adapter):
        kept = _kept(model, recipe.batch_size, longest)
    device = "cpu" if recipe.device_map == "cpu" or not torch.cuda.is_available() else "cuda"
    return shape.weights * (1 + base) + max(generating, adapter * ADAM + kept + 12 * CHUNK[device])


@contextmanager
def _adapted(shape: Shape, recipe: Recipe) -> Iterator[tuple[nn.Module, int]]:
    """The model with its adapter, and the adapter's weights; as it was, afterwards."""
    from peft import LoraConfig, get_peft_model

    from regularize.one_run import _targets

    chat = shape.chat
    config = LoraConfig(
        r=recipe.lora_rank, target_modules=_targets(chat, recipe.lora_from), task_type="CAUSAL_LM"
    )
    # In the weights' own format, as what autocast keeps is in it.
    model: Any = get_peft_model(chat.model, config, autocast_adapter_dtype=False)
    try:
        yield model, sum(one.numel() for one in model.parameters() if one.requires_grad)
    finally:
        model.unload()


def _kept(model: nn.Module, batch: int, tokens: int) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights apart."""
    from regularize.model import base_of

    own = {one.untyped_storage()._cdata for one in model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(batch, tokens, dtype=torch.long, device="meta")
    # Four-dimensional: of another, transformers would look at the values.
    mask = torch.zeros(batch, 1, tokens, tokens, device="meta", dtype=base_of(model).dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base_of(model).get_decoder()(
            input_ids=ids, attention_mask=mask, position_ids=torch.zeros_like(ids), use_cache=False
        )
    return sum(found.values())


class _Listener(nn.Module):
    """Stands for a model: hears what it is asked, and ends its turn at once."""

    def __init__(self, chat: ChatModel) -> None:
        super().__init__()
        self.config, self.generation_config = chat.model.config, chat.model.generation_config
        self.embedding = nn.Embedding(1, 1)
        self.end = chat.tokenizer.eos_token_id or 0
        self.read = self.written = 0

    @property
    def device(self) -> torch.device:
        """A CPU."""
        return self.embedding.weight.device

    def get_decoder(self) -> nn.Module:
        """Itself."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """What tells where ids go."""
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """A head that is never asked."""
        return self.embedding

    def generate(self, input_ids: Tensor, generation_config: Any, **_: object) -> Tensor:
        """The prompts, and the end."""
        self.read += input_ids.numel()
        self.written += len(input_ids) * generation_config.max_new_tokens
        return nn.functional.pad(input_ids, (0, 1), value=self.end)
