"""Stands in for vLLM: just the calls that the engine makes, carried out by transformers.

It refuses what vLLM refuses, and keeps what it was given, for tests to look at.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel

from probes import models
from probes.models import ChatModel

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass
class SamplingParams:
    """Those of its arguments that are used; others are unknown here."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    detokenize: bool = True


@dataclass
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str


class LLM:
    """One prompt at a time, without a cache."""

    made: list[LLM]

    def __init__(
        self,
        model: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        max_model_len: int,
        tensor_parallel_size: int = 1,
        gpu_memory_utilization: float = 0.9,
        generation_config: str = "auto",
        enable_lora: bool = False,
        max_lora_rank: int = 16,
    ) -> None:
        assert max_lora_rank in RANKS
        if tensor_parallel_size > 1:
            raise ValueError("World size (2) is larger than the number of available GPUs\nmore")
        self.given = dict(locals())
        self.chat: ChatModel = models.load(model, device_map="cpu")
        self.asked: list[SimpleNamespace] = []
        LLM.made.append(self)

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: list[SamplingParams],
        *,
        use_tqdm: bool = True,
        lora_request: LoRARequest | None = None,
    ) -> list[SimpleNamespace]:
        assert len(prompts) == len(sampling_params)
        self.asked.append(SimpleNamespace(**{**locals(), "self": None}))
        model: Any = self.chat.model
        if lora_request is not None:
            assert self.given["enable_lora"] and lora_request.lora_int_id > 0
            model = PeftModel.from_pretrained(model, lora_request.lora_path).eval()
        try:
            return [
                SimpleNamespace(outputs=[SimpleNamespace(token_ids=self._one(model, *pair))])
                for pair in zip(prompts, sampling_params, strict=True)
            ]
        finally:
            if lora_request is not None:
                model.unload()

    def _one(
        self, model: Any, prompt: dict[str, list[int]], how: SamplingParams
    ) -> tuple[int, ...]:
        assert list(prompt) == ["prompt_token_ids"]
        ids, made = prompt["prompt_token_ids"], []
        assert len(ids) + how.max_tokens <= self.given["max_model_len"]
        draws = None if how.seed is None else torch.Generator().manual_seed(how.seed)
        while len(made) < how.max_tokens and (not made or made[-1] not in how.stop_token_ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids + made])).logits[0, -1]
            if how.temperature == 0:
                made.append(int(logits.argmax()))
            else:
                p = (logits / how.temperature).softmax(-1)
                made.append(int(torch.multinomial(p, 1, generator=draws)))
        return tuple(made)  # the one that ends the turn is among them


def install(patch: pytest.MonkeyPatch) -> None:
    """Make it importable as vLLM."""
    LLM.made = []
    vllm, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    request.LoRARequest = LoRARequest
    for module in (vllm, lora, request):
        patch.setitem(sys.modules, module.__name__, module)
