"""The cells of a comparison: carried out side by side, and what becomes of those that fail.

A cell is a run: one fine-tuning and its evaluation. One that fails leaves its reason in its folder
(failed.txt) and a line on the screen, and the others go on. Where its process is killed, for want
of memory perhaps, the pool of processes goes with it: what was finished is kept, what was under way
is tried once more, each cell alone, and the rest goes on side by side.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from analysis import results
from probes.errors import InputError
from regularize import adaptive, grid, testbeds
from regularize.arms import Run
from regularize.workers import Workers, shared, workers

if TYPE_CHECKING:
    from regularize.compare import CompareConfig

FAILED = "failed.txt"
KILLED = "its process was killed, for want of memory perhaps"
TRIES = 2
"""How often a cell is begun whose process is killed each time."""


class Outcome(NamedTuple):
    """What became of a cell."""

    run: Run
    reason: str | None
    """Why it failed, in a line; None if it did not."""


def execute(runs: Sequence[Run], config: CompareConfig) -> dict[str, str]:
    """Do the runs that are not done yet, some of them side by side.

    Returns:
        Why runs failed, by their names.

    Raises:
        InputError: What all cells of a model need is missing: none is begun.
    """
    config = shared(config)
    failed: dict[str, str] = {}
    with workers(config) as pool:
        missing = _missing(runs, config)
        pool.first(_prepare, [(model, missing, config) for model in config.models])
        missing = _missing(missing, config)  # with the probes that are there by now
        for run in missing:
            reason_of(run, config).unlink(missing_ok=True)
        with tqdm(total=len(missing), desc="runs", unit="run", disable=not missing) as bar:
            for run, reason in _outcomes(missing, config, pool):
                bar.update()
                if reason is not None:
                    failed[run.name] = reason
                    tqdm.write(f"failed: {run.name}: {reason}", file=sys.stderr)
    return failed


def refuse(failed: Mapping[str, str], config: CompareConfig) -> None:
    """End with the runs that failed.

    Raises:
        InputError: There are any; names them, and where their whole reasons lie.
    """
    if failed:
        listed = "".join(f"\n  {name}: {reason}" for name, reason in failed.items())
        raise InputError(
            f"runs that failed: {len(failed)}. They are in no table and no figure, and the same "
            f"command tries them again; {config.out}/runs/RUN/{FAILED} has all of a reason.{listed}"
        )


def reason_of(run: Run, config: CompareConfig) -> Path:
    """The file that says why a run failed. It is there from its beginning, in case it is killed."""
    return grid.folder_of(run, config) / FAILED


def _missing(runs: Sequence[Run], config: CompareConfig) -> list[Run]:
    return [run for run in runs if not grid.is_done(run, config)]


def _outcomes(missing: Sequence[Run], config: CompareConfig, pool: Workers) -> Iterator[Outcome]:
    """What becomes of each, as they end."""
    todo = {run.name: run for run in missing}
    while todo:
        try:
            for found in pool.map(_cell, [(run, config) for run in todo.values()]):
                del todo[found.run.name]
                yield found
        # A cell keeps its errors to itself: this one is the pool's, for a process of it has died.
        except Exception as error:
            ended = {name for name, run in todo.items() if grid.is_done(run, config)}
            begun = {name for name, run in todo.items() if reason_of(run, config).is_file()}
            if not ended | begun:
                raise
            tqdm.write(f"a process died ({first_line(error)})", file=sys.stderr)
            for name in sorted(ended | begun):
                run = todo.pop(name)
                yield Outcome(run, None) if name in ended else _alone(run, config, pool)


def _alone(run: Run, config: CompareConfig, pool: Workers) -> Outcome:
    """A second try, with nothing beside it."""
    try:
        return next(iter(pool.map(_cell, [(run, config)])))
    except Exception as error:  # the pool's again
        return Outcome(run, f"{KILLED} ({type(error).__name__})")


def _prepare(model: str, runs: Sequence[Run], config: CompareConfig) -> None:
    """What all cells of a model need: their data, the frozen probes, and the model as it was."""
    for name in dict.fromkeys(run.data for run in runs if run.model == model):
        testbed = testbeds.of(model)  # refused here if they are not there
        testbed.training(testbed.source(name), seed=config.seeds[0])
    grid.probes(replace(config, models=(model,)))
    grid.before(model, config)
    adaptive.prepare(model, runs, config)


def _cell(run: Run, config: CompareConfig) -> Outcome:
    """Carry one out, in whatever process this is."""
    if grid.is_done(run, config):  # a cluster gives out anew what it believes lost
        return Outcome(run, None)
    note = reason_of(run, config)
    before = note.read_text() if note.is_file() else ""  # of this command: the older ones are gone
    if before.count(KILLED) >= TRIES:
        return Outcome(run, KILLED)
    results.replace({note: f"{before}{KILLED}\n".encode()})
    try:
        grid.carry_out(run, config)
    except Exception as error:
        results.replace({note: traceback.format_exc().encode()})
        return Outcome(run, first_line(error))
    finally:
        gc.collect()  # a Trainer and its model hold each other, and a process does many runs
        _settle()
    note.unlink()
    return Outcome(run, None)


def first_line(error: Exception) -> str:
    """Why something failed, in a line; of what is no InputError with its kind."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return line if isinstance(error, InputError) else f"{type(error).__name__}: {line}"


@cache
def _settle() -> None:
    """After a process's first run: the libraries' objects, by the million, need no looking at.

    Every run has them looked through several times, by transformers too: half a second of a
    miniature's few.
    """
    gc.freeze()
