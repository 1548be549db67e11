"""The same trainings as one process or as one of several: `torchrun -m ... FOLDER`."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor
from transformers.trainer_utils import set_seed

from probes.models import ChatModel
from probes.ranks import leave
from regularize.critics import Live, Risks
from regularize.critics.column import ColumnCritic
from regularize.data import Example, examples
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.none import SFT
from tests.regularize.training import SAFE_ROWS, trained, trainer


@dataclass(frozen=True)
class Watching(ColumnCritic):
    """The column, and then what the model's own weights say, asked in one process alone."""

    def live(self, examples: Sequence[Example], first: Risks) -> Live:
        """Every second step."""

        def look(chat: ChatModel) -> Risks:
            assert os.environ.get("RANK", "0") == "0"
            size = sum(float(one.abs().sum()) for one in trained(chat.model).values())
            return Risks((np.arange(len(examples)) * 0.37 + size) % 1, None)

        return Live(2, look)


CASES: dict[str, dict[str, Any]] = {
    "example": {},
    "batch": {"defence": AdaptiveKL(granularity="batch", smoothing=0.5)},
    "adapter-off": {"reference": "adapter-off"},
    "reverse-copy": {"defence": AdaptiveKL(direction="reverse"), "reference": "copy"},
    "full": {"full": True, "args": {"learning_rate": 0.02}},
    "none": {"defence": SFT()},
    "live": {"critic": Watching()},
    "budget": {
        "defence": AdaptiveKL(kl_budget=0.01, kl_every=1, kl_prompts=4),
        "safe": examples(SAFE_ROWS),
    },
    "accumulated": {
        "defence": AdaptiveKL(granularity="batch", smoothing=0.5),
        "args": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    },
}
"""Each step is of four rows, over all processes."""
LOGGED = ("loss", "nll", "kl", "risk", "beta", "beta_max", "kl_drift")


def end_of(
    name: str, folder: Path, *, processes: int = 1
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The trained parameters and what was logged."""
    options = dict(CASES[name])
    args = {"per_device_train_batch_size": 4 // processes, **options.pop("args", {})}
    if processes == 1 and "gradient_accumulation_steps" in args:
        args["gradient_accumulation_steps"] *= 2
    set_seed(0)
    one = trainer(folder / name, args=args, **options)
    one.train()
    log = [{key: entry[key] for key in LOGGED if key in entry} for entry in one.state.log_history]
    return trained(one.model), log


def main(folder: Path) -> None:
    """Train all cases; the first process writes where they ended."""
    gc.freeze()  # each training collects garbage, which what was imported is not
    processes, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    for name in CASES:
        end, log = end_of(name, folder, processes=processes)
        assert len({str(entry) for entry in log}) > 1
        if rank == 0:
            save_file(end, folder / f"{name}.safetensors", {"log": json.dumps(log)})
    (folder / f"rank-{rank}").touch()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
