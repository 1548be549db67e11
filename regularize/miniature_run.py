"""One fine-tuning of a miniature and its evaluation: the unit of every comparison."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

from analysis import results
from probes import models
from probes.models import ChatModel
from regularize import anchors as anchoring
from regularize import data, miniature, show
from regularize.critics import Critic
from regularize.defences import Defence
from regularize.miniature_evaluation import NEW_TOKENS, Evaluation, evaluate_miniature

BATCH = 16
LORA_RANK = 8


class Tuned(NamedTuple):
    """What came of a run."""

    evaluation: Evaluation
    log: list[dict[str, Any]]
    """Of each optimizer step (`RegularizedTrainer.steps`)."""


def fine_tune(
    model: str,
    spec: str,
    *,
    defence: Defence,
    critic: Critic | None,
    n_anchors: int,
    replay: bool = False,
    learning_rate: float,
    epochs: int,
    seed: int,
    n: int,
    split: Literal["validation", "test"],
    cache: Path,
    folder: Path,
) -> Tuned:
    """Fine-tune a miniature with LoRA on generated data, then ask it.

    Args:
        model: `miniature/FAMILY`.
        spec: The training data, such as `miniature:mixed:0.09`.
        defence: Turns risks into weights.
        critic: Gives the risks; None where the defence needs none.
        n_anchors: Prompts answered by the reference beforehand; 0 for none.
        replay: They join the data as ordinary rows instead, to see what the rows do by themselves.
        learning_rate: Peak, with a linear warm-up and a cosine to zero.
        epochs: Passes over the data.
        seed: Of data, order and adapter.
        n: Prompts of each kind to evaluate on.
        split: Where they come from.
        cache: Folder for cached references.
        folder: Gets answers.jsonl: every generated answer and what it was taken for.
    """
    show.without_noise()
    chat = models.load(model, device_map="cpu")
    examples = data.load(spec, seed=seed)
    anchors: list[data.Example] = []
    if n_anchors:
        prompts = miniature.anchors(n_anchors, seed=seed)
        anchors = anchoring.answered(chat, prompts, max_new_tokens=NEW_TOKENS)
    if replay:
        examples, anchors = [*examples, *anchors], []
    tuned, log = _train(
        chat, examples, anchors, defence, critic, learning_rate, epochs, seed, cache
    )
    evaluation = evaluate_miniature(tuned, n=n, seed=seed, split=split)
    answers = [
        {"kind": one.kind, "prompt": one.row.text, "answer": one.answer, **asdict(one.judged)}
        for one in evaluation.answered
    ]
    results.replace({folder / "answers.jsonl": results.jsonl(answers)})
    return Tuned(evaluation, log)


def _train(
    chat: ChatModel,
    examples: list[data.Example],
    anchors: list[data.Example],
    defence: Defence,
    critic: Critic | None,
    learning_rate: float,
    epochs: int,
    seed: int,
    cache: Path,
) -> tuple[ChatModel, list[dict[str, Any]]]:
    from peft import LoraConfig
    from transformers import TrainingArguments

    from regularize.trainer import RegularizedTrainer

    with TemporaryDirectory() as scratch:
        args = TrainingArguments(
            scratch,
            per_device_train_batch_size=BATCH,
            num_train_epochs=epochs,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=10,
            weight_decay=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            seed=seed,
        )
        trainer = RegularizedTrainer(
            chat.model,
            args,
            examples,
            processing_class=chat.tokenizer,
            defence=defence,
            critic=critic,
            anchors=anchors,
            peft_config=LoraConfig(
                r=LORA_RANK,
                lora_alpha=2 * LORA_RANK,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            ),
            measure_kl=True,
            cache=cache,
        )
        show.quiet(trainer)
        trainer.train()
    model: Any = trainer.model
    return replace(chat, model=model.eval()), trainer.steps()
