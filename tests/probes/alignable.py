"""A tiny pretrained model to align within seconds, in a process that the tests kill."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from probes import models
from probes.models import ChatModel
from probes.realistic import align, base
from probes.realistic.recipe import Recipe

RECIPE = Recipe(steps=6, batch_size=4, rate=1e-2, lora_rank=4)
EVERY = 2


def prepared(data: Path, out: Path, **changes: Any) -> Path:
    """out/base from stories260k."""
    options: dict[str, Any] = {"floor": 0, "dtype": "float32", **changes}
    return base.prepare(str(data / "models" / "stories260k"), out, **options)


def fresh(out: Path) -> ChatModel:
    return models.load(str(out / "base"), device_map="cpu")


def align_slowly(data: Path, out: Path) -> None:
    """With time to be killed in."""
    os.environ["ACTIVATION_CRITIC_DATA"] = str(data)
    quick = align.answer_loss

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(0.2)
        return quick(*args, **options)

    align.answer_loss = slow
    align.CHECKPOINT_EVERY = EVERY
    align.align(fresh(out), out / "aligned", RECIPE)
