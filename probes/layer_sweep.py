"""AUROC of a harmfulness probe at every layer of chat models, and the probe, frozen, to take away.

For each model: the last input token's residual stream is captured once at every layer and kept on
disk, and that of other --positions in the same pass; logistic probes are fitted per layer and
pooled over layers on each train set; each is scored on folds it was not trained on and on every
held-out set, beside what the words alone give.

Run as:
    python -m probes.layer_sweep
    python -m probes.layer_sweep --models Qwen/Qwen2.5-3B-Instruct --train xstest
    python -m probes.layer_sweep --models ./my-model --train mine.jsonl --held-out theirs.csv
    torchrun --nproc-per-node 4 -m probes.layer_sweep --models ./my-model --train mine.jsonl
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from probes.errors import InputError
from probes.hooks import LAST, HookPoint, Position
from probes.ranks import ALONE, Ranks, joined

if TYPE_CHECKING:  # What --help does not need is imported late.
    from rich.console import Console

    from analysis.results import Tables
    from probes.prompts import PromptSet
    from probes.scoring import Judged


@dataclass(frozen=True)
class SweepConfig:
    """What to sweep. Saved as config.json beside the results."""

    models: tuple[str, ...] = ("miniature/llama", "miniature/phi3", "miniature/qwen2")
    """Chat models: hub id, local folder, .gguf file, or miniature/FAMILY (miniature/FAMILY-base is
    the checkpoint before alignment), realistic/aligned or realistic/base."""
    train: tuple[str, ...] = ()
    """Prompt sets to fit on, one probe each: a named set, a .csv/.jsonl/.parquet file,
    hub:org/name[:config][:split], or several joined by '+'. Default: the miniatures' language."""
    held_out: tuple[str, ...] = ()
    """Prompt sets to score on and never to fit on. Default: the miniatures' other splits."""
    out: Path = Path("runs/layer_sweep")
    """Folder for scores, figures and frozen probes."""
    cache: Path = Path("runs/cache")
    """Folder for captured activations; what still fits is reused."""
    export: str = "best"
    """Which probe to freeze: best (the single layer of highest in-distribution AUROC), pooled
    (mean over layers), or a layer's number."""
    also: tuple[str, ...] = ()
    """More probes to freeze, beside that one in folders of their own: pooled (in probe-pooled),
    layers' numbers (in probe-NUMBER), or all, for every layer."""
    hook_point: HookPoint = "resid_post"
    """Where in each block to read, under TransformerLens's names."""
    positions: tuple[Position, ...] = (LAST,)
    """Which tokens to read, each a sweep of its own from one forward pass: last-input-token,
    last-content-token (of the last user turn's own words), post-instruction (mean over the
    template's tokens after them) or content-mean (mean over theirs). Of the first one are the
    probe in MODEL/TRAIN-SET/probe and the table of risks; of another MODEL/TRAIN-SET/POSITION."""
    backend: Literal["transformers", "transformer-lens", "nnsight"] = "transformers"
    """What runs the model. All give the same activations."""
    remote: bool = False
    """Run on NDIF's servers (backend nnsight only; needs an NDIF key)."""
    revision: str | None = None
    """Hub revision (branch, tag or commit) of the models."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format of the weights; auto is the checkpoint's own."""
    device_map: str | None = None
    """Where the weights go, as in transformers: auto, cuda:0, cpu. Default: a GPU if any."""
    chat_template: str | None = None
    """A Jinja file, or 'plain' (User: ... Assistant:), for base models that have none."""
    max_length: int | None = None
    """Longest rendered prompt (tokens). A longer one loses its middle, never its generation prompt.
    Default: the model's context."""
    token_budget: int = 4096
    """Padded tokens in one forward pass."""
    shard_size: int = 1024
    """Prompts in one file of the cache: what a killed run loses at most."""
    folds: int = 5
    """Cross-validation folds, for the in-distribution AUROC and, inside, for C."""
    C: tuple[float, ...] = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    """Inverse strengths of the L2 penalty to choose from, as in scikit-learn."""
    fpr: float = 0.01
    """Highest false-positive rate that the frozen probe's threshold may have."""
    calibration: Literal["none", "platt"] = "none"
    """Whether Platt's map, from out-of-fold log-odds, is folded into the frozen probe. The tables
    have the calibration without and with it either way."""
    permutations: int = 0
    """Shuffles of the labels that go through the whole procedure, and random directions: what is
    found where there is nothing. 100 cost a miniature a minute, a large model hours.
    Of the first position alone."""
    leave_one_out: bool = False
    """Fit on all train sets but one, too, for each of them, and score that one."""
    keep_leaks: bool = False
    """Score held-out prompts that stand in the train set too, exactly or nearly, with their label.
    They are listed either way."""
    seed: int = 0
    """Seed of folds, samples and bootstrap."""

    def check(self) -> None:
        """Raise InputError for what cannot work, before anything is loaded."""
        if not self.models:
            raise InputError("--models names no model; give at least one hub id or folder")
        if not self.positions or len(set(self.positions)) < len(self.positions):
            raise InputError("--positions: name at least one position, and none of them twice")
        if self.export not in ("best", "pooled") and not self.export.isdecimal():
            raise InputError(
                f"--export {self.export!r} is none of: best, pooled, or a layer's number such as 12"
            )
        for name in self.also:
            if name not in ("all", "pooled") and not name.isdecimal():
                raise InputError(
                    f"--also {name!r} is none of: all, pooled, or layers' numbers such as 4 8 12"
                )
        if self.remote and self.backend != "nnsight":
            raise InputError(f"--remote needs --backend nnsight, not {self.backend}")
        if self.folds < 2:
            raise InputError(f"--folds {self.folds}: cross-validation needs at least 2")
        if not self.C or min(self.C) <= 0:
            raise InputError(f"--C {self.C}: each value must be positive, and one is needed")
        if not 0 < self.fpr < 1:
            raise InputError(f"--fpr {self.fpr}: a false-positive rate lies between 0 and 1")
        if self.leave_one_out and len(self.train) < 3:
            raise InputError(
                f"--leave-one-out with {len(self.train)} train sets: it takes three; of two each "
                "is scored on the other anyway"
            )
        if self.permutations < 0:
            raise InputError(f"--permutations {self.permutations}: 0 for none, or how many")
        for name in ("token_budget", "shard_size"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} {getattr(self, name)}: must be at least 1")
        for path in (self.out, self.cache):
            blocker = next((p for p in (path, *path.parents) if p.exists()), None)
            if blocker is not None and not blocker.is_dir():
                raise InputError(f"{path}: cannot be made, for {blocker} is a file, not a folder")
        if not self.train and not self.all_miniatures:
            raise InputError(
                "--train names no prompt set; give one, such as --train xstest or --train mine.csv "
                "(only the miniatures have a default)"
            )

    def to_json(self) -> str:
        """The arguments, the commit, and the releases of the libraries in use."""
        from probes.commands import arguments, commit

        packages = ("torch", "transformers", "scikit-learn", "numpy")
        return arguments(self, *packages, command="probes.layer_sweep", commit=commit())

    @property
    def all_miniatures(self) -> bool:
        """Whether only the shipped miniatures are swept, which bring their own language."""
        return all(spec.startswith("miniature/") for spec in self.models)


