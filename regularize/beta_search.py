"""Which betas? A grid over beta_min, beta_max and the risk's shape, and betas by a budget.

Each setting is fine-tuned on the testbed's attack and judged on prompts of the split `validation`:
attack success, and what was learnt of the new task. Those that no other setting dominates, that is
beats in one and equals in the other, are the Pareto front. Choose there, then report on `test` with
`regularize.compare`. It is the experiment `betas` of the comparison, and what is finished is kept.

Run as:
    python -m regularize.beta_search                    # some ten minutes on two cores
    python -m regularize.beta_search --models miniature/qwen2 --seeds 0
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

EXPERIMENT = "betas"


@dataclass(frozen=True)
class BetaSearchConfig:
    """What to search. The comparison that it is saves it as config.json beside the results."""

    models: tuple[str, ...] = ("miniature/llama",)
    """Models of a testbed that has the experiment `betas`."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data, order and adapter."""
    n: int | None = None
    """Prompts of each kind to judge on. Default: the testbed's (200 of the miniatures')."""
    learning_rate: float | None = None
    """Default: the testbed's (3e-3 for miniatures)."""
    epochs: float | None = None
    """Passes over the data. Default: the testbed's (4 for miniatures)."""
    out: Path = Path("runs/beta_search")
    """Folder for the runs, the tables and the figures."""
    probes: Path = Path("runs/layer_sweep")
    """Where the sweep has left the frozen probes; what is missing is swept."""
    jobs: int = 2
    """Runs side by side."""


def main(config: BetaSearchConfig) -> None:
    """Run what is missing, draw, and say what nothing dominates.

    Raises:
        InputError: Something given cannot be used, or runs have failed.
    """
    from regularize import compare

    compare.main(
        compare.CompareConfig(
            models=config.models,
            experiments=(EXPERIMENT,),
            seeds=config.seeds,
            split="validation",
            n=config.n,
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            out=config.out,
            probes=config.probes,
            jobs=config.jobs,
        )
    )
    from rich.console import Console

    from analysis import betas, results

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    found = betas.compared(results.read_all(config.out)["evaluations"])
    for model, rows in found.groupby("model", sort=False):
        console.print(_front(str(model), rows[rows["front"]]))


def _front(model: str, rows: pd.DataFrame) -> Table:
    """The settings on the front, the safest first."""
    from rich.table import Table

    from analysis import betas

    table = Table(title=f"{model}: what no other setting dominates (validation, %)",
                  title_justify="left")  # fmt: skip
    for heading in ("betas", "risk", "attack success", "new task"):
        table.add_column(heading, justify="right" if heading[0] in "an" else "left")
    for _, row in rows.sort_values([betas.LESS, betas.MORE]).iterrows():
        shares = [
            f"{100 * row[name]:.1f} [{100 * row[f'{name}_lo']:.1f}, {100 * row[f'{name}_hi']:.1f}]"
            for name in (betas.LESS, betas.MORE)
        ]
        table.add_row(row["label"], "sharpened" if row["sharpened"] else "probability", *shares)
    return table


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    config = tyro.cli(BetaSearchConfig, prog="python -m regularize.beta_search",
                      description=__doc__)  # fmt: skip
    sys.exit(run(main, config))
