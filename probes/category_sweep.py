"""One model and one train set of categories: capture, fit, score, freeze."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float64, Int64
from numpy import ndarray
from rich.console import Console
from tqdm import tqdm

from analysis.results import CategoryRow
from probes import categories, floors, leaks, metrics, models, prompts, reading
from probes.cache import ActivationCache
from probes.categories import COMBINES, Heads, any_of, combined, heads
from probes.errors import InputError
from probes.folds import Folds
from probes.frozen_categories import FrozenCategories
from probes.hooks import Position
from probes.layer_sweep import SweepConfig
from probes.manifest import slug
from probes.prompts import PromptSet
from probes.tasks import Task, tasks

if TYPE_CHECKING:
    from probes.category_probe import CategoryProbeConfig


class Scored(NamedTuple):
    """One detector of one category, on the train set and on each held-out set."""

    readout: str
    layer: int
    category: str
    inside: Float64[ndarray, "prompt"]
    """Out of fold."""
    outside: list[Float64[ndarray, "_"]]


def sweep(config: CategoryProbeConfig, console: Console) -> tuple[Path, list[CategoryRow]]:
    """The folder that the frozen probe lies in, and how well each category is told.

    Raises:
        InputError: Something given cannot be used.
    """
    task = _task(config)
    categories.check(task.train)
    folds = categories.folds_of(task.train, folds=config.folds, seed=config.seed)
    chat = models.load(
        config.model,
        revision=config.revision,
        dtype=config.dtype,
        device_map=config.device_map,
        chat_template=config.chat_template,
    )
    reads = SweepConfig(
        models=(config.model,), train=(task.train.name,), cache=config.cache,
        positions=config.positions, revision=config.revision, max_length=config.max_length,
        token_budget=config.token_budget,
    )  # fmt: skip
    folder = config.out / slug(config.model) / slug(task.train.name)
    rows: list[CategoryRow] = []
    words = list(_of_words(task, folds, config))
    for position, caches in reading.capture(chat, reads, [task.train, *task.held_out]).items():
        reading.say(list(caches.values()), console)
        acts = caches[task.train.name]
        chosen = categories.best(_by_layer(acts, task.train, folds, config))
        probe = FrozenCategories.joined(chosen, acts.manifest, task.train, fpr=config.fpr)
        probe.save_pretrained(place(folder, position, config) / "probe")
        for one in (*_of_probes(chosen, task, caches), *words):
            rows += _rows(one, position, task, folds, config)
    return folder, rows


def place(folder: Path, position: Position, config: CategoryProbeConfig) -> Path:
    """Where the probe of a position lies."""
    return folder if position == config.positions[0] else folder / position


def _task(config: CategoryProbeConfig) -> Task:
    """The train set, with rows that are alike in one group, and the held-out ones."""
    loaded = [prompts.load(spec, seed=config.seed) for spec in config.sets]
    grouped = [leaks.grouped(one, leaks.inside(one)) for one in loaded]
    train, *held_out = grouped
    return next(iter(tasks([train], held_out, keep_leaks=config.keep_leaks)))


def _by_layer(
    acts: ActivationCache, train: PromptSet, folds: Folds, config: CategoryProbeConfig
) -> list[Heads]:
    layers = config.layers or tuple(range(acts.n_layers))
    if max(layers) >= acts.n_layers:
        raise InputError(
            f"--layers {max(layers)}: {config.model} has the layers 0 to {acts.n_layers - 1}"
        )
    return [
        heads(acts, train, folds, layer=layer, Cs=config.C, seed=config.seed)
        for layer in tqdm(layers, "  fitting", unit="layer")
    ]


def _of_probes(
    chosen: Heads, task: Task, caches: Mapping[str, ActivationCache]
) -> Iterator[Scored]:
    """The probe of each category, and all of them together."""
    outside = [
        torch.stack(
            [torch.from_numpy(one.logits(caches[other.name])[keep]) for one in chosen.probes], 1
        )
        for other, keep in zip(task.held_out, task.keep, strict=True)
    ]
    inside = torch.from_numpy(chosen.out_of_fold)
    for i, name in enumerate(task.train.categories):
        each = [other[:, i].numpy() for other in outside]
        yield Scored("layer", chosen.layer, name, inside[:, i].numpy(), each)
    for how in COMBINES:
        each = [combined(other, how).numpy() for other in outside]
        yield Scored("layer", chosen.layer, how, combined(inside, how).numpy(), each)


def _of_words(task: Task, folds: Folds, config: CategoryProbeConfig) -> Iterator[Scored]:
    """What the words alone give, of each category and of any."""
    if config.floor == "none":
        return
    texts, train = [other.texts for other in task.unseen], task.train
    for name in tqdm((*train.categories, COMBINES[0]), "  lexical floor", unit="category"):
        y = _labels(train, name)
        inside = floors.cross_validated_scores(config.floor, train.texts, y, folds)
        outside = floors.held_out_scores(config.floor, train.texts, y, folds, texts)
        yield Scored(config.floor, -1, name, inside, outside)


def _labels(prompts: PromptSet, category: str) -> Int64[ndarray, "prompt"]:
    return any_of(prompts) if category in COMBINES else prompts.of_category(category)


def _rows(
    one: Scored, position: Position, task: Task, folds: Folds, config: CategoryProbeConfig
) -> Iterator[CategoryRow]:
    sets: Sequence[PromptSet] = (task.train, *task.unseen)
    for of, scores in zip(sets, (one.inside, *one.outside), strict=True):
        inside = of is task.train
        y = _labels(of, one.category)
        with warnings.catch_warnings():  # NaN in the table says as much
            warnings.simplefilter("ignore", RuntimeWarning)
            auroc = metrics.auroc_interval(
                y, scores, of.groups, fold=folds.fold if inside else None, seed=config.seed
            )
        yield CategoryRow(
            model=config.model,
            hook_point="resid_post",
            position=position,
            layer=one.layer,
            readout=one.readout,
            category=one.category,
            train_set=task.train.name,
            eval_set=of.name,
            held_out=not inside,
            n_pos=int(y.sum()),
            n_neg=int((1 - y).sum()),
            auroc=float(auroc.estimate),
            auroc_lo=float(auroc.lo),
            auroc_hi=float(auroc.hi),
            seed=config.seed,
        )
