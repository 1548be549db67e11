"""The tokens after prompts, with no work done twice; the same tokens as one prompt at a time.

What all prompts begin with, the template's own tokens or a judge's rubric, is read once; and a
prompt whose answer has ended leaves the batch. Rounding aside: sums over a batch of another shape
differ in their last digits.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from probes.batches import padded
from probes.blocks import input_device, position_ids
from probes.rendering import Rendered
from regularize.model import base_of

FIXED_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}
"""Rotary embeddings that do not depend on how long the whole text is."""

Choose = Callable[[Float[Tensor, "row vocab"], Sequence[int], int], Int[Tensor, "row"]]
"""The next token by its logits, the rows' places in the batch, and how many stand before it."""
Heard = Callable[[Float[Tensor, "row vocab"]], None]
"""Is told the logits of each prompt's first token."""


class Ending(NamedTuple):
    """When an answer has ended."""

    new: int
    """Most tokens."""
    stops: frozenset[int]
    """Tokens that end a turn, and are left out."""
    early: Callable[[int, Sequence[int]], bool] | None = None
    """Whether a row, by its place in the batch, needs no more tokens than these; asked after each
    token that does not end it anyway."""

    def after(self, row: int, made: list[int], token: int) -> bool:
        """Whether an answer ends with a token, which is added to it unless it ends the turn."""
        if token in self.stops:
            return True
        made.append(token)
        return len(made) == self.new or (self.early is not None and self.early(row, made))


@dataclass(frozen=True)
class Decoder:
    """A model that has read what all prompts begin with."""

    model: nn.Module
    pad: int
    """Fills up short rows; masked, so any id of the vocabulary will do."""
    prefix: tuple[int, ...]
    """Token ids that every prompt begins with; more follow in each."""
    cache: DynamicCache
    """Keys and values of the prefix, for a batch of one. It is not changed."""

    @classmethod
    def of(cls, model: nn.Module, rows: Sequence[Rendered], *, pad: int) -> Decoder:
        """Read what all prompts have in common; of one alone, that is nothing.

        Args:
            model: A causal language model that `suits`.
            rows: The prompts.
            pad: See `Decoder`.
        """
        config = base_of(model).config.get_text_config(decoder=True)
        prefix = common([row.ids for row in rows]) if len(rows) > 1 else ()
        decoder = cls(model, pad, prefix, DynamicCache(config=config))
        if prefix:
            ids = torch.tensor([prefix])
            decoder._read(ids, torch.ones_like(ids), torch.arange(len(prefix))[None], decoder.cache)
        return decoder

    def decode(
        self,
        rows: Sequence[Rendered],
        ending: Ending,
        *,
        choose: Choose,
        heard: Heard | None = None,
    ) -> list[list[int]]:
        """The tokens after each prompt, without the one that ends the turn.

        Args:
            rows: Prompts that begin with the prefix.
            ending: When to stop.
            choose: `likeliest`, or how tokens are drawn.
            heard: Is told the first logits.
        """
        made: list[list[int]] = [[] for _ in rows]
        alive = list(range(len(rows)))
        cache = copy.deepcopy(self.cache)
        n = len(self.prefix)
        if n:
            cache.batch_repeat_interleave(len(rows))
        ids, own = padded([row._replace(ids=row.ids[n:]) for row in rows], self.pad, "left")
        mask = torch.cat([own.new_ones(len(rows), n), own], dim=1)
        positions = n + position_ids(own)
        for step in range(ending.new):
            logits = self._read(ids, mask, positions, cache)
            if step == 0 and heard is not None:
                heard(logits)
            ids = choose(logits, alive, step)[:, None].cpu()
            going = [
                place
                for place, (row, token) in enumerate(zip(alive, ids[:, 0].tolist(), strict=True))
                if not ending.after(row, made[row], token)
            ]
            if not going:
                break
            if len(going) < len(alive):
                cache.batch_select_indices(torch.tensor(going, device=logits.device))
                alive = [alive[place] for place in going]
                ids, mask, positions = ids[going], mask[going], positions[going]
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            positions = positions[:, -1:] + 1
        return made

    def _read(
        self,
        ids: Int[Tensor, "row new"],
        mask: Int[Tensor, "row token"],
        positions: Int[Tensor, "row new"],
        cache: DynamicCache,
    ) -> Float[Tensor, "row vocab"]:
        """Logits after the last of the new tokens, in full precision."""
        device = input_device(self.model)
        out: Any = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cast(Tensor, out.logits[:, -1].float())


def likeliest(
    logits: Float[Tensor, "row vocab"],
    rows: Sequence[int],  # noqa: ARG001
    step: int,  # noqa: ARG001
) -> Int[Tensor, "row"]:
    """Greedy decoding: see `Choose`."""
    return logits.argmax(-1)


def common(prompts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens that all prompts begin with, and that more follow in each."""
    first, last = min(prompts), max(prompts)  # in the order of their tokens
    most = min(map(len, prompts)) - 1
    n = next((i for i in range(most) if first[i] != last[i]), most)
    return first[:n]


def suits(model: nn.Module, tokens: int) -> bool:
    """Whether a model's memory of a text is keys and values of its tokens, one by one.

    Others, such as those with recurrent states, need `generate`.

    Args:
        model: A causal language model, a `PeftModel` too.
        tokens: Of the longest prompt and its answer.
    """
    base: Any = getattr(model, "get_base_model", lambda: model)()
    if not isinstance(base, PreTrainedModel):
        return False
    config = base.config.get_text_config(decoder=True)
    takes = inspect.signature(base.forward).parameters
    if (
        config is not base.config  # with images and the like `generate` prepares more
        or config.is_encoder_decoder
        or getattr(base, "_is_stateful", False)
        or not {"position_ids", "past_key_values", "logits_to_keep"} <= takes.keys()
        or getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
        or not _rope_types(config) <= FIXED_ROPE
    ):
        return False
    layers = DynamicCache(config=config).layers
    windows = [layer for layer in layers if type(layer) is DynamicSlidingWindowLayer]
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers) and (
        # The padding of short prompts stands in the window too.
        all(tokens <= layer.sliding_window for layer in windows)
    )


def _rope_types(config: Any) -> set[str]:
    """Of all kinds of layers: some models have several."""
    known = getattr(config, "rope_parameters", None) or {}
    kinds = [one for one in known.values() if isinstance(one, dict)] or [known]
    return {one.get("rope_type", "default") for one in kinds}
