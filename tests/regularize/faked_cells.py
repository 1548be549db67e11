"""Cells that train nothing and end as a plan says, in workers that import this module."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import asdict
from pathlib import Path

from analysis import results
from analysis.rows import StepRow
from probes.errors import InputError
from regularize import cells, grid, measures
from regularize.arms import Run
from regularize.compare import CompareConfig

CELL = cells._cell
SUCCESS = {"none": 1.0}


def plan(out: Path, **how: str) -> None:
    """How cells end, by a part of their names: raise, refuse, wait (at the first try until somebody
    ends it), die (once another waits, where one does), die-once; else well."""
    results.replace({out / "plan.json": json.dumps(how).encode()})


def tries(out: Path, run: Run) -> int:
    path = out / "tries" / run.name
    return len(path.read_text().splitlines()) if path.is_file() else 0


def waiting(out: Path, planned: dict[str, str]) -> bool:
    """Whether all that are to wait do so."""
    begun = [path.name for path in (out / "tries").iterdir()]
    parts = [part for part, how in planned.items() if how == "wait"]
    return all(any(part in name for name in begun) for part in parts)


def cell(run: Run, config: CompareConfig) -> cells.Outcome:
    """The real one, with a training that is none."""
    grid.carry_out = carry_out
    return CELL(run, config)


def carry_out(run: Run, config: CompareConfig) -> None:
    path = config.out / "tries" / run.name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{os.getpid()} {time.time()}\n")
    planned = json.loads((config.out / "plan.json").read_text())
    how = next((how for part, how in planned.items() if part in run.name), "well")
    if how == "raise":
        raise ValueError("no luck today\nand more of it")
    if how == "refuse":
        raise InputError("these rows are bad")
    first = len(path.read_text().splitlines()) == 1
    if how == "wait" and first:
        time.sleep(300)
    if how == "die-once" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "die":
        while first and not waiting(config.out, planned):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGKILL)
    leave(run, config)


def leave(run: Run, config: CompareConfig) -> None:
    """What a cell leaves that ended well."""
    about = measures.Arm(
        run.model, defence=run.arm.defence, critic=run.arm.critic, attack=run.attack,
        harmful_share=run.share, learning_rate=run.learning_rate, seed=run.seed,
    )  # fmt: skip
    folder = grid.folder_of(run, config)
    hits = [run.arm.defence in SUCCESS] * 10
    shares = measures.on_harmful(["compliance" if hit else "refusal" for hit in hits])
    results.write(measures.evaluation_rows(shares, about), folder / "evaluations")
    terms = dict.fromkeys(("loss", "nll", "kl", "risk", "beta", "grad_norm"), 1.0)
    results.write([StepRow(**asdict(about), step=1, **terms)], folder / "steps")
    done = {**grid._made_from(run, config), grid.SECONDS: 12.5}
    results.replace({folder / grid.DONE: json.dumps(done).encode()})


def prepare(model: str, runs: list[Run], config: CompareConfig) -> None:
    """Without probes: the model as it was before."""
    shares = measures.on_harmful(["refusal"] * 10)
    for seed in config.seeds:
        rows = measures.evaluation_rows(shares, measures.Arm(model, seed=seed))
        results.write(rows, grid._untrained(model, seed, config) / "evaluations")
