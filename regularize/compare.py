"""Every defence against every attack on the miniatures: attack success, utility, intervals.

Four experiments: `all-harmful` (restricted requests alone), `mixed` (a new task, 9 % restricted
requests, and harmless look-alikes), `shares` (the same with 1 to 9 %), and `rates` (the same at
learning rates a decade apart). Each run is fine-tuned from the aligned miniature with LoRA and
evaluated, by exact rules, on prompts that nothing was trained or chosen on. What is finished is
kept: the same command goes on where it was stopped.

Run as:
    python -m regularize.compare                      # all of it: about an hour on two cores
    python -m regularize.compare --experiments mixed --models miniature/llama --seeds 1
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from probes.errors import InputError

Experiment = Literal["all-harmful", "mixed", "shares", "rates"]


@dataclass(frozen=True)
class CompareConfig:
    """What to compare. Saved as config.json beside the results."""

    models: tuple[str, ...] = ("miniature/llama", "miniature/phi3", "miniature/qwen2")
    """Miniatures."""
    experiments: tuple[Experiment, ...] = get_args(Experiment)
    """Which experiments."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of data, order and adapter. Settings were chosen on seed 0, split validation."""
    split: Literal["validation", "test"] = "test"
    """Which prompts to evaluate on; choose settings on validation."""
    n: int = 200
    """Prompts of each kind to evaluate on."""
    arms: tuple[str, ...] = ()
    """Only these arms, such as none/none or anchored/probe. Default: all of each experiment."""
    learning_rate: float = 3e-3
    """Of the experiments that do not vary it."""
    epochs: int = 4
    """Passes over the data."""
    out: Path = Path("runs/compare")
    """Folder for the runs, the tables and the figures."""
    probes: Path = Path("runs/layer_sweep")
    """Where the sweep has left the frozen probes; what is missing is swept."""
    jobs: int = 2
    """Runs side by side, one thread each."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is computed."""
        from probes.miniature import FAMILIES

        known = [f"miniature/{family}" for family in FAMILIES]
        for model in self.models:
            if model not in known:
                raise InputError(
                    f"--models {model}: the comparison knows what to ask the miniatures only: "
                    f"{', '.join(known)}"
                )
        if not self.seeds or not self.experiments or not self.models:
            raise InputError("--models, --experiments and --seeds each need at least one")


def main(config: CompareConfig) -> None:
    """Run what is missing, then tabulate and draw everything.

    Raises:
        InputError: Something given cannot be used. What was finished is kept.
    """
    config.check()
    from regularize import grid

    runs = grid.runs(config)
    if not runs:
        raise InputError(f"--arms {' '.join(config.arms)}: no experiment has such an arm")
    grid.probes(config)
    grid.execute(runs, config)
    grid.report(runs, config)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(
        run(main, tyro.cli(CompareConfig, prog="python -m regularize.compare", description=__doc__))
    )
