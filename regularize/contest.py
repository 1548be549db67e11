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
from tempfile import TemporaryDirectory, mkdtemp
from time import perf_counter, process_time
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm
from transformers.trainer_callback import TrainerCallback

from analysis.rows import CostRow
from probes import models
from probes.errors import InputError
from probes.models import ChatModel
from regularize import arms, interleave, memory, one_run, plugins, show
from regularize.arms import NONE, Arm, Run
from regularize.cost import WARM
from regularize.given import given
from regularize.segments import Segments

if TYPE_CHECKING:
    from regularize.cost import CostConfig
    from regularize.data import Example
    from regularize.trainer import RegularizedTrainer

SFT = "SFT"
"""What all others are measured against, and none of them."""
BETWEEN = 4
"""Steps of SFT before and after what is timed in steps of it."""


class Setting(NamedTuple):
    """What all trainings have in common."""

    config: CostConfig
    examples: list[Example]
    probe: Path | None
    """Folder of the frozen probe, if any of them needs one."""
    steps: int
    """Of each training."""
    whole: int
    """Of a whole training of SFT."""
    folder: Path
    """Scratch."""


class Loaded(NamedTuple):
    """What a training begins with."""

    chat: ChatModel
    given: dict[str, Any]


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
    show.without_noise()
    chosen = contestants(config)
    with TemporaryDirectory() as folder:
        setting = _setting(config, chosen, Path(folder))
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
        self._clock = Segments(_trainer(NONE, _load(NONE, setting), setting, steps=10**6))
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
        device = _device(theirs.trainer)
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
                "steps": _steps_of(ours.trainer, setting) / setting.whole,
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
        loaded = _load(arm, self._setting)
        tokens = _counted(loaded)
        made: list[RegularizedTrainer] = []
        steps = self._setting.steps
        before = self._timed(lambda: made.append(_trainer(arm, loaded, self._setting, steps=steps)))
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
    show.without_noise()
    # Libraries are loaded and caches filled by another training of the same kind.
    _trainer(arm, _load(arm, setting), setting, steps=setting.steps).train()
    loaded = _load(NONE, setting)
    gc.collect()
    device = loaded.chat.model.device.type
    beyond = memory.held(device)
    loaded = loaded._replace(given=_given(arm, loaded.chat, setting))
    trainer = _trainer(arm, loaded, setting, steps=setting.steps)
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


def _setting(config: CostConfig, chosen: Mapping[str, Arm], folder: Path) -> Setting:
    testbed = config.testbed
    run = Run(config.model, testbed.attack, testbed.share, math.nan, config.seed, NONE)
    examples = testbed.training(run.data, seed=config.seed)
    probe = None
    if any(arm.method.needs_risk for arm in chosen.values()):
        swept = testbed.sweeps(config.model, config.out, config.probes)["probe"]
        probe = swept.probe
        if not (probe / "config.json").is_file():
            from probes import layer_sweep

            testbed.prepare(config.out)
            layer_sweep.main(swept.sweep)
    whole = _epochs(len(examples), config)
    steps = whole if config.steps is None else config.steps
    if steps < WARM + config.rounds:
        raise InputError(
            f"--rounds {config.rounds}: the training has only {steps} steps, of which {WARM} are "
            "not timed; give fewer rounds, or more --steps"
        )
    return Setting(config, examples, probe, steps, whole, folder)


def _load(arm: Arm, setting: Setting) -> Loaded:
    recipe, model = setting.config.testbed.recipe, setting.config.model
    chat = models.load(model, dtype=recipe.dtype, device_map=recipe.device_map)
    return Loaded(chat, _given(arm, chat, setting))


def _given(arm: Arm, chat: ChatModel, setting: Setting) -> dict[str, Any]:
    config = setting.config
    return given(arm.method, config.testbed.given(config.model), chat, seed=config.seed)


def _trainer(arm: Arm, loaded: Loaded, setting: Setting, *, steps: int) -> RegularizedTrainer:
    """Ready for so many steps, with a cache of its own."""
    config, (chat, more) = setting.config, loaded
    testbed, folder = config.testbed, mkdtemp(dir=setting.folder)
    needs = arm.method.needs_risk
    critic = testbed.critic(arm.critic, str(setting.probe), config.seed) if needs else None
    args = one_run.arguments(testbed.recipe, chat, folder, seed=config.seed, max_steps=steps)
    return one_run.trainer_of(
        chat, setting.examples, testbed.recipe, args,
        defence=arm.method, critic=critic, cache=Path(folder), **more,
    )  # fmt: skip


def _counted(loaded: Loaded) -> Callable[[], int]:
    """Counts the tokens, without padding, that go forward through the models from now on."""
    batches: list[torch.Tensor] = []

    def note(module: object, args: tuple[Any, ...], options: dict[str, Any]) -> None:  # noqa: ARG001
        ids: Any = options.get("input_ids", args[0] if args else None)
        if ids is None:
            ids = options["inputs_embeds"][..., 0]
        mask: Any = options.get("attention_mask")
        # While an answer is generated the mask has the past too.
        alike = isinstance(mask, torch.Tensor) and mask.shape == ids.shape
        batches.append(mask.sum() if alike else torch.tensor(ids.numel()))

    for model in (loaded.chat.model, loaded.given.get("base")):
        if model is not None:
            model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    return lambda: sum(int(n) for n in batches)


def _steps_of(trainer: RegularizedTrainer, setting: Setting) -> int:
    """Of a whole training on the trainer's rows; safe data take steps, and add none."""
    prepared = trainer.prepared
    return _epochs(len(prepared.trained_on) - len(prepared.safe), setting.config)


def _epochs(rows: int, config: CostConfig) -> int:
    recipe = config.testbed.recipe
    batches = math.ceil(rows / recipe.batch_size)
    return math.ceil(recipe.epochs * math.ceil(batches / recipe.accumulate))


def _device(trainer: RegularizedTrainer) -> str:
    return trainer.args.device.type


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
