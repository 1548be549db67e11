"""Time and memory beside what one would use instead, and how they grow; a table and pictures.

Run as:
    python -m tests.benchmarks                     everything: half an hour
    python -m tests.benchmarks step fit            some benches; the table keeps the other rows
    python -m tests.benchmarks --only "few-shot"   the rows whose case or baseline says so
    python -m tests.benchmarks --resume            what the table has no numbers for yet
    python -m tests.benchmarks capture --quick     one round, apart: to see that it runs
    python -m tests.benchmarks gpu                 on a machine with a GPU, into the same table

Rows go to runs/bench/bench.{csv,parquet}, and of the growth to growth.{csv,parquet}; they are
written as they come, so that a run that is stopped loses the case it was at. `python -m analysis
--results runs/bench --out runs/bench` draws them again.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import tyro
from rich.console import Console
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from analysis import figures, results
from tests.benchmarks import capture, fit, gpu, growth, measure, step, table
from tests.benchmarks.cases import Group

Bench = Literal["capture", "fit", "step", "gpu", "growth"]
ALL: tuple[Bench, ...] = get_args(Bench)
BENCHES = {"capture": capture, "fit": fit, "step": step, "gpu": gpu}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class BenchConfig:
    """What to measure, and how often."""

    benches: tyro.conf.Positional[tuple[Bench, ...]] = ALL
    """Which of the benches; none named: all."""
    only: str | None = None
    """Rows whose case, baseline or quantity holds this text."""
    rounds: int = 5
    """Interleaved rounds, each of which gives a ratio; slow baselines have fewer, as their rows
    say."""
    memory: bool = True
    """Whether to measure the peaks, too, in processes of their own."""
    resume: bool = False
    """Leave out what the table has numbers for."""
    quick: bool = False
    """One round, no peaks, into a folder `quick` of its own: not to be quoted."""
    out: Path = Path("runs/bench")
    """Folder of the tables and pictures."""


def main(config: BenchConfig) -> int:
    """Measure, write and print; the number of rows that failed.

    Raises:
        SystemExit: Nothing answers to the choice.
    """
    if config.quick:
        config = BenchConfig(config.benches, config.only, 1, False, False, False,
                             config.out / "quick")  # fmt: skip
    console = Console(width=150)
    _compare(config)
    failed = []
    if "growth" in config.benches:
        failed = growth.run(config.out, config.only, config.rounds, config.memory, config.resume)
    if not any(results.find(config.out, name) for name in ("bench", "growth")):
        sys.exit(f"no row of {', '.join(config.benches)} has {config.only!r} in its name")
    tables = results.read_all(config.out)
    if "bench" in tables:
        console.print(table.render(tables["bench"]))
    if "growth" in tables:
        console.print(growth.render(tables["growth"]))
    for picture in figures.redraw(tables, config.out):
        console.print(f"{picture} (.pdf, .csv)", highlight=False)
    failed += table.failures(tables["bench"]) if "bench" in tables else []
    for line in failed:
        console.print(line, style="bold red", highlight=False, markup=False)
    return len(failed)


def _compare(config: BenchConfig) -> None:
    """The comparisons, a group at a time, since each holds its models."""
    known = {name: bench.groups() for name, bench in BENCHES.items()}
    chosen = [
        (name, number, group, wanted)
        for name in BENCHES
        if name in config.benches
        for number, group in enumerate(known[name])
        if (wanted := _wanted(config, group))
    ]
    every = [group for of_bench in known.values() for group in of_bench]
    with tqdm(total=sum(len(wanted) for *_, wanted in chosen), unit="row") as bar:
        for name, number, group, wanted in chosen:
            bar.set_description(f"{group.bench}: {group.case}")
            peak = measure.memory_of(group, name, number) if config.memory else None
            found = measure.rows(group, wanted, rounds=config.rounds, memory_of=peak)
            table.merge(config.out, found, every)
            for row in found:
                bar.write(table.line(row))
            bar.update(len(found))


def _wanted(config: BenchConfig, group: Group) -> list[str]:
    """Names of the group's baselines that are asked for."""
    there = table.measured(config.out) if config.resume else set()
    return [
        b.name
        for b in group.baselines
        if (config.only is None or config.only in f"{group.case} {b.name}")
        and (group.bench, group.case, b.name) not in there
    ]


def run() -> None:
    """The command. It ends with code 1 where a row failed."""
    config = tyro.cli(BenchConfig, prog="python -m tests.benchmarks", description=__doc__)
    # One thread: of torch, of BLAS, and of the processes that measure the peaks.
    os.environ.update(dict.fromkeys(THREADS, "1"))
    torch.set_num_threads(1)
    with threadpool_limits(1):
        sys.exit(1 if main(config) else 0)


if __name__ == "__main__":
    run()
