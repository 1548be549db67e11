"""The layer sweep on real pretrained weights with real prompts, in minutes on two cores.

XSTest (grouped by focus word) and AdvBench against its harmless twins (a row and its twin are one
group), each held out from the other: the two sets where words alone do least. The prompts are read
from the folder in ACTIVATION_CRITIC_DATA, or else from the hub.

Run as:
    python -m probes.realistic
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

SETS = ("xstest", "advbench-twins")


@dataclass(frozen=True)
class RealisticConfig:
    """Where the results go."""

    out: Path = Path("runs/realistic")
    """Folder for the weights, scores, figures and frozen probes."""


def main(config: RealisticConfig) -> None:
    """Join the weights, then sweep."""
    from probes import layer_sweep, realistic

    layer_sweep.main(
        layer_sweep.SweepConfig(
            models=(str(realistic.base_weights(config.out / "weights")),),
            train=SETS,
            held_out=SETS,
            out=config.out,
            chat_template=realistic.CHAT_TEMPLATE,
        )
    )


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    config = tyro.cli(RealisticConfig, prog="python -m probes.realistic", description=__doc__)
    sys.exit(run(main, config))
