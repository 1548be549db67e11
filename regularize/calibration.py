"""How fast this machine does a model's work: a LoRA step and some generation, timed on its shape.

The model has the true widths and vocabulary, but few blocks where it is large, and random weights,
so that no download is needed and seconds are enough. What a cell does besides (loading, rendering,
judging) is not in it: the seconds of finished cells are the better guide where there are any.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from probes.blocks import reading
from regularize import lora
from regularize.generation import BATCH_TOKENS, head_read_once
from regularize.work import Shape

if TYPE_CHECKING:
    from regularize.testbeds import Recipe

SMALL = 10**8
"""Weights up to which all blocks are taken."""
FEW = 2
"""Blocks that a larger model has here."""
MOST = {"cpu": 2e11, "cuda": 1e14}
"""FLOP of what is timed once, at most."""
ENOUGH = 0.5
"""Seconds that are timed at least."""
NEW = 8
"""Tokens that are generated."""


class Rate(NamedTuple):
    """FLOP a second."""

    training: float
    generating: float


def rate(shape: Shape, recipe: Recipe, *, tokens: int, prompt: int) -> Rate:
    """Measure it.

    Args:
        shape: Of the model.
        recipe: Its batches, its adapter, its device.
        tokens: Of a row of the training data.
        prompt: Tokens of a prompt of the evaluation.
    """
    device = _device(recipe)
    with _threads(recipe.threads):
        return _rate(shape, recipe, device, tokens, prompt)


def _rate(shape: Shape, recipe: Recipe, device: torch.device, tokens: int, prompt: int) -> Rate:
    from peft import LoraConfig, get_peft_model

    small, n = _small(shape, device)
    adapter = LoraConfig(r=recipe.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(small, adapter)
    lora.fuse(model)
    most = MOST.get(device.type, MOST["cuda"])

    rows = _fitting(recipe.batch_size, most / (4 * n * tokens))
    ids = torch.ones(rows, tokens, dtype=torch.long, device=device)
    step = _seconds(_step(model, ids), device)

    rows = _fitting(BATCH_TOKENS // (prompt + NEW), most / (2 * n * (prompt + NEW)))
    asked = torch.ones(rows, prompt, dtype=torch.long, device=device)
    said = _seconds(_generation(model, asked), device)
    return Rate(4 * n * ids.numel() / step, 2 * n * rows * (prompt + NEW) / said)


@contextmanager
def _threads(n: int) -> Iterator[None]:
    """So many, as a cell has."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _device(recipe: Recipe) -> torch.device:
    if recipe.device_map not in (None, "auto"):
        return torch.device(str(recipe.device_map))
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _small(shape: Shape, device: torch.device) -> tuple[Any, int]:
    """A model of this shape, and its N."""
    config = copy.deepcopy(shape.chat.model.config)
    text = config.get_text_config()
    whole = text.num_hidden_layers
    if shape.n > SMALL and whole > FEW:
        text.num_hidden_layers = FEW
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:FEW]
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    model = model.to(shape.chat.model.dtype).to_empty(device=device)
    with torch.no_grad():  # of buffers too: what lies in memory may be no number, which is slow
        for one in (*model.parameters(), *model.buffers()):
            one.fill_(0.01)
    return model.eval(), shape.blocks * text.num_hidden_layers // whole + shape.head


def _step(model: Any, ids: torch.Tensor) -> Callable[[], object]:
    """A LoRA step by the loss of plain fine-tuning, half of the tokens being the answers'."""
    from regularize.losses import regularized
    from regularize.model import answers_of, base_of, decode, head_of

    base = base_of(model)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-9)
    labels = ids.clone()
    labels[:, : ids.shape[1] // 2] = -100
    answer = answers_of(labels)
    ones = torch.ones(int(answer.sum()), device=ids.device)
    mixed = base.dtype == torch.bfloat16

    def step() -> None:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=mixed):
            hidden = decode(base, ids, torch.ones_like(ids))[:, :-1][answer]
            terms = regularized(hidden, head_of(model), labels[:, 1:][answer], ones, 0 * ones)
        (terms.loss / len(ones)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _generation(model: Any, asked: torch.Tensor) -> Callable[[], object]:
    config = GenerationConfig(
        max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=0, eos_token_id=0
    )

    def generate() -> object:
        with reading(model), head_read_once(model):
            return model.generate(
                input_ids=asked, attention_mask=torch.ones_like(asked), generation_config=config
            )

    return generate


def _fitting(wanted: int, most: float) -> int:
    return max(1, min(wanted, int(most)))


def _seconds(job: Callable[[], object], device: torch.device) -> float:
    """Of one, after one that fills caches."""

    def finished() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize()

    job()
    finished()
    began, n = perf_counter(), 0
    while perf_counter() - began < ENOUGH:
        job()
        finished()
        n += 1
    return (perf_counter() - began) / n
