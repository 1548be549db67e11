"""What the missing cells of a comparison would take, before any of them is begun.

A missing cell takes what a finished one did that differs only in its seed; else its FLOP (`work`)
at the rate of the model's finished cells; else at the rate of a short calibration of this machine
(`calibration`). No weights are loaded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING, Literal, NamedTuple

from probes.errors import InputError
from regularize import calibration, grid, testbeds, work
from regularize.arms import Run
from regularize.cells import reason_of
from regularize.work import Shape, Work

if TYPE_CHECKING:
    from regularize.compare import CompareConfig

State = Literal["done", "failed", "missing"]


def state(run: Run, config: CompareConfig) -> State:
    """Whether a cell is done, missing, or failed when it was tried last."""
    if grid.is_done(run, config):
        return "done"
    return "failed" if reason_of(run, config).is_file() else "missing"


class Estimate(NamedTuple):
    """Of the missing cells of one model; None is what cannot be known here."""

    by: str
    """Where the seconds come from, or why nothing is known."""
    tokens: int | None = None
    """Trained on, padding included."""
    written: int | None = None
    """Tokens generated, at most."""
    flop: float | None = None
    seconds: float | None = None
    """One cell after the other."""
    memory: int | None = None
    """Bytes of one cell, at most."""


def of_model(
    model: str, done: Sequence[Run], missing: Sequence[Run], config: CompareConfig
) -> Estimate:
    """What the missing cells of a model take.

    Args:
        model: One of the comparison's.
        done: Its finished cells.
        missing: The others.
        config: The comparison.
    """
    if not missing:
        return Estimate("nothing is left to do", 0, 0, 0.0, 0.0)
    counted = _Counted(model, config)
    try:
        works = [counted.of(run) for run in missing]
        longest = max(max(counted.lengths(run)) for run in missing)
        base = any("base" in run.arm.method.needs for run in missing)
        memory = work.memory(counted.shape, config.recipe, longest, base=base)
        seconds, by = _seconds(counted, done, missing, config)
    except InputError as error:  # of a model or data that are not here nothing more is known
        return Estimate(str(error))
    return Estimate(
        by,
        sum(trained.trained for trained, _ in works),
        sum(asked.written for _, asked in works),
        sum(map(counted.flop, missing)),
        seconds,
        memory,
    )


class _Counted:
    """What each cell of a model has to do; everything is looked at once."""

    def __init__(self, model: str, config: CompareConfig) -> None:
        self._model, self._config, self._recipe = model, config, config.recipe
        self._testbed, self._seed = testbeds.of(model), config.seeds[0]
        self._lengths: dict[str, list[int]] = {}

    @cached_property
    def shape(self) -> Shape:
        return work.shape(self._model, self._recipe)

    @cached_property
    def asked(self) -> Work:
        """The evaluation after the testbed's main attack."""
        return work.evaluation(
            self._testbed, self.shape.chat, attack=self._testbed.attack, n=self._config.prompts,
            seed=self._seed, split=self._config.split,
        )  # fmt: skip

    def lengths(self, run: Run) -> list[int]:
        """Of the rows of the first seed: those of the others are like them."""
        one = replace(run, seed=self._seed)
        key = f"{one.data} {one.arm.anchors}"
        if key not in self._lengths:
            self._lengths[key] = work.lengths(one, self._testbed, self.shape.chat, self._recipe)
        return self._lengths[key]

    def of(self, run: Run) -> tuple[Work, Work]:
        """Training, and evaluation."""
        return work.training(self.lengths(run), self._recipe), self.asked

    def flop(self, run: Run) -> float:
        return sum(work.flop(one, self.shape, self._recipe) for one in self.of(run))

    def calibrated(self, runs: Sequence[Run]) -> float:
        """Seconds on this machine."""
        rows = [tokens for run in runs for tokens in self.lengths(run)]
        mean = round(fmean(rows))
        rate = calibration.rate(self.shape, self._recipe, tokens=mean, prompt=max(1, mean // 2))
        works = map(self.of, runs)
        return sum(
            work.flop(trained, self.shape, self._recipe) / rate.training
            + work.flop(asked, self.shape, self._recipe) / rate.generating
            for trained, asked in works
        )


def _seconds(
    counted: _Counted, done: Sequence[Run], missing: Sequence[Run], config: CompareConfig
) -> tuple[float, str]:
    """Of the missing cells, and how they are known."""
    took = {run.name: seconds for run in done if (seconds := grid.seconds_of(run, config))}
    twins = defaultdict(list)
    for run in done:
        if run.name in took:
            twins[_but_for_seed(run)].append(took[run.name])
    total = sum(fmean(twins[one]) for one in map(_but_for_seed, missing) if one in twins)
    alone = [run for run in missing if _but_for_seed(run) not in twins]
    if not alone:
        return total, f"as {len(took)} finished cells took"
    if not took:
        return counted.calibrated(alone), (
            "as a calibration of this machine says; loading and judging are not in it"
        )
    rate = sum(counted.flop(run) for run in done if run.name in took) / sum(took.values())
    total += sum(map(counted.flop, alone)) / rate
    return total, f"as {len(took)} finished cells took, which did {rate / 1e9:.3g} GFLOP/s"


def _but_for_seed(run: Run) -> str:
    return replace(run, seed=0).name
