"""What a capture costs beside its forward passes: reading, tokenising, writing.

The job is a file of prompts turned into a cache on disk; the bound is the capture alone, of rows
that are tokenised already, of which nothing is written. The model is loaded, and the fingerprint
of its weights known, in both.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import AutoTokenizer

from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.capture import capture_rows, pad_id
from probes.hooks import EMBEDDING, sites
from probes.miniature import folder
from probes.miniature.language import request
from probes.models import ChatModel
from probes.prompts import load
from probes.rendering import render
from tests.benchmarks.cases import Against, Baseline, Group, Job
from tests.benchmarks.workloads import Shape

GOAL = 0.95
"""Share of the time that is to be the capture's own."""
SENTENCES = (3, 7)
"""In a prompt: some 85 tokens."""
LLAMA = Shape()


class Built(NamedTuple):
    """A chat model, and a file of prompts, which lasts as long as this."""

    chat: ChatModel
    place: TemporaryDirectory[str]
    token_budget: int

    @property
    def file(self) -> Path:
        """Prompts as JSON Lines."""
        return Path(self.place.name) / "prompts.jsonl"


def group(
    *, bench: str = "capture", case: str = "a file of 32 prompts to a cache on disk",
    shape: Shape = LLAMA, n: int = 32, token_budget: int = 4096, device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Group:  # fmt: skip
    """The whole way beside the capture alone.

    Args:
        bench: Name of the bench.
        case: Name of the case.
        shape: Of the model.
        n: Prompts.
        token_budget: Tokens of a batch.
        device: Where the model is.
        dtype: Of its weights.
    """
    build = partial(_build, shape, n, token_budget, device, dtype)
    alone = Baseline("the capture alone", _alone, goal=GOAL)
    return Group(bench, case, build, _whole, (alone,), memory=False, device=device)


def _build(shape: Shape, n: int, token_budget: int, device: str, dtype: torch.dtype) -> Built:
    tokenizer = AutoTokenizer.from_pretrained(folder("llama"))
    chat = ChatModel("random", None, shape.model(device=device, dtype=dtype), tokenizer)
    built = Built(chat, TemporaryDirectory(), token_budget)
    rng = Random(0)
    # A number in front, so that no two are the same: a file may not repeat a prompt.
    texts = [
        " ".join([f"{i}.", *(request(rng, "plain").text for _ in range(rng.randint(*SENTENCES)))])
        for i in range(n)
    ]
    lines = [json.dumps({"prompt": text, "label": i % 2}) for i, text in enumerate(texts)]
    built.file.write_text("\n".join(lines), encoding="utf-8")
    return built


def _cached(built: Built, directory: str) -> ActivationCache:
    return ActivationCache.build(
        directory, built.chat, load(str(built.file)), backend=open_backend(built.chat.model),
        token_budget=built.token_budget, weights="random",
    )  # fmt: skip


def _whole(built: Built) -> Job:
    def job() -> None:
        with TemporaryDirectory() as directory:
            _cached(built, directory)

    return job


def _alone(built: Built) -> Against:
    tokenizer, model = built.chat.tokenizer, built.chat.model
    rows = [render(tokenizer, messages) for messages in load(str(built.file)).messages]
    read = (EMBEDDING, *sites("resid_post", range(model.config.num_hidden_layers)))

    def job() -> Tensor:
        return capture_rows(
            open_backend(model), rows, read, pad_id=pad_id(tokenizer),
            token_budget=built.token_budget,
        )  # fmt: skip

    def kept() -> Tensor:
        with TemporaryDirectory() as directory:
            cache = _cached(built, directory)
            layers = [cache.layer(layer) for layer in range(cache.n_layers)]
            return torch.stack([cache.embedding(), *layers], dim=1)

    return Against(job, kept)
