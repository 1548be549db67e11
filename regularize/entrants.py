"""What the trainings of `contest` start from: the same rows, a model each, what a defence needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from probes import models
from probes.errors import InputError
from probes.models import ChatModel
from regularize import one_run
from regularize.arms import NONE, Arm, Run
from regularize.cost import WARM
from regularize.given import given

if TYPE_CHECKING:
    from regularize.cost import CostConfig
    from regularize.data import Example
    from regularize.trainer import RegularizedTrainer


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


def setting_of(config: CostConfig, chosen: Mapping[str, Arm], folder: Path) -> Setting:
    """The same for all of them; a probe that is missing is swept.

    Raises:
        InputError: There are too few steps for the rounds.
    """
    testbed = config.testbed
    run = Run(config.model, testbed.attack, testbed.share, math.nan, config.seed, NONE)
    examples = testbed.training(run.data, seed=config.seed)
    probe = None
    if any(arm.method.needs_risk for arm in chosen.values()):
        swept = testbed.sweeps(config.model, config.out, config.probes)["probe"]
        probe = swept.probe
        if not (probe / "config.json").is_file():
            testbed.prepare(config.out)
            swept.make()
    whole = _epochs(len(examples), config)
    steps = whole if config.steps is None else config.steps
    if steps < WARM + config.rounds:
        raise InputError(
            f"--rounds {config.rounds}: the training has only {steps} steps, of which {WARM} are "
            "not timed; give fewer rounds, or more --steps"
        )
    return Setting(config, examples, probe, steps, whole, folder)


def load(arm: Arm, setting: Setting) -> Loaded:
    """A model of its own, and what the arm's defence needs."""
    recipe, model = setting.config.testbed.recipe, setting.config.model
    chat = models.load(model, dtype=recipe.dtype, device_map=recipe.device_map)
    return Loaded(chat, given_to(arm, chat, setting))


def given_to(arm: Arm, chat: ChatModel, setting: Setting) -> dict[str, Any]:
    """What the arm's defence needs beside the rows, as the trainer takes it."""
    config = setting.config
    return given(arm.method, config.testbed.given(config.model), chat, seed=config.seed)


def trainer_for(arm: Arm, loaded: Loaded, setting: Setting, *, steps: int) -> RegularizedTrainer:
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


def counted(loaded: Loaded) -> Callable[[], int]:
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


def steps_of(trainer: RegularizedTrainer, setting: Setting) -> int:
    """Of a whole training on the trainer's rows; safe data take steps, and add none."""
    prepared = trainer.prepared
    return _epochs(len(prepared.trained_on) - len(prepared.safe), setting.config)


def _epochs(rows: int, config: CostConfig) -> int:
    recipe = config.testbed.recipe
    batches = math.ceil(rows / recipe.batch_size)
    return math.ceil(recipe.epochs * math.ceil(batches / recipe.accumulate))


def device_of(trainer: RegularizedTrainer) -> str:
    """cpu, cuda, ..."""
    return trainer.args.device.type
