"""Rows of the language -> token ids and answer mask, in batches of like length."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from probes.miniature.language import Row

FIRST_WEIGHT = 3.0
"""Loss weight of an answer's first token, which decides between help and refusal."""
POOL = 50
"""Batches that are sorted by length together."""


class Batch(NamedTuple):
    """Token ids padded on the right, and the loss weight of predicting each token."""

    ids: Int[Tensor, "batch token"]
    weight: Float[Tensor, "batch token"]


class Encoder:
    """Renders a prompt with the tokenizer's chat template, the answer after it.

    The template is rendered once and its two ends are kept: special tokens part them from what the
    user says, so the ids are those of the whole text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        mark = "MARK"
        chat = [{"role": "user", "content": mark}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        self._ends = [self._ids(tokenizer, [part])[0] for part in str(rendered).split(mark)]
        self._tokenizer = tokenizer

    @staticmethod
    def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
        return list(tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each prompt, up to where the answer begins."""
        before, after = self._ends
        return [[*before, *ids, *after] for ids in self._ids(self._tokenizer, texts)]

    def answers(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each answer and of the token that ends it."""
        end = self._tokenizer.eos_token_id
        return [[*ids, end] for ids in self._ids(self._tokenizer, texts)]


def batches(
    encoder: Encoder, rows: Iterable[tuple[Row, str]], *, size: int, pad: int, rng: Random
) -> Iterator[Batch]:
    """Batches of ``size`` rows and answers of like length, in random order within a pool."""
    stream = iter(rows)
    while pool := list(islice(stream, size * POOL)):
        prompts = encoder.prompts([row.text for row, _ in pool])
        answers = encoder.answers([answer for _, answer in pool])
        pairs = sorted(zip(prompts, answers, strict=True), key=lambda p: len(p[0]) + len(p[1]))
        groups = [pairs[i : i + size] for i in range(0, len(pairs), size)]
        rng.shuffle(groups)
        yield from (_batch(group, pad) for group in groups)


def _batch(pairs: Sequence[tuple[list[int], list[int]]], pad: int) -> Batch:
    width = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = torch.full((len(pairs), width), pad)
    weight = torch.zeros(len(pairs), width)
    for i, (prompt, answer) in enumerate(pairs):
        end = len(prompt) + len(answer)
        ids[i, :end] = torch.tensor(prompt + answer)
        weight[i, len(prompt) : end] = 1.0
        weight[i, len(prompt)] = FIRST_WEIGHT
    return Batch(ids, weight)
