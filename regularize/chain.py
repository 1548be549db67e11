"""Does a defence last? A chain of fine-tunings, each of the model that the last one has left.

After each link its adapter is merged, and the model is asked as in the comparison: attack success,
the new task, what it could do before, over-refusal. The reference policy, which answers the anchors
and is what the risk is read of, is either the model that the chain begins with (fixed), or the one
that the link begins with (moving). The probe stays that of the first model: under a moving
reference it reads a model that it was not fitted on, and beside the risks of the training rows the
table says after each link how well it still does on labelled prompts.

Controls are the chain of plain fine-tunings, and one whose data hold no harmful rows. What is
finished is kept, link by link: the same command goes on where it was stopped, and with more
--links from there.

Run as:
    python -m regularize.chain                          # some ten minutes on two cores
    python -m regularize.chain --arms none/none adaptive-kl/probe --references fixed --seeds 1
    python -m regularize.chain --data monday.jsonl tuesday.jsonl wednesday.jsonl --out runs/days
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError

if TYPE_CHECKING:
    from regularize.arms import Arm
    from regularize.testbeds import Recipe, Testbed

Kept = Literal["fixed", "moving"]


@dataclass(frozen=True)
class ChainConfig:
    """Which chains. Saved as config.json beside the results."""

    models: tuple[str, ...] = ("miniature/llama",)
    """Models of one testbed, each the beginning of chains of its own."""
    data: tuple[str, ...] = ()
    """Training rows of each link in order, as --data of regularize.train: a file, hub:org/name or
    miniature:mixed. Default: the testbed's attack (miniature:mixed), drawn anew for each link."""
    links: int = 5
    """Fine-tunings of a chain; of --data as many as there are."""
    arms: tuple[str, ...] = ("none/none", "adaptive-kl/probe", "anchored+anchors/probe")
    """Defence and critic, as the comparison names them."""
    references: tuple[Kept, ...] = ("fixed", "moving")
    """The reference policy: the chain's first model, or each link's."""
    control: bool = True
    """Whether there is a chain of plain fine-tunings without harmful rows, too; not with --data."""
    seeds: tuple[int, ...] = (1, 2, 3)
    """Seeds of chains: of prompts to judge on, and, apart for each link, of data and adapter."""
    split: Literal["validation", "test"] = "test"
    """Which prompts to judge on."""
    n: int | None = None
    """Prompts of each kind to judge on. Default: the testbed's (200 of the miniatures')."""
    read: str | None = None
    """Labelled prompts on which the frozen probe is read after each link, none of its own or of the
    training data. Default: the testbed's test set (miniature:test)."""
    learning_rate: float | None = None
    """Peak of each link. Default: the testbed's (3e-3 for miniatures)."""
    epochs: float | None = None
    """Passes over the data of a link. Default: the testbed's (4 for miniatures)."""
    out: Path = Path("runs/chain")
    """Folder for the links, the tables and the figures."""
    probes: Path = Path("runs/layer_sweep")
    """Where the sweep has left the frozen probes; what is missing is swept."""
    jobs: int = 2
    """Chains side by side."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is computed."""
        from regularize import testbeds

        for name in ("models", "seeds", "arms", "references"):
            if not getattr(self, name):
                raise InputError(f"--{name} needs at least one")
        if len({testbeds.of(model).name for model in self.models}) > 1:
            raise InputError(f"--models {' '.join(self.models)}: these are of several testbeds")
        for name in ("links", "jobs", "n"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"--{name} {value}: must be at least 1")
        known = self.known
        for name in self.arms:
            if name not in known:
                raise InputError(
                    f"--arms {name}: no experiment on {self.testbed.name} has such an arm; there "
                    f"are {', '.join(known)}"
                )
            if known[name].method.changes_start and "fixed" in self.references:
                raise InputError(
                    f"--arms {name} changes the weights that a link starts from, which are then "
                    "its reference: give --references moving"
                )

    @property
    def testbed(self) -> Testbed:
        """That of the models."""
        from regularize import testbeds

        return testbeds.of(self.models[0])

    @property
    def known(self) -> dict[str, Arm]:
        """All arms that can be named."""
        from regularize.arms import NONE, Run

        testbed = self.testbed
        start = Run(self.models[0], testbed.attack, testbed.share, self.recipe.learning_rate, 0,
                    NONE)  # fmt: skip
        makers = {**testbed.experiments, **testbed.by_name}.values()
        return {run.arm.name: run.arm for make in makers for run in make(start)}

    @property
    def recipe(self) -> Recipe:
        """The testbed's, but for what was given."""
        return self.testbed.recipe.but(learning_rate=self.learning_rate, epochs=self.epochs)

    @property
    def length(self) -> int:
        """Links of a chain."""
        return len(self.data) or self.links

    @property
    def prompts(self) -> int:
        """Of each kind, to judge on."""
        return self.testbed.n if self.n is None else self.n

    @property
    def watched(self) -> str:
        """The prompts that the frozen probe is read on."""
        return self.read or f"{self.testbed.name}:test"


def main(config: ChainConfig) -> None:
    """Train the links that are missing, then tabulate and draw all.

    Raises:
        InputError: Something given cannot be used, chains have failed, or plain fine-tuning breaks
            nothing. What was finished is kept.
    """
    config.check()
    from regularize import links

    links.execute(config)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    parsed = tyro.cli(ChainConfig, prog="python -m regularize.chain", description=__doc__)
    sys.exit(run(main, parsed))
