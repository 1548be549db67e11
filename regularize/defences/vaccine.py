"""Vaccine: align once more, under perturbations, before the fine-tuning that is not trusted.

Huang, Hu and Liu 2024, arXiv 2402.01109 ("Vaccine: Perturbation-aware alignment for large language
models against harmful fine-tuning attack"). Harmful fine-tuning makes the hidden states of the
alignment data drift; so align with the hidden states at their worst within a radius rho:

    min over theta of  max over ||eps|| <= rho of  L_safe(theta; h_l + eps_l),
    eps_l = rho g_l / sqrt(sum_l ||g_l||^2),    g_l = dL_safe / dh_l

L_safe is the mean NLL over the answer tokens of the safe data (`perturbed` has the step). The stage
trains an adapter of its own, which is merged into the model; then come plain fine-tuning and the
user's adapter ("double LoRA", as the authors prefer). The reference policy is the model after the
stage. The model given here is aligned already, where the paper aligns a base model.

The paper perturbs the hidden embedding of each layer, the released code the outputs of the
attention modules; so do we. That code sets all gradients to zero between its two passes, so that
of accumulated batches only the last counts, and drops .1 of its adapter's inputs, by another mask
in each pass; we do neither. From it comes what has no option here: AdamW with a weight decay of .1,
a warm-up over a tenth of the steps, then a cosine to zero. It trains on 2000 safe rows, for 20,000
steps.

Two forward and two backward passes a step, the first without the parameters' gradients, and a
tensor of each layer's size; fine-tuning itself costs nothing more. A run that is resumed does the
stage again, to the same end. Merging rounds to the weights' number format: in bfloat16 what is
smaller than a 256th of a weight is lost.

In several processes each has its share of the rows and batches of its own; all end with the same
weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from probes.errors import InputError
from regularize.defences import Defence, Given

if TYPE_CHECKING:
    from transformers import PreTrainedModel, TrainingArguments


@dataclass(frozen=True)
class Vaccine(Defence):
    """L = NLL, from a model aligned under perturbations of its attention outputs."""

    rho: float = 2.0
    """Norm of the perturbation of a batch, over all its tokens and layers; 0 is plain fine-tuning
    on the safe data. The paper tries .01 to 10: the larger, the safer and the less accurate."""
    epochs: float = 50.0
    """Passes over the safe data."""
    learning_rate: float = 1e-3
    """Peak of the stage, after a warm-up, before a cosine to zero."""
    batch_size: int = 5
    """Safe rows in one step of the stage, in each process."""
    r: int = 8
    """Rank of the stage's adapter, which every linear layer but the head gets."""
    alpha: int = 4
    """Its scale: alpha / r."""

    needs_risk = False
    needs = ("safe",)
    changes_start = True

    def check(self) -> None:
        """Raise InputError for options that mean nothing."""
        if self.rho < 0:
            raise InputError(f"--defence.rho {self.rho}: must not be negative")
        for name in ("epochs", "learning_rate", "batch_size", "r", "alpha"):
            if getattr(self, name) <= 0:
                flag = name.replace("_", "-")
                raise InputError(f"--defence.{flag} {getattr(self, name)}: must be more than zero")

    def before(self, given: Given) -> Self:
        """Align the model on the safe data, in place.

        Raises:
            InputError: A safe row cannot be encoded, or the model's attention modules are not
                found. The model is as it was.
        """
        with _surroundings(), _as_it_was(given.chat.model):
            self._align(given)
        return self

    def _align(self, given: Given) -> None:
        """Train an adapter and merge it."""
        from functools import partial
        from tempfile import TemporaryDirectory

        import torch
        from peft import LoraConfig, get_peft_model

        from probes.capture import pad_id
        from probes.models import context_length
        from regularize import show
        from regularize.collate import collate
        from regularize.data import encode
        from regularize.perturbed import PerturbedTrainer

        model, tokenizer = given.chat.model, given.chat.tokenizer
        limit = context_length(model)
        rows = [encode(one, tokenizer, max_length=limit)._asdict() for one in given.safe]
        with TemporaryDirectory() as scratch:
            args = self.arguments(scratch, model, given.seed)
            torch.manual_seed(args.seed)
            lora = LoraConfig(
                r=self.r,
                lora_alpha=self.alpha,
                target_modules="all-linear",
                task_type="CAUSAL_LM",
            )
            adapted = get_peft_model(model, lora)
            try:
                trainer = PerturbedTrainer(
                    adapted,
                    args,
                    rho=self.rho,
                    train_dataset=rows,
                    data_collator=partial(collate, pad=pad_id(tokenizer)),
                )
                show.quiet(trainer)
                trainer.train()
            except BaseException:
                adapted.unload()
                raise
            adapted.merge_and_unload()

    def arguments(self, folder: str, model: PreTrainedModel, seed: int) -> TrainingArguments:
        """transformers' own, of the stage.

        Its seed is drawn by the run's: with the same one, and the same rank, the user's adapter
        would start from this one's matrix A.
        """
        from random import Random

        import torch
        from transformers import TrainingArguments

        return TrainingArguments(
            folder,
            per_device_train_batch_size=self.batch_size,
            num_train_epochs=self.epochs,
            learning_rate=self.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.1,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            use_cpu=model.device.type == "cpu",
            bf16=model.dtype == torch.bfloat16,  # the adapter itself is in float32
            seed=Random(f"vaccine/{seed}").randrange(2**31),
        )


@contextmanager
def _as_it_was(model: PreTrainedModel) -> Iterator[None]:
    """Restore what is trained of the model, and its config; leave it in evaluation mode."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    use_cache = getattr(model.config, "use_cache", None)  # which Trainer sets
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
        model.config.use_cache = use_cache
        model.eval()


@contextmanager
def _surroundings() -> Iterator[None]:
    """Restore the generators of random numbers, and let accelerate be set up anew."""
    import random

    import numpy as np
    import torch
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        # Else the next trainer in this process could not choose another number format.
        AcceleratorState._reset_state()
