"""Does the model use what a frozen probe reads? Its direction is removed, and added, as it answers.

Held-out prompts are answered greedily while the output of the probe's block is changed. On harmful
prompts the direction is projected out at every token of prompt and answer: does refusal fall? On
harmless ones it is added at every token of the prompt: does refusal rise? The probe's own direction
and the difference of the class means are each held against random directions of the same length.

Run as:
    python -m probes.layer_sweep && python -m probes.causal_check
    python -m probes.causal_check --layers all --backend nnsight
    python -m probes.causal_check --probes runs/mine/probe --held-out xstest
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError

if TYPE_CHECKING:  # What --help does not need is imported late.
    from analysis.evidence_rows import CausalRow
    from probes.causal_model import Question

SWEPT = tuple(
    f"runs/layer_sweep/miniature-{family}/miniature-train/probe"
    for family in ("llama", "phi3", "qwen2")
)
"""Where the layer sweep leaves the miniatures' probes."""


@dataclass(frozen=True)
class CausalConfig:
    """What to change, and on which prompts. Saved as config.json beside the results."""

    probes: tuple[str, ...] = SWEPT
    """Frozen probes, as python -m probes.layer_sweep writes them: folders, or hub repositories."""
    model: str | None = None
    """The model, where it lies elsewhere now than the probe says. The weights must be the same."""
    train: str | None = None
    """The prompt set that the probe was fitted on. Default: the set of the name that it bears."""
    held_out: str = "miniature:test"
    """Prompts to answer: a named set, a .csv/.jsonl/.parquet file, hub:org/name. Those that the
    train set holds too are left out."""
    n: int = 100
    """Prompts of each label, at most; drawn with the seed."""
    direction: tuple[Literal["probe", "class-mean"], ...] = ("probe", "class-mean")
    """What to remove and add: the probe's weights, the difference of the class means, or both."""
    strength: tuple[float, ...] = (1.0, 2.0, 4.0)
    """How much to add: standard deviations by which it raises the probe's logit (2 is about as far
    as the classes lie apart)."""
    add_at: Literal["prompt", "all"] = "prompt"
    """Tokens at which it is added: those of the prompt, or the answer's too, where a direction that
    says 'a refusal begins here' has the miniatures say 'Sorry' over and over. Removed it is at all.
    """
    layers: str = "probe"
    """Blocks to change, one at a time: probe (the one it reads), all, or numbers such as 3,4,5. At
    others than its own a probe is fitted anew on the train set."""
    draws: int = 20
    """Random directions. With fewer than 19 no p-value is below .05."""
    random: Literal["covariance", "isotropic"] = "covariance"
    """Random directions are drawn from the covariance of activations within the classes, which are
    harder to beat, or evenly from all directions."""
    backend: Literal["transformers", "transformer-lens", "nnsight"] = "transformers"
    """What runs and changes the model. All give the same answers."""
    new_tokens: int = 16
    """Longest answer (tokens). A refusal shows in its first words."""
    out: Path = Path("runs/causal_check")
    """Folder for the table and the figure."""
    cache: Path = Path("runs/cache")
    """Folder for captured activations; what the layer sweep left there is reused."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of the model. Default: the probe's."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is the checkpoint's own."""
    device_map: str | None = None
    """Where the weights go, as in transformers: auto, cuda:0, cpu. Default: a GPU if any."""
    token_budget: int = 8192
    """Tokens of prompts and answers, padding included, in memory at a time."""
    seed: int = 0
    """Seed of prompts, directions and bootstrap; that of the layer sweep, for sets that depend on
    it."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is loaded."""
        if not self.probes:
            raise InputError("--probes names none; give a folder that probes.layer_sweep has made")
        if self.model is not None and len(self.probes) > 1:
            raise InputError(
                f"--model {self.model} for {len(self.probes)} probes; give one with --probes"
            )
        if not self.direction or len(set(self.direction)) < len(self.direction):
            raise InputError("--direction takes probe, class-mean, or both, each once")
        if not self.strength or not all(0 < one < float("inf") for one in self.strength):
            raise InputError(f"--strength {self.strength}: each must be positive and finite")
        if len(set(self.strength)) < len(self.strength):
            raise InputError(f"--strength {self.strength}: one is given twice")
        for name in ("n", "draws", "new_tokens", "token_budget"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be at least 1")
        numbers = all(part.strip().isdecimal() for part in self.layers.split(","))
        if self.layers not in ("probe", "all") and not numbers:
            raise InputError(
                f"--layers {self.layers!r} is none of: probe, all, or numbers such as 3,4,5"
            )
        blockers = (p for path in (self.out, self.cache) for p in (path, *path.parents))
        if blocker := next((p for p in blockers if p.exists() and not p.is_dir()), None):
            raise InputError(f"--out, --cache: {blocker} is a file, not a folder")
        for path in map(Path, self.probes):
            local = path.is_absolute() or len(path.parts) != 2 or path.parts[0].startswith(".")
            if local and not path.is_dir():
                raise InputError(
                    f"{path}: there is no frozen probe. python -m probes.layer_sweep makes one for "
                    "each model; name it with --probes OUT/MODEL/TRAIN-SET/probe"
                )

    def to_json(self) -> str:
        """The arguments, and the releases of the libraries in use."""
        from probes.commands import arguments

        return arguments(self, "torch", "transformers", self.backend, "numpy")


def main(config: CausalConfig) -> None:
    """Try all probes; write and draw what comes out, model by model.

    Raises:
        InputError: Something given cannot be used. The models that were finished are kept.
    """
    config.check()
    from probes.causal_model import answer, question

    questions = [question(path, config) for path in config.probes]  # before a model is loaded
    _check_distinct(questions)

    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    rows: list[CausalRow] = []
    for number, asked in enumerate(questions, start=1):
        console.print(f"[bold]{asked.model}[/bold] ({number} of {len(questions)})")
        rows += answer(asked, config, console)
        _write(rows, config)
    _report(config, console)


def _check_distinct(questions: Sequence[Question]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for one in questions:
        what = (one.model, one.train.name)
        if (other := seen.setdefault(what, one.path)) != one.path:
            raise InputError(
                f"{other} and {one.path} are both of {one.model} on {one.train.name}; give one"
            )


def _write(rows: Sequence[CausalRow], config: CausalConfig) -> None:
    from analysis import results

    results.replace({config.out / "config.json": config.to_json().encode()})
    results.write(rows, config.out / "causal")


def _report(config: CausalConfig, console: object) -> None:
    """The table and the verdict on the screen, and the figure."""
    from rich.console import Console

    from analysis import causal, figures, results
    from analysis.rows import TABLES

    assert isinstance(console, Console)
    found = results.find(config.out, "causal")
    assert found is not None
    table = results.read(found, TABLES["causal"])
    console.print(causal.render(table))
    for line in causal.verdicts(table):
        console.print(line, markup=False)
    pictures = figures.redraw({"causal": table}, config.out / "figures")
    for path in (config.out / "causal.csv", *pictures):
        console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(
        run(main, tyro.cli(CausalConfig, prog="python -m probes.causal_check", description=__doc__))
    )
