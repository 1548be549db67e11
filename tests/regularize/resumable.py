"""A training with all that a checkpoint must bring back, in a process that the tests kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import set_seed

from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.trainer import RegularizedTrainer
from tests.regularize.training import lora, tiny, trainer

STEPS, EVERY = 9, 2


def make(folder: Path, *, full: bool = False, **options: Any) -> RegularizedTrainer:
    """Smoothed risk, shuffled rows, dropout, Adam's moments and a falling learning rate."""
    set_seed(0)
    return trainer(
        folder,
        model=tiny(dropout=0.1),
        full=full,
        peft_config=lora(lora_dropout=0.2),
        defence=AdaptiveKL(granularity="batch", smoothing=0.9),
        args={
            "max_steps": STEPS,
            "save_strategy": "steps",
            "save_steps": EVERY,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "optim": "adamw_torch",
            "learning_rate": 1e-2,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
        },
        **options,
    )


class _Slow(TrainerCallback):
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        time.sleep(0.1)


def train_slowly(folder: Path, full: bool) -> None:
    """With time to be killed in."""
    make(folder, full=full, callbacks=[_Slow()]).train()
