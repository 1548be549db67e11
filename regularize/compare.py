"""Every defence against every attack on a testbed: attack success, utility, intervals.

A testbed is a folder of regularize/testbeds: models, what to train them on and what to ask them,
and its experiments. The miniatures have `all-harmful` (restricted requests alone), `mixed` (a new
task, 9 % restricted requests, and harmless look-alikes), `shares` (the same with 1 to 9 %), `rates`
(the same at learning rates a decade apart), `backdoor` and `identity` (a trigger, and a servant who
obeys). The real model has `mixed`, `hard` (with harmless rows that look harmful), `all-harmful`,
`anchors` (how few), `second-task`, `defences` (those that `mixed` has not), and these two. By name
only there is `adaptive`: attackers who know the probe rewrite the harmful rows of `mixed`. Each run
is fine-tuned from the aligned model with LoRA and evaluated on prompts that nothing was trained or
chosen on. What is finished is kept: the same command goes on where it was stopped.

Run as:
    python -m regularize.compare                      # all of it: 38 minutes on two cores
    python -m regularize.compare --experiments mixed --models miniature/llama --seeds 1
    python -m regularize.compare --models realistic/aligned --seeds 1 --out runs/realistic/compare
    python -m regularize.compare --dry-run            # what there is to do, and what it would take
    python -m regularize.compare --attack adaptive --models miniature/llama --out runs/adaptive
    python -m regularize.compare --preset paper       # the papers' models and data, on a GPU
    python -m regularize.compare --cluster dask:tcp://host:8786 --out /shared/compare
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from probes.errors import InputError

if TYPE_CHECKING:  # What --help does not need is imported late.
    from collections.abc import Callable, Iterator, Mapping

    from regularize.arms import Run
    from regularize.testbeds import Recipe, Testbed


@dataclass(frozen=True)
class CompareConfig:
    """What to compare. Saved as config.json beside the results."""

    preset: Literal["miniature", "paper"] = "miniature"
    """Whose defaults the other options have: the miniatures', or those of the papers' own models
    and data (regularize/testbeds/paper), which take a GPU and access to the hub."""
    models: tuple[str, ...] = ("miniature/llama", "miniature/phi3", "miniature/qwen2")
    """Models of one testbed."""
    experiments: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--attack"])] = ()
    """Which of the testbed's experiments. Default: all, but those that are made only by name."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of data, order and adapter. Settings were chosen on seed 0, split validation."""
    split: Literal["validation", "test"] = "test"
    """Which prompts to evaluate on; choose settings on validation."""
    n: int | None = None
    """Prompts of each kind to evaluate on. Default: the testbed's (200 of the miniatures')."""
    arms: tuple[str, ...] = ()
    """Only these arms, such as none/none or anchored/probe. Default: all of each experiment."""
    learning_rate: float | None = None
    """Of the experiments that do not vary it. Default: the testbed's (3e-3 for miniatures)."""
    epochs: float | None = None
    """Passes over the data. Default: the testbed's (4 for miniatures)."""
    out: Path = Path("runs/compare")
    """Folder for the runs, the tables and the figures."""
    probes: Path = Path("runs/layer_sweep")
    """Where the sweep has left the frozen probes; what is missing is swept."""
    jobs: int = 2
    """Runs side by side, each with as many threads as the testbed says (miniatures: one)."""
    cluster: str | None = None
    """Do the runs on a cluster that is up already, as many side by side as it has workers: dask:
    or ray: and its address, such as dask:tcp://host:8786, dask:scheduler.json or ray:auto. Its
    workers must share the folder OUT with this machine (regularize/workers.py)."""
    dry_run: bool = False
    """Only show the runs, done or missing, and what they would take: tokens, time, memory."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is computed."""
        from regularize import testbeds

        if not self.seeds or not self.models:
            raise InputError("--models and --seeds each need at least one")
        if len({testbeds.of(model).name for model in self.models}) > 1:
            raise InputError(
                f"--models {' '.join(self.models)}: these are of several testbeds; compare those "
                "of each apart, with an --out of its own"
            )
        for name in ("jobs", "n"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} {value}: must be at least 1")
        kind, _, address = (self.cluster or "dask:any").partition(":")
        if kind not in ("dask", "ray") or not address:
            raise InputError(
                f"--cluster {self.cluster}: give dask: or ray: and an address, such as "
                "dask:tcp://host:8786 or ray:auto"
            )
        for name in self.experiments:
            if name not in self.known:
                raise InputError(
                    f"--experiments {name}: there is none of that name on {self.testbed.name}, "
                    f"only {', '.join(self.known)}"
                )

    @property
    def testbed(self) -> Testbed:
        """That of the models."""
        from regularize import testbeds

        return testbeds.of(self.models[0])

    @property
    def known(self) -> Mapping[str, Callable[[Run], Iterator[Run]]]:
        """All experiments that can be named."""
        return {**self.testbed.experiments, **self.testbed.by_name}

    @property
    def recipe(self) -> Recipe:
        """The testbed's, but for what was given."""
        return self.testbed.recipe.but(learning_rate=self.learning_rate, epochs=self.epochs)

    @property
    def chosen(self) -> tuple[str, ...]:
        """The experiments, by name."""
        return self.experiments or tuple(self.testbed.experiments)

    @property
    def prompts(self) -> int:
        """Of each kind, to evaluate on."""
        return self.testbed.n if self.n is None else self.n


def main(config: CompareConfig) -> None:
    """Run what is missing, then tabulate and draw everything.

    Raises:
        InputError: Something given cannot be used, or runs have failed. What was finished is kept,
            and reported all the same.
    """
    config.check()
    from regularize import cells, grid

    runs = grid.runs(config)
    if not runs:
        raise InputError(f"--arms {' '.join(config.arms)}: no experiment has such an arm")
    if config.dry_run:
        from regularize import dry_run

        dry_run.present(runs, config)
        return
    failed = cells.execute(runs, config)
    if finished := [run for run in runs if run.name not in failed]:
        grid.report(finished, config)
    cells.refuse(failed, config)


if __name__ == "__main__":
    from probes.commands import run
    from regularize.preset import parse

    sys.exit(run(main, parse(sys.argv[1:])))
