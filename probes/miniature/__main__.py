"""Train the miniatures from nothing: first to help with everything, then to refuse some of it.

Run as:
    python -m probes.miniature
    python -m probes.miniature --families llama --out runs/miniature

The same seed gives the same weights on the same machine.
"""

import shutil
import sys
from dataclasses import dataclass, fields
from pathlib import Path

from probes.errors import InputError
from probes.miniature import FAMILIES, WEIGHTS, Family
from probes.miniature.recipe import Recipe


@dataclass(frozen=True)
class RetrainConfig(Recipe):
    """Which miniatures to train, how, and where they go."""

    families: tuple[Family, ...] = FAMILIES
    """Architectures, each trained on its own."""
    out: Path = WEIGHTS
    """Folder that gets FAMILY/base and FAMILY/aligned. Default: the package's own weights."""
    threads: int = 1
    """CPU threads. The models are too small to gain much from more."""
    evaluation: int = 300
    """Fresh prompts of each kind in the final table."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is trained."""
        for name in ("base_steps", "aligned_steps", "batch_size", "threads", "evaluation"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be at least 1")
        for name in ("base_rate", "aligned_rate"):
            if not getattr(self, name) > 0:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be positive")
        if not self.families:
            raise InputError(f"--families names none; choose from {', '.join(FAMILIES)}")
        blocker = next((p for p in (self.out, *self.out.parents) if p.exists()), None)
        if blocker is not None and not blocker.is_dir():
            raise InputError(f"{self.out}: cannot be made, for {blocker} is a file, not a folder")


def main(config: RetrainConfig) -> None:
    """Train, save and measure each family. A family's old weights stay until its new ones are done.

    Raises:
        InputError: An option is out of range, or the folder cannot be made.
    """
    config.check()

    import torch
    from rich.console import Console
    from rich.table import Table
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from probes.miniature.evaluate import Quality, evaluate
    from probes.miniature.train import train

    disable_progress_bar()
    torch.set_num_threads(config.threads)
    table = Table("%", *(field.name.replace("_", " ") for field in fields(Quality)))
    for family in config.families:
        unfinished = config.out / f".{family}"
        shutil.rmtree(unfinished, ignore_errors=True)
        train(family, config, unfinished)
        # Only now: weights and tokenizer of two different trainings must never stand side by side.
        shutil.rmtree(config.out / family, ignore_errors=True)
        unfinished.replace(config.out / family)
        folder = config.out / family / "aligned"
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        quality = evaluate(model, AutoTokenizer.from_pretrained(folder), n=config.evaluation)
        shares = (getattr(quality, field.name) for field in fields(Quality))
        table.add_row(family, *(f"{100 * share:.1f}" for share in shares))
    Console().print(table)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(run(main, tyro.cli(RetrainConfig, description=__doc__)))
