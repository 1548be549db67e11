"""Align a real pretrained model on a laptop, and sweep it before and after: what alignment writes.

The base model's vocabulary is cut to what is in use, the model is aligned with LoRA on refusals and
helpful answers, and probes are fitted on the layers of both, beside the lexical floors. What is
finished is kept, and a killed run goes on where it was. The prompts are read from the folder in
ACTIVATION_CRITIC_DATA, or else from the hub. Then attack and defend it:

    python -m regularize.compare --models realistic/aligned --out runs/realistic/compare

Run as:
    python -m probes.realistic
    python -m probes.realistic --base HuggingFaceTB/SmolLM2-135M    # another base model
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from probes import realistic
from probes.realistic.recipe import Recipe

SWEEP = "layer_sweep"
TRAIN = "realistic:probe"
HELD_OUT = ("realistic:twins", "realistic:xstest", "realistic:ordinary")


@dataclass(frozen=True)
class RealisticConfig(Recipe):
    """What to align, how, and where it goes."""

    base: str = ""
    """The base model: hub id, folder or .gguf file, with a byte-pair encoding. Default: Gemma 3
    270M from the optional extra."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of its weights. auto: bfloat16 where the processor computes in it, which is
    twice as fast, else float32."""
    floor: int = 4000
    """The first so many tokens of the vocabulary are kept, whether they are in use or not."""
    out: Path = field(default_factory=realistic.root)
    """Folder for base/, aligned/ and layer_sweep/. The models' names, realistic/base and
    realistic/aligned, are looked for in runs/realistic, or in ACTIVATION_CRITIC_REALISTIC."""


def main(config: RealisticConfig) -> None:
    """Cut, align, sweep."""
    from probes import layer_sweep, models
    from probes.realistic.align import align
    from probes.realistic.base import prepare

    prepare(config.base, config.out, floor=config.floor, dtype=config.dtype)
    base = models.load(str(config.out / "base"))
    recipe = Recipe(**{one.name: getattr(config, one.name) for one in fields(Recipe)})
    align(base, config.out / "aligned", recipe)
    os.environ[realistic.FOLDER] = str(config.out)
    layer_sweep.main(sweep(config.out))


def sweep(out: Path) -> layer_sweep.SweepConfig:
    """Base beside aligned, on prompts that neither was trained on."""
    from probes.layer_sweep import SweepConfig

    return SweepConfig(
        models=("realistic/base", "realistic/aligned"),
        train=(TRAIN,),
        held_out=HELD_OUT,
        out=out / SWEEP,
        cache=out / "cache",
        fpr=0.05,
    )


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    config = tyro.cli(RealisticConfig, prog="python -m probes.realistic", description=__doc__)
    sys.exit(run(main, config))