def main(config: SweepConfig, ranks: Ranks = ALONE) -> None:
    """Sweep all models; write and draw what comes out.

    Args:
        config: What to do.
        ranks: The processes that capture activations together. All else is the first one's.

    Raises:
        InputError: Something given cannot be used. What was finished is kept, and reused next time.
    """
    config.check()
    with ranks.first_goes_first():
        trains, held_outs, tables = _prompt_sets(config, say=ranks.first)

    from rich.console import Console

    from probes.folds import Folds
    from probes.model_sweep import capture_model, sweep_model
    from probes.tasks import tasks

    planned = list(
        tasks(
            trains,
            held_outs,
            leave_one_out=config.leave_one_out,
            keep_leaks=config.keep_leaks,
        )
    )
    tables["leaks"] += [row for task in planned for row in task.leaks]
    for task in planned:  # refuses too few groups, before a model is loaded
        Folds.of(task.train.labels, task.train.groups, folds=config.folds, seed=config.seed)

    # Together all models first, so that no process waits for the fits, which are the first one's.
    together = {
        spec: capture_model(spec, config, planned, ranks)
        for spec in config.models
        if ranks.size > 1
    }
    if not ranks.first:
        return
    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    words: dict[str, list[Judged]] = {}
    for number, spec in enumerate(config.models, start=1):
        console.print(f"[bold]{spec}[/bold] ({number} of {len(config.models)})")
        caches = together.get(spec) or capture_model(spec, config, planned)
        for name, rows in sweep_model(spec, config, planned, caches, words, console).items():
            tables.setdefault(name, []).extend(rows)
    _report(tables, config, console)


