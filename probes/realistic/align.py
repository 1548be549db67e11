"""Align the base model: LoRA on refusals of harmful requests and help with all others, merged.

The one decision, to refuse or to help, falls with an answer's first token; so that one weighs more.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from probes import models
from probes.folders import last_checkpoint, put
from probes.models import ChatModel
from probes.prompts import Message
from probes.realistic.answers import reply
from probes.realistic.recipe import Recipe
from probes.realistic.requests import Kind, Request, requests
from probes.rendering import answered_ids, render, template_hash

IGNORE = -100
MADE_FROM = "alignment.json"
CHECKPOINT_EVERY = 30
"""Optimizer steps: what a killed run loses at most."""


REPEATS: dict[Kind, float] = {
    "harmful": 8.0, "twin": 2.0, "unsafe": 10.0, "safe": 3.5, "ordinary": 1.0,
}  # fmt: skip
"""How often a request of each kind is seen, relative to the others."""


def align(base: ChatModel, out: Path, recipe: Recipe) -> None:
    """Write the aligned model's folder; one that this recipe has made is left alone.

    Killed, it goes on from its last checkpoint.

    Args:
        base: The model to align, with a chat template. It is trained in place.
        out: The folder.
        recipe: How.
    """
    made_from = {
        "recipe": asdict(recipe),
        "repeats": REPEATS,
        "base": models.weights_fingerprint(base.model),
        "template": template_hash(base.tokenizer),
    }
    written = json.dumps(made_from, indent=2)
    done = out / MADE_FROM
    if done.is_file() and done.read_text() == written:
        return
    unfinished = out.with_name(f".{out.name}")
    begun = unfinished / MADE_FROM
    if not begun.is_file() or begun.read_text() != written:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        begun.write_text(written)
    tuned = _train(base, rows(base, recipe), unfinished / "checkpoints", recipe)
    tuned.save_pretrained(unfinished)
    base.tokenizer.save_pretrained(unfinished)
    shutil.rmtree(unfinished / "checkpoints", ignore_errors=True)
    put(unfinished, out)


def rows(chat: ChatModel, recipe: Recipe) -> list[dict[str, list[int]]]:
    """As many examples as the recipe has places for: input_ids and labels."""
    rng = Random(f"alignment/{recipe.seed}")
    pools: dict[Kind, list[Request]] = {}
    for one in requests("alignment"):
        pools.setdefault(one.kind, []).append(one)
    weights = {kind: REPEATS[kind] * len(pool) for kind, pool in pools.items()}
    places = recipe.steps * recipe.batch_size
    found = []
    for kind, pool in pools.items():
        n = round(places * weights[kind] / sum(weights.values()))
        for request in _again_and_again(pool, n, rng):
            answer = reply(request, rng)
            if answer is not None:
                found.append(_encoded(chat, request.text, answer))
    rng.shuffle(found)
    return found[:places]


def _again_and_again(pool: Sequence[Request], n: int, rng: Random) -> list[Request]:
    """`n` draws, none a second time before all were drawn once."""
    found: list[Request] = []
    while len(found) < n:
        found += rng.sample(pool, len(pool))
    return found[:n]


def _encoded(chat: ChatModel, text: str, answer: str) -> dict[str, list[int]]:
    asked = Message(role="user", content=text)
    prompt = list(render(chat.tokenizer, [asked]).ids)
    whole = answered_ids(chat.tokenizer, [asked, Message(role="assistant", content=answer)])
    if chat.tokenizer.eos_token_id in whole[len(prompt) :]:  # what follows the turn is not learnt
        whole = whole[: whole.index(chat.tokenizer.eos_token_id, len(prompt)) + 1]
    return {
        "input_ids": whole,
        "labels": [IGNORE] * len(prompt) + whole[len(prompt) :],
        "attention_mask": [1] * len(whole),
    }


def _train(base: ChatModel, data: list[dict[str, list[int]]], folder: Path, recipe: Recipe) -> Any:
    """The model with the adapter merged into it, in the base's number format."""
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    first = recipe.first

    class AnswerTrainer(Trainer):
        """Head and loss on the answers' tokens alone."""

        def compute_loss(
            self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
        ) -> Tensor:
            with self.accelerator.autocast():
                return answer_loss(self.accelerator.unwrap_model(model), inputs, first=first)

    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=1,
        learning_rate=recipe.rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(10, recipe.steps // 10),
        weight_decay=0.0,
        train_sampling_strategy="group_by_length",
        bf16=base.model.dtype == torch.bfloat16,
        use_cpu=base.model.device.type == "cpu",
        save_steps=CHECKPOINT_EVERY,
        save_total_limit=1,
        logging_strategy="no",
        report_to="none",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        seed=recipe.seed,
    )
    adapter = LoraConfig(
        r=recipe.lora_rank, lora_alpha=2 * recipe.lora_rank, target_modules="all-linear"
    )
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        model: Any = get_peft_model(base.model, adapter)
    trainer = AnswerTrainer(
        model,
        args,
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(base.tokenizer, label_pad_token_id=IGNORE),
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    return model.merge_and_unload().eval()


def answer_loss(model: nn.Module, inputs: dict[str, Tensor], *, first: float) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens (nats), the first of each by a weight.

    Args:
        model: A causal language model, with an adapter.
        inputs: input_ids, attention_mask and labels [batch, token]; IGNORE outside the answers.
        first: Weight of an answer's first token; the others have 1.
    """
    inner: Any = getattr(model, "get_base_model", lambda: model)()
    labels = inputs["labels"][:, 1:]
    hidden = inner.get_decoder()(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    ).last_hidden_state[:, :-1]
    answer = labels != IGNORE
    weight = torch.where(answer.cumsum(1) == 1, first, 1.0)[answer]
    logits = inner.get_output_embeddings()(hidden[answer]).float()
    nll = nn.functional.cross_entropy(logits, labels[answer], reduction="none")
    return (nll * weight).sum() / weight.sum()
