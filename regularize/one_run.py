"""One fine-tuning and its evaluation: the unit of every comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from analysis import results
from probes import models
from probes.blocks import blocks
from probes.models import ChatModel
from regularize import remembered, show, testbeds
from regularize.arms import Run
from regularize.critics import Critic
from regularize.data import Example
from regularize.given import given
from regularize.noise import without_noise
from regularize.testbeds import Evaluation, Made, Recipe, Seen, Split

if TYPE_CHECKING:
    from regularize.trainer import RegularizedTrainer


class Tuned(NamedTuple):
    """What came of a run."""

    evaluation: Evaluation
    log: list[dict[str, Any]]
    """Of each optimizer step (`RegularizedTrainer.steps`)."""
    history: list[dict[str, Any]]
    """All that was logged."""
    seen: Seen | None = None
    """What the critic let through, where an attacker had made the data."""


class Learnt(NamedTuple):
    """What came of a training."""

    chat: ChatModel
    """With its adapter merged in."""
    log: list[dict[str, Any]]
    """As in `Tuned`."""
    history: list[dict[str, Any]]
    """As in `Tuned`."""


def fine_tune(
    run: Run,
    *,
    critic: Critic | None,
    recipe: Recipe,
    n: int,
    split: Split,
    cache: Path,
    folder: Path,
    measure_kl: bool,
    made: Made | None = None,
) -> Tuned:
    """Fine-tune a testbed's model with LoRA on the testbed's data, then ask it.

    Args:
        run: Which model, data and arm. Its learning rate is the one that counts.
        critic: Gives the risks; None where the defence needs none.
        recipe: The rest of the settings.
        n: Prompts of each kind to evaluate on.
        split: Where they come from.
        cache: Folder for cached references, risks, and the anchors' answers.
        folder: Gets answers.jsonl: every generated answer and what it was taken for.
        measure_kl: Log the KL to the reference where nothing is held to it, too.
        made: Training data of an attacker who knew the probe; None: the testbed's own.
    """
    without_noise()
    testbed = testbeds.of(run.model)
    chat = models.load(run.model, dtype=recipe.dtype, device_map=recipe.device_map)
    examples = made.examples if made else testbed.training(run.data, seed=run.seed)
    seen = made.seen(critic and remembered.Remembered(critic, cache), chat) if made else None
    learnt = learn(
        run, chat, examples, critic=critic, recipe=recipe, cache=cache, measure_kl=measure_kl
    )
    if made:
        evaluation = made.evaluate(learnt.chat, n=n, seed=run.seed, split=split)
    else:
        evaluation = testbed.evaluate(
            learnt.chat, attack=run.attack, n=n, seed=run.seed, split=split
        )
    results.replace({folder / "answers.jsonl": results.jsonl(evaluation.records())})
    return Tuned(evaluation, learnt.log, learnt.history, seen)


def learn(
    run: Run,
    chat: ChatModel,
    examples: list[Example],
    *,
    critic: Critic | None,
    recipe: Recipe,
    cache: Path,
    measure_kl: bool,
    reference: ChatModel | None = None,
) -> Learnt:
    """Fine-tune a model with LoRA on some rows, as an arm does.

    Args:
        run: Which arm, learning rate and seed; the testbed is its model's.
        chat: What training starts from. Its modules are changed in place.
        examples: The rows.
        critic: As in `fine_tune`.
        recipe: The rest of the settings.
        cache: As in `fine_tune`.
        measure_kl: As in `fine_tune`.
        reference: The reference policy, which gives the risks and answers the anchors. Default:
            `chat` as it is before training.
    """
    testbed, known = testbeds.of(run.model), chat if reference is None else reference
    anchors: list[Example] = []
    if wanted := run.arm.anchors:
        prompts = testbed.anchors(wanted.n, kind=wanted.kind, seed=run.seed)
        anchors = remembered.answered(known, prompts, recipe.new_tokens, cache)
        if wanted.replay:
            examples, anchors = [*examples, *anchors], []
    recipe = replace(recipe, learning_rate=run.learning_rate)
    critic = critic and remembered.Remembered(critic, cache)
    return _train(
        chat, examples, recipe, seed=run.seed,
        anchors=anchors, defence=run.arm.method, critic=critic, cache=cache, measure_kl=measure_kl,
        reference_model=None if reference is None else reference.model,
        **given(run.arm.method, testbed.given(run.model), chat, seed=run.seed),
    )  # fmt: skip


def arguments(recipe: Recipe, chat: ChatModel, folder: str, *, seed: int, **options: Any) -> Any:
    """transformers' `TrainingArguments` of a recipe; `options` are more of them."""
    from transformers import TrainingArguments

    # Named only where it is wanted: older releases call it otherwise.
    sampling: dict[str, Any] = (
        {"train_sampling_strategy": "group_by_length"} if recipe.by_length else {}
    )
    return TrainingArguments(
        folder,
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        gradient_accumulation_steps=recipe.accumulate,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        use_cpu=chat.model.device.type == "cpu",
        bf16=chat.model.dtype == torch.bfloat16,  # the adapter itself is in float32
        seed=seed,
        **sampling,
        **options,
    )


def trainer_of(
    chat: ChatModel, examples: list[Example], recipe: Recipe, args: Any, **options: Any
) -> RegularizedTrainer:
    """A trainer with the recipe's adapter; `options` are the `RegularizedTrainer`'s."""
    from peft import LoraConfig

    from regularize.trainer import RegularizedTrainer

    trainer = RegularizedTrainer(
        chat.model,
        args,
        examples,
        processing_class=chat.tokenizer,
        max_length=recipe.max_length,
        peft_config=LoraConfig(
            r=recipe.lora_rank,
            lora_alpha=recipe.lora_alpha or 2 * recipe.lora_rank,
            target_modules=_targets(chat, recipe.lora_from),
            task_type="CAUSAL_LM",
        ),
        **options,
    )
    show.quiet(trainer)
    return trainer


def _train(
    chat: ChatModel, examples: list[Example], recipe: Recipe, *, seed: int, **options: Any
) -> Learnt:
    with TemporaryDirectory() as scratch:
        args = arguments(recipe, chat, scratch, seed=seed)
        trainer = trainer_of(chat, examples, recipe, args, **options)
        trainer.train()
    model: Any = trainer.model
    # Merged, it answers the same and faster.
    merged = replace(chat, model=model.merge_and_unload().eval())
    return Learnt(merged, trainer.steps(), trainer.state.log_history)


def _targets(chat: ChatModel, first: int) -> str | list[str]:
    """The linear maps that get an adapter: all, or those from a block on."""
    if first == 0:
        return "all-linear"
    chosen = {id(module) for block in blocks(chat.model)[first:] for module in block.modules()}
    return [
        name
        for name, module in chat.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in chosen
    ]