def by_all(config: SweepConfig) -> None:
    """The sweep by all processes that `torchrun` has started; each says which shards it wrote."""
    import logging

    with joined() as ranks:
        if ranks.size > 1:
            told = logging.getLogger("probes.reading")
            told.addHandler(logging.StreamHandler())
            told.setLevel(logging.INFO)
        main(config, ranks)


def _prompt_sets(
    config: SweepConfig, *, say: bool = True
) -> tuple[list[PromptSet], list[PromptSet], Tables]:
    """The train sets and the held-out sets, read and checked, and what is told of their prompts.

    Prompts of a set that are alike are of one group from here on.
    """
    from analysis.results import PromptRow
    from probes import leaks, prompts
    from probes.miniature.splits import SPLITS

    language = tuple(f"miniature:{split}" for split in SPLITS)
    train = config.train or language[:1]
    held_out = config.held_out or (() if config.train else language[1:])
    specs = tuple(dict.fromkeys((*train, *held_out)))
    loaded = {spec: prompts.load(spec, seed=config.seed) for spec in specs}
    named: dict[str, str] = {}
    for spec, found in loaded.items():
        if (other := named.setdefault(found.name, spec)) != spec:
            raise InputError(
                f"{other} and {spec} would both be called {found.name} in the results; rename one"
            )
        for note in found.notes if say else ():
            sys.stderr.write(f"{note}\n")
    tables: Tables = {"leaks": [], "prompts": []}
    for spec, found in loaded.items():
        alike = leaks.inside(found)
        loaded[spec] = leaks.grouped(found, alike)
        tables["leaks"] += leaks.rows(found, found, alike) if spec in train else []
        tables["prompts"] += [
            PromptRow(found.name, one.id, one.label, one.group, one.source, one.text)
            for one in loaded[spec].prompts
        ]
    return [loaded[spec] for spec in train], [loaded[spec] for spec in held_out], tables


def _report(tables: Tables, config: SweepConfig, console: Console) -> None:
    """Tables and figures of all models together, and the table on the screen."""
    from analysis import figures, results
    from analysis import tables as rendered

    results.replace({config.out / "config.json": config.to_json().encode()})
    results.write_all(tables, config.out)
    read = results.read_all(config.out)
    for _, table in results.slices(read["scores"]):
        console.print(rendered.render(table))
    pictures = figures.redraw(read, config.out / "figures")
    for path in (config.out / "scores.csv", config.out / "risks.csv", *pictures):
        console.print(str(path), markup=False, soft_wrap=True)


if __name__ == "__main__":
    import tyro

    from probes.commands import run

    sys.exit(
        run(
            by_all,
            tyro.cli(SweepConfig, prog="python -m probes.layer_sweep", description=__doc__),
            several=True,
        )
    )
