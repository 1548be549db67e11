"""What each defence costs: time and memory of its steps, and what it does before and after them.

Every defence in regularize/defences is measured beside plain fine-tuning (SFT), on a testbed's main
attack and with the settings of its comparison, all in one run: each trains for a few steps, then
the next one, round after round, so that what else the machine does disturbs all alike. What is
claimed are ratios of medians over rounds, with an interval, never seconds. SFT stands among them a
second time: its ratio to itself is the control. So are the steps of defences that act before or
after training alone: what they differ from 1 by, some percent, is where a training's memory
happens to lie, which no interval over the rounds of one run holds.

What comes before training (risks, a cached reference, another alignment) and after it is timed
between segments of one more SFT. Peak memory is measured for each in a process of its own. A
defence that cannot be measured is reported with its reason, and the others go on.

Each defence has a model of its own, all in memory at once: for a large one choose a few defences.

Run as:
    python -m regularize.cost --model miniature/llama --out runs/cost
    python -m regularize.cost --model realistic/aligned --defences vaccine lox --steps 20 --rounds 5
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError

if TYPE_CHECKING:
    from regularize.testbeds import Testbed

WARM = 2
"""Steps of each training that are not timed, for they fill caches."""


@dataclass(frozen=True)
class CostConfig:
    """What to measure. Saved as config.json beside the results."""

    model: str = "miniature/llama"
    """A model of a testbed."""
    defences: tuple[str, ...] = ()
    """Which, by their names in regularize/defences. Default: all."""
    rounds: int = 20
    """Rounds, in each of which every defence does some of its steps."""
    steps: int | None = None
    """Optimizer steps of each training. Default: a whole training of the testbed's recipe."""
    clock: Literal["wall", "processor"] = "wall"
    """What tells the time. processor: seconds in which this process was computing, on a CPU that
    does much else besides; what is waited for, such as a disk, is not in it."""
    memory: bool = True
    """Measure peak memory too, which trains each defence a second time."""
    seed: int = 0
    """Of data, order and adapter."""
    probes: Path = Path("runs/layer_sweep")
    """Where the sweep has left the frozen probe; if it is missing, it is swept."""
    out: Path = Path("runs/cost")
    """Folder for the table and the figure."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is computed."""
        from regularize import defences, plugins, testbeds

        testbeds.of(self.model)
        known = plugins.found(defences, defences.Defence)
        for name in self.defences:
            if name not in known:
                raise InputError(f"--defences {name}: there is none, only {', '.join(known)}")
        if self.rounds < 5:
            raise InputError(f"--rounds {self.rounds}: an interval needs at least 5")
        if self.steps is not None and self.steps < WARM + self.rounds:
            raise InputError(
                f"--steps {self.steps}: too few for {self.rounds} rounds; give at least "
                f"{WARM + self.rounds}, for {WARM} more are not timed, or fewer --rounds"
            )

    @property
    def testbed(self) -> Testbed:
        """That of the model."""
        from regularize import testbeds

        return testbeds.of(self.model)


def main(config: CostConfig) -> None:
    """Measure, then tabulate and draw.

    Raises:
        InputError: Something given cannot be used.
    """
    config.check()
    from rich.console import Console

    from analysis import costs, figures, results
    from probes.commands import arguments
    from regularize.contest import measured

    rows = measured(config)
    written = arguments(config, "torch", "transformers", "peft")
    results.replace({config.out / "config.json": written.encode()})
    results.write(rows, config.out / "costs")
    tables = {"costs": results.read_all(config.out)["costs"]}
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    console.print(costs.render(tables["costs"]))
    for path in figures.redraw(tables, config.out / "figures"):
        console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(run(main, tyro.cli(CostConfig, prog="python -m regularize.cost", description=__doc__)))
