"""Models of random weights, and prompts of random tokens: what the captures read.

Tokens are uniformly random, so that prompts have in common what they are given in common and no
more: a chat template, a few-shot header, or all but the end of a twin.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from probes.rendering import Rendered

FAMILIES = {
    "Llama": (LlamaConfig, LlamaForCausalLM),
    "Qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "Phi-3": (Phi3Config, Phi3ForCausalLM),
}
TEMPLATE = 25
"""Tokens of the chat template, which begin every prompt."""


class Shape(NamedTuple):
    """Of a model."""

    family: str = "Llama"
    d_model: int = 512
    d_mlp: int = 1408
    n_layers: int = 8
    heads: int = 8
    kv_heads: int = 8
    vocabulary: int = 32_000
    tied: bool = False
    """Whether the head is the embedding."""

    def model(self, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """With random weights, the same ones every time."""
        config, kind = FAMILIES[self.family]
        with torch.random.fork_rng(), torch.device(device):
            torch.manual_seed(0)
            made = kind._from_config(
                config(
                    vocab_size=self.vocabulary, hidden_size=self.d_model,
                    intermediate_size=self.d_mlp, num_hidden_layers=self.n_layers,
                    num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
                    max_position_embeddings=4096, tie_word_embeddings=self.tied,
                    pad_token_id=None, bos_token_id=1, eos_token_id=2,
                ),
                dtype=dtype,
            )  # fmt: skip
        # Random biases, which real ones of this family have, are zero in a new model.
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            for name, weight in made.named_parameters():
                if name.endswith(".bias"):
                    weight.copy_(0.02 * torch.randn(weight.shape))
        return made.eval().requires_grad_(False)


class Random:
    """Draws tokens and lengths."""

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary, self.generator = vocabulary, torch.Generator().manual_seed(2)

    def tokens(self, n: int) -> tuple[int, ...]:
        """Ids of `n` random tokens."""
        return tuple(torch.randint(self.vocabulary, (n,), generator=self.generator).tolist())

    def length(self, least: int, most: int) -> int:
        """From `least` to `most`."""
        return int(torch.randint(least, most + 1, (1,), generator=self.generator))


Prompts = Callable[[int], list[tuple[int, ...]]]
"""Of a vocabulary: the token ids of each prompt."""


def _chats(n: int, least: int, most: int, shared: int, vocabulary: int) -> list[tuple[int, ...]]:
    draw = Random(vocabulary)
    template = draw.tokens(shared)
    return [template + draw.tokens(draw.length(least, most) - shared) for _ in range(n)]


def chats(n: int, least: int = 40, most: int = 140, *, shared: int = TEMPLATE) -> Prompts:
    """Prompts of `least` to `most` tokens, of which the first are the template's."""
    return partial(_chats, n, least, most, shared)


def _twins(pairs: int, vocabulary: int) -> list[tuple[int, ...]]:
    draw = Random(vocabulary)
    template, out = draw.tokens(TEMPLATE), []
    for _ in range(pairs):
        length = draw.length(40, 140) - TEMPLATE
        same = template + draw.tokens(length * 2 // 3)
        out += [same + draw.tokens(length - length * 2 // 3) for _ in range(2)]
    return out


def twins(pairs: int) -> Prompts:
    """Pairs of prompts that part after the template and two thirds of what follows."""
    return partial(_twins, pairs)


def rows(prompts: list[tuple[int, ...]]) -> list[Rendered]:
    """As the capture takes them; the last token is read."""
    return [Rendered(ids, len(ids) - 1, False) for ids in prompts]


class Batch(NamedTuple):
    """Padded prompts."""

    chosen: list[int]
    """Their places among all."""
    ids: Tensor
    mask: Tensor
    last: Tensor
    """Column of each one's last token."""


def batches(
    prompts: list[tuple[int, ...]], *, size: int, by_length: bool, left: bool = False
) -> list[Batch]:
    """All prompts, `size` at a time, padded on the right or the left."""
    order = list(range(len(prompts)))
    if by_length:
        order.sort(key=lambda i: len(prompts[i]))
    out = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        width = max(len(prompts[i]) for i in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            n = len(prompts[i])
            where = slice(width - n, None) if left else slice(n)
            ids[row, where] = torch.tensor(prompts[i])
            mask[row, where] = 1
        last = torch.full((len(chosen),), width - 1) if left else mask.sum(-1) - 1
        out.append(Batch(chosen, ids, mask, last))
    return out
