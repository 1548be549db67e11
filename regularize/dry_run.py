"""What `regularize.compare --dry-run` shows: the cells, and what those that are missing would take.

Nothing is trained, no weights are loaded and nothing is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from regularize import estimate, grid
from regularize.arms import Run
from regularize.estimate import Estimate, State
from regularize.noise import without_noise

if TYPE_CHECKING:
    from regularize.compare import CompareConfig

MARKS: dict[State, str] = {"done": "+", "failed": "!", "missing": "-"}
GB = 1e9
States = Mapping[str, State]
"""By a run's name."""


def present(runs: Sequence[Run], config: CompareConfig) -> None:
    """Print the cells, a table of what is missing, and both in words."""
    without_noise()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    states = {run.name: estimate.state(run, config) for run in runs}
    console.print(_cells(runs, states, config))
    found: dict[str, Estimate] = {}
    for model in config.models:
        of_it = [run for run in runs if run.model == model]
        done = [run for run in of_it if states[run.name] == "done"]
        missing = [run for run in of_it if states[run.name] != "done"]
        found[model] = estimate.of_model(model, done, missing, config)
    console.print(_totals(runs, states, found))
    for line in _words(states, found, config):
        console.print(line, markup=False)


def _cells(runs: Sequence[Run], states: States, config: CompareConfig) -> Table:
    """A row an attack, learning rate and arm; under each model a mark for each seed."""
    seeds = " ".join(map(str, config.seeds))
    marks = "+ done, ! failed (or under way), - missing"
    table = Table(title=f"seeds {seeds}: {marks}", box=box.SIMPLE_HEAD, title_justify="left")
    for heading in ("attack", "harmful", "learning rate", "defence", "critic"):
        table.add_column(heading, no_wrap=True)
    for model in config.models:
        table.add_column(model, justify="center", overflow="fold")
    rows: dict[tuple[str, ...], dict[tuple[str, int], str]] = {}
    for run in runs:
        key = (run.attack, f"{run.share:.3g}", f"{run.learning_rate:g}", *run.arm.name.split("/"))
        rows.setdefault(key, {})[run.model, run.seed] = MARKS[states[run.name]]
    for key, found in rows.items():
        marked = (
            " ".join(found.get((model, seed), " ") for seed in config.seeds)
            for model in config.models
        )
        table.add_row(*key, *marked)
    return table


def _totals(runs: Sequence[Run], states: States, found: Mapping[str, Estimate]) -> Table:
    """What is missing, a row a model."""
    table = Table(title="what is missing", box=box.SIMPLE_HEAD, title_justify="left")
    table.add_column("model")
    for heading in ("cells", "tokens trained on", "generated at most", "PFLOP", "time", "a cell"):
        table.add_column(heading, justify="right")
    for model, one in found.items():
        of_it = [states[run.name] != "done" for run in runs if run.model == model]
        table.add_row(
            model,
            f"{sum(of_it)} of {len(of_it)}",
            "?" if one.tokens is None else f"{one.tokens:,}",
            "?" if one.written is None else f"{one.written:,}",
            "?" if one.flop is None else f"{one.flop / 1e15:.3g}",
            "?" if one.seconds is None else _duration(one.seconds),
            "?" if one.memory is None else f"{one.memory / GB:.2g} GB",
        )
    return table


def _words(states: States, found: Mapping[str, Estimate], config: CompareConfig) -> Iterator[str]:
    """What people ask first."""
    missing = sum(state != "done" for state in states.values())
    yield f"{len(states)} cells, {missing} to do; nothing was trained, and nothing written"
    probes, untrained = _first(config)
    to_sweep = "1 probe" if probes == 1 else f"{probes} probes"
    yield f"before them: {to_sweep} to sweep, {untrained} evaluations before any training"
    known = [one for one in found.values() if one.tokens is not None]
    if known:
        seconds, at_once = sum(one.seconds or 0 for one in known), _at_once(config)
        beside = f", {_duration(seconds / at_once)} with --jobs {config.jobs}"
        yield (
            f"{sum(one.tokens or 0 for one in known):,} tokens to train on, {_duration(seconds)} "
            f"one cell after the other{beside if at_once > 1 else ''}"
        )
        yield (
            f"{max(one.memory or 0 for one in known) / GB:.2g} GB for a cell at most, "
            f"{config.jobs} at a time; each has half a GB besides for Python and its libraries"
        )
    if unknown := [model for model, one in found.items() if one.tokens is None]:
        yield f"not in these sums, as they cannot be counted here: {', '.join(unknown)}"
    for model, one in found.items():
        yield one.by if one.by.startswith(model) else f"{model}: {one.by}"


def _first(config: CompareConfig) -> tuple[int, int]:
    """Probes and evaluations that come before the cells, as far as they are missing."""
    probes = untrained = 0
    for model in config.models:
        swept = {name: one.probe for name, one in grid.needed(model, config).items()}
        there = {probe: (probe / "config.json").is_file() for probe in swept.values()}
        probes += sum(not found for found in there.values())
        untrained += sum(
            not there[swept["probe"]] or not grid.is_evaluated(model, seed, config)
            for seed in config.seeds
        )
    return probes, untrained


def _at_once(config: CompareConfig) -> int:
    """How many cells do not wait for one another."""
    if config.recipe.device_map != "cpu":
        return 1  # all on one accelerator, as far as is known
    return max(1, min(config.jobs, (os.cpu_count() or 1) // config.recipe.threads))


def _duration(seconds: float) -> str:
    unit, size = next(
        ((unit, size) for unit, size in (("h", 3600), ("min", 60)) if seconds >= size), ("s", 1)
    )
    value = seconds / size
    return f"{value:.1f} {unit}" if unit == "h" and value < 10 else f"{value:,.0f} {unit}"
