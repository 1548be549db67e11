"""The defences side by side, as `regularize.cost` measures them."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.trainer_callback import TrainerCallback

from analysis.rows import CostRow
from probes.errors import InputError
from regularize import arms, interleave, memory, plugins
from regularize.arms import NONE, Arm, Run
from regularize.cost import WARM
from regularize.entrants import (
    Setting,
    counted,
    device_of,
    given_to,
    load,
    setting_of,
    steps_of,
    trainer_for,
)
from regularize.noise import without_noise
from regularize.segments import Segments

if TYPE_CHECKING:
    from regularize.cost import CostConfig
    from regularize.trainer import RegularizedTrainer

SFT = "SFT"
"""What all others are measured against, and none of them."""
BETWEEN = 4
"""Steps of SFT before and after what is timed in steps of it."""


@dataclass
class Entrant:
    """A training that is ready, and what has come of it so far."""

    trainer: RegularizedTrainer
    turns: Segments
    tokens: Callable[[], int]
    """How many have gone forward through its models."""
    before: float
    """Time until it was ready, in steps of SFT."""
    before_tokens: int
    step_tokens: int = 0
    after: float = math.nan
    """Time after its last step, likewise."""
    after_tokens: int = 0


def measured(config: CostConfig) -> list[CostRow]:
    """One row a defence, those that failed too.

    Raises:
        InputError: The model, its data or the probe cannot be had, or there are too few steps.
    """
    without_noise()
    chosen = contestants(config)
    with TemporaryDirectory() as folder:
        setting = setting_of(config, chosen, Path(folder))
        contest = Contest(setting, chosen)
        contest.build()
        contest.train()
        contest.finish()
        peaks = _peaks(setting, contest.finished) if config.memory else {}
        return [contest.row(name, peaks) for name in chosen]


def contestants(config: CostConfig) -> dict[str, Arm]:
    """An arm for each defence, by the defence's name: with the settings of the comparison.

    It is the testbed's arm of that name with the main attack, or else its first one of that
    defence; where there is none, the defaults are taken.
    """
    testbed, seed = config.testbed, config.seed
    rate = testbed.recipe.learning_rate
    start = Run(config.model, testbed.attack, testbed.share, rate, seed, NONE)
    tried = [
        run.arm
        for experiment in testbed.experiments.values()
        for run in experiment(start)
        if run.attack == start.attack and run.arm.anchors is None
    ]
    found: dict[str, Arm] = {}
    for arm in (*tried, *arms.others({}, *tried)):
        name = plugins.name_of(arm.method)
        if name not in found or found[name].defence != name == arm.defence:
            found[name] = arm
    return {n: arm for n, arm in found.items() if not config.defences or n in config.defences}


class Contest:
    """Trainings that take turns."""

    def __init__(self, setting: Setting, chosen: Mapping[str, Arm]) -> None:
        """Load what tells the time: one more SFT."""
        self._setting, self._chosen = setting, chosen
        self._entrants: dict[str, Entrant] = {}
        self._failed: dict[str, str] = {}
        self._seconds: dict[str, list[float]] = {}
        self._clock = Segments(trainer_for(NONE, load(NONE, setting), setting, steps=10**6))
        self._clock.go(WARM)

    @property
    def finished(self) -> dict[str, Arm]:
        """Those that have not failed, SFT first."""
        return {SFT: NONE, **{n: arm for n, arm in self._chosen.items() if n in self._entrants}}

    def build(self) -> None:
        """Have all ready to train."""
        every = {SFT: NONE, **self._chosen}
        for name, arm in tqdm(every.items(), desc="before", unit="defence"):
            with self._excused(name), _accelerate_as_it_was():
                self._entrants[name] = self._entrant(arm)

    def train(self) -> None:
        """All steps of all, in rounds."""
        names, rounds = list(self._entrants), self._setting.config.rounds
        for name in names:
            with self._excused(name):
                self._entrants[name].turns.go(WARM)
        steps = np.array_split(np.arange(self._setting.steps - WARM), rounds)
        gc.collect()
        gc.freeze()  # what one has built is no garbage for another to look through
        try:
            with tqdm(total=len(names) * rounds, desc="steps", unit="segment") as bar:
                jobs = {
                    name: partial(self._segment, name, iter([len(part) for part in steps]), bar)
                    for name in names
                }
                self._seconds = interleave.seconds(jobs, rounds=rounds, clock=self._now)
        finally:
            gc.unfreeze()

    def finish(self) -> None:
        """What comes after the last step of each."""
        for name, one in tqdm(list(self._entrants.items()), desc="after", unit="defence"):
            with self._excused(name):
                one.step_tokens = one.tokens() - one.before_tokens
                one.after = self._timed(one.turns.finish)
                one.after_tokens = one.tokens() - one.before_tokens - one.step_tokens
        self._clock.abandon()

    def row(self, name: str, peaks: Mapping[str, int]) -> CostRow:
        """What a defence took beside SFT."""
        setting, arm = self._setting, self._chosen[name]
        theirs = self._entrants[SFT]
        device = device_of(theirs.trainer)
        numbers: dict[str, Any] = dict.fromkeys(
            ("time_ratio", "time_ratio_lo", "time_ratio_hi", "memory_ratio", "step_passes", "steps",
             "before", "before_passes", "after", "after_passes"), math.nan,
        )  # fmt: skip
        if (ours := self._entrants.get(name)) is not None:
            time = interleave.ratio(self._seconds[name], self._seconds[SFT])
            of_data = sum(len(row.input_ids) for row in theirs.trainer.prepared.trained_on)
            numbers |= {
                "time_ratio": time.median, "time_ratio_lo": time.lo, "time_ratio_hi": time.hi,
                "memory_ratio": peaks.get(name, math.nan) / peaks.get(SFT, math.nan),
                "step_passes": ours.step_tokens / theirs.step_tokens,
                "steps": steps_of(ours.trainer, setting) / setting.whole,
                "before": (ours.before - theirs.before) / setting.whole,
                "before_passes": (ours.before_tokens - theirs.before_tokens) / of_data,
                "after": (ours.after - theirs.after) / setting.whole,
                "after_passes": (ours.after_tokens - theirs.after_tokens) / of_data,
            }  # fmt: skip
        kind = {"cpu": "resident"}.get(device, device) if SFT in peaks else "none"
        return CostRow(
            model=setting.config.model, defence=name, critic=arm.critic, memory=kind,
            clock=setting.config.clock, rounds=setting.config.rounds,
            failed=self._failed.get(name, ""), **numbers,
        )  # fmt: skip

    def _entrant(self, arm: Arm) -> Entrant:
        loaded = load(arm, self._setting)
        tokens = counted(loaded)
        made: list[RegularizedTrainer] = []
        steps = self._setting.steps
        before = self._timed(
            lambda: made.append(trainer_for(arm, loaded, self._setting, steps=steps))
        )
        return Entrant(made[0], Segments(made[0]), tokens, before, tokens())

    def _segment(self, name: str, steps: Iterator[int], bar: tqdm) -> None:
        if name in self._entrants:
            with self._excused(name):
                self._entrants[name].turns.go(next(steps))
        bar.update()

    def _timed(self, job: Callable[[], object]) -> float:
        """What a job takes, in steps of SFT at that time."""
        around = self._seconds_of(partial(self._clock.go, BETWEEN))
        took = self._seconds_of(job)
        around += self._seconds_of(partial(self._clock.go, BETWEEN))
        return took * 2 * BETWEEN / around

    def _seconds_of(self, job: Callable[[], object]) -> float:
        start = self._now()
        job()
        return self._now() - start

    def _now(self) -> float:
        return process_time() if self._setting.config.clock == "processor" else perf_counter()

    @contextmanager
    def _excused(self, name: str) -> Iterator[None]:
        """Go on without a defence that fails; without SFT there is nothing to measure against."""
        try:
            yield
        except Exception as error:
            if name == SFT:
                raise
            self._entrants.pop(name, None)
            self._failed[name] = _reason(error)
            tqdm.write(f"{name}: {self._failed[name]}", file=sys.stderr)


class _Watch(TrainerCallback):
    """The peak of memory from the second step to the last."""

    def __init__(self, device: str) -> None:
        self._device, self.highest = device, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:  # noqa: ARG002
        if state.global_step == 1:
            memory.forget(self._device)

    def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:  # noqa: ARG002
        self.highest = memory.highest(self._device)


def peak(arm: Arm, setting: Setting) -> int:
    """Bytes held at most in the steps of a training, above model and data.

    What it has built before and goes on holding is in it. Called in a process of its own.
    """
    without_noise()
    # Libraries are loaded and caches filled by another training of the same kind.
    trainer_for(arm, load(arm, setting), setting, steps=setting.steps).train()
    loaded = load(NONE, setting)
    gc.collect()
    device = loaded.chat.model.device.type
    beyond = memory.held(device)
    loaded = loaded._replace(given=given_to(arm, loaded.chat, setting))
    trainer = trainer_for(arm, loaded, setting, steps=setting.steps)
    watch = _Watch(device)
    trainer.add_callback(watch)
    trainer.train()
    return watch.highest - beyond


def _peaks(setting: Setting, chosen: Mapping[str, Arm]) -> dict[str, int]:
    """Of those that could be measured."""
    found: dict[str, int] = {}
    if not memory.is_known("cuda" if torch.cuda.is_available() else "cpu"):
        return found
    for name, arm in tqdm(chosen.items(), desc="memory", unit="defence"):
        try:
            found[name] = memory.alone(peak, arm, setting)
        except Exception as error:
            tqdm.write(f"{name}: no memory measured: {_reason(error)}", file=sys.stderr)
    return found


@contextmanager
def _accelerate_as_it_was() -> Iterator[None]:
    """What accelerate keeps for all trainers of a process, which another one sets back."""
    from accelerate.state import AcceleratorState, PartialState  # type: ignore[import-untyped]

    kept = [
        (one._shared_state, dict(one._shared_state)) for one in (AcceleratorState, PartialState)
    ]
    try:
        yield
    finally:
        for shared, before in kept:
            shared.clear()
            shared.update(before)


def _reason(error: Exception) -> str:
    """One line."""
    line = " ".join(str(error).split())
    return line if isinstance(error, InputError) else f"{type(error).__name__}: {line}"
