"""The model that is to be trained: loaded where it is only named, placed, given its adapter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from probes.errors import InputError
from probes.models import ChatModel, load
from regularize import lora


def chat_of(
    model: Any, tokenizer: PreTrainedTokenizerBase | None, args: TrainingArguments
) -> ChatModel:
    """The model with its tokenizer, loaded where they are only named."""
    if isinstance(model, str):
        chat = load(model, device_map=str(args.device))
        return chat if tokenizer is None else replace(chat, tokenizer=tokenizer)
    name = model.config.name_or_path
    return ChatModel(name, None, model, tokenizer or AutoTokenizer.from_pretrained(name))


def place(model: nn.Module, device: torch.device) -> None:
    """Move it there; what was loaded by a device map or quantised stays put."""
    if not (getattr(model, "hf_device_map", None) or getattr(model, "hf_quantizer", None)):
        model.to(device)


def adapted(model: PreTrainedModel, peft_config: Any, seed: int) -> nn.Module:
    """The model with an adapter whose first weights follow from the run's seed.

    Raises:
        InputError: The adapter has target modules that the model does not have.
    """
    from peft import get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            found = get_peft_model(model, peft_config)
        except ValueError as error:
            raise InputError(f"the adapter does not fit the model: {error}") from error
    lora.fuse(found)
    return found
