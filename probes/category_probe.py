"""A probe with a logit for each category of harm, frozen, to drive a critic.

Rows of the train set name a category each, or several; harmless rows none. One against all the
rest, a logistic probe is fitted for each on the residual stream of the last input token (or at
other --positions), at the layer of highest mean AUROC on unseen folds, and scored there and on
held-out sets beside what the words alone give.

Run as:
    python -m probes.category_probe
    python -m probes.category_probe --positions last-input-token content-mean
    python -m probes.category_probe --model ./my-model --train mine.jsonl --held-out theirs.jsonl
    python -m probes.category_probe --model ./my-model --train "mine.csv?category=kind"
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probes.errors import InputError
from probes.hooks import LAST, Position

DEFAULT = "miniature:categories"
HELD_OUT = ("miniature:categories-test",)


@dataclass(frozen=True)
class CategoryProbeConfig:
    """What to fit. Saved as config.json beside the results."""

    model: str = "miniature/llama"
    """Chat model: hub id, local folder, .gguf file, or miniature/FAMILY."""
    train: str | None = None
    """Prompt set with categories: a file, a named set with ?category=FIELD, hub:org/name, or
    several joined by '+'. Default for a miniature: miniature:categories."""
    held_out: tuple[str, ...] = ()
    """Prompt sets with categories, to score on and never to fit on. Default for a miniature:
    miniature:categories-test."""
    out: Path = Path("runs/category_probe")
    """Folder for scores, figures and frozen probes."""
    cache: Path = Path("runs/cache")
    """Folder for captured activations; what still fits is reused."""
    positions: tuple[Position, ...] = (LAST,)
    """Which tokens to read, a probe of each from one forward pass: last-input-token,
    last-content-token, post-instruction, or content-mean (the mean over the last user turn's own
    words). What is asked is at the last token; how it is asked may be in the words alone. The first
    one's probe is in MODEL/SET/probe, another's in MODEL/SET/POSITION/probe."""
    layers: tuple[int, ...] = ()
    """Layers to choose from. Default: all."""
    floor: Literal["tfidf-word", "tfidf-char", "length", "none"] = "tfidf-word"
    """What sees the words alone and is scored beside the probes, on the same folds."""
    folds: int = 5
    """Cross-validation folds."""
    C: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Inverse strengths of the L2 penalty to choose from, for each category by itself."""
    fpr: float = 0.01
    """Highest false-positive rate that the threshold may have, over all categories together."""
    keep_leaks: bool = False
    """Score held-out prompts that stand in the train set too."""
    revision: str | None = None
    """Hub revision of the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights."""
    device_map: str | None = None
    """Where the weights go, as in transformers. Default: a GPU if any."""
    chat_template: str | None = None
    """A Jinja file, or 'plain', for base models that have none."""
    max_length: int | None = None
    """Longest rendered prompt (tokens). Default: the model's context."""
    token_budget: int = 4096
    """Padded tokens in one forward pass."""
    seed: int = 0
    """Seed of folds, samples and bootstrap."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is loaded."""
        if self.train is None and not self.model.startswith("miniature/"):
            raise InputError(
                "--train names no prompt set; give one with categories, such as --train mine.jsonl "
                "(only the miniatures have a default)"
            )
        if not self.positions or len(set(self.positions)) < len(self.positions):
            raise InputError("--positions: name at least one position, and none of them twice")
        if self.folds < 2:
            raise InputError(f"--folds {self.folds}: cross-validation needs at least 2")
        if not self.C or min(self.C) <= 0:
            raise InputError(f"--C {self.C}: each value must be positive, and one is needed")
        if not 0 < self.fpr < 1:
            raise InputError(f"--fpr {self.fpr}: a false-positive rate lies between 0 and 1")
        if any(layer < 0 for layer in self.layers):
            raise InputError(f"--layers {self.layers}: layers are numbered from 0")

    @property
    def sets(self) -> tuple[str, ...]:
        """The train set and then the held-out ones."""
        held_out = self.held_out or (HELD_OUT if self.train is None else ())
        return (self.train or DEFAULT, *held_out)


def main(config: CategoryProbeConfig) -> None:
    """Fit, score, freeze, draw.

    Raises:
        InputError: Something given cannot be used.
    """
    config.check()
    from rich.console import Console

    from analysis import categories as shown
    from analysis import figures, results
    from probes.category_sweep import place, sweep
    from probes.commands import arguments

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    folder, rows = sweep(config, console)
    packages = ("torch", "transformers", "scikit-learn", "numpy")
    results.replace({folder / "config.json": arguments(config, *packages).encode()})
    results.write(rows, folder / "categories")
    tables = results.read_all(folder)
    console.print(shown.render(tables["categories"]))
    for position in config.positions:
        there = place(folder, position, config) / "probe"
        console.print(f"frozen probe: {there}", markup=False, soft_wrap=True)
    for path in figures.redraw(tables, folder / "figures"):
        console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(
        run(
            main,
            tyro.cli(
                CategoryProbeConfig, prog="python -m probes.category_probe", description=__doc__
            ),
        )
    )
