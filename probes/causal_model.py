"""One probe's causal check: prompts are read, the model loaded, directions measured, trials run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from rich.console import Console
from tqdm import tqdm

from analysis.evidence_rows import CausalRow
from probes import causal, leaks, models, prompts
from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.causal import Asked, Trial
from probes.directions import Directions
from probes.edits import open_editing
from probes.errors import InputError
from probes.folds import Folds
from probes.frozen import FrozenProbe
from probes.manifest import Manifest, cache_folder
from probes.models import ChatModel
from probes.probe import Stacked, fit
from probes.prompts import Prompt, PromptSet

if TYPE_CHECKING:
    from probes.causal_check import CausalConfig


class Question(NamedTuple):
    """All that can be known before a model is loaded."""

    path: str
    """Where the probe is from."""
    probe: FrozenProbe
    model: str
    train: PromptSet
    held_out: str
    """Name of the set."""
    prompts: list[Prompt]
    """The held-out prompts to answer, of both labels."""
    layers: tuple[int, ...]
    """Blocks whose output is changed, one at a time."""


def question(path: str, config: CausalConfig) -> Question:
    """Read the probe and the prompts.

    Raises:
        InputError: One cannot be read, they do not belong together, or there is no such layer.
    """
    probe = FrozenProbe.from_pretrained(path)
    layers = _layers(probe, config.layers)
    train = _train_set(probe, config)
    held_out = leaks.alike_grouped(prompts.load(config.held_out, seed=config.seed))
    fresh = held_out.kept(leaks.new(train, held_out, leaks.between(train, held_out))).prompts
    causal.check_labels(fresh, held_out.name)
    model = config.model or probe.config.base_model
    chosen = _drawn(fresh, config.n, config.seed)
    return Question(path, probe, model, train, held_out.name, chosen, layers)


def answer(asked: Question, config: CausalConfig, console: Console) -> list[CausalRow]:
    """Load the model and run every trial, with a bar.

    Raises:
        InputError: The model is another than the probe's, or cannot be run by the backend.
    """
    chat = models.load(
        asked.model,
        revision=config.revision or asked.probe.config.revision,
        dtype=config.dtype,
        device_map=config.device_map,
    )
    asked.probe.check(chat.model, chat.tokenizer)
    plan = [
        trial
        for directions in _directions(chat, asked, config)
        for trial in causal.trials(directions, config.direction, config.strength, config.add_at)
    ]
    _say(plan, console)
    with tqdm(total=causal.n_answers(plan, asked.prompts), desc="  answers", unit="answer") as bar:
        return causal.measure(
            Asked(asked.model, asked.train.name, asked.held_out, config.random, config.seed),
            chat,
            open_editing(chat.model, config.backend),
            asked.prompts,
            plan,
            new_tokens=config.new_tokens,
            max_length=asked.probe.config.max_length,
            token_budget=config.token_budget,
            on_answers=bar.update,
        )


def _layers(probe: FrozenProbe, wanted: str) -> tuple[int, ...]:
    """The blocks to change.

    A pooled probe reads several layers at once, and what is added after one block is carried on to
    all later ones: added at each, it would count many times over, and no length of it would be
    comparable. It is therefore tried layer by layer, where that is asked for.

    Raises:
        InputError: There is no such layer, or the probe has no single one.
    """
    known = probe.config
    if known.hook_point != "resid_post":
        raise InputError(
            f"the probe reads {known.hook_point}, but directions are changed in the residual "
            "stream between blocks; freeze one with probes.layer_sweep --hook-point resid_post"
        )
    if wanted == "probe":
        if len(known.layers) != 1:
            raise InputError(
                f"the probe pools {len(known.layers)} layers, and what is added at one is carried "
                "on to the next: give --layers all to try each by itself, or freeze a probe of one "
                "layer with probes.layer_sweep --export best"
            )
        return known.layers
    every = range(known.n_layers)
    chosen = tuple(every) if wanted == "all" else tuple(sorted({*map(int, wanted.split(","))}))
    if missing := [layer for layer in chosen if layer not in every]:
        raise InputError(
            f"--layers {wanted}: there is no layer {missing[0]}; {known.base_model} has the layers "
            f"0 to {known.n_layers - 1}"
        )
    return chosen


def _train_set(probe: FrozenProbe, config: CausalConfig) -> PromptSet:
    """What the probe was fitted on, known by its hash: class means and covariance are of it."""
    name = config.train or probe.config.train_set
    try:
        train = leaks.alike_grouped(prompts.load(name, seed=config.seed))
    except InputError as error:
        if config.train:
            raise
        raise InputError(
            f"the probe was fitted on {name}, which is not found under that name ({error}) Give it "
            "with --train"
        ) from error
    if train.hash != probe.config.train_hash:
        raise InputError(
            f"--train {name}: these are not the prompts that the probe was fitted on "
            f"({probe.config.train_set}, hash {probe.config.train_hash[:12]}, not "
            f"{train.hash[:12]}); give those with --train, and the sweep's --seed"
        )
    return train


def _drawn(fresh: Sequence[Prompt], n: int, seed: int) -> list[Prompt]:
    """At most `n` prompts of each label, in the set's order."""
    rng = np.random.default_rng(seed)
    kept: list[int] = []
    for label in (1, 0):
        of_label = [i for i, prompt in enumerate(fresh) if prompt.label == label]
        kept += rng.permutation(of_label)[:n].tolist()
    return [fresh[i] for i in sorted(kept)]


def _directions(chat: ChatModel, asked: Question, config: CausalConfig) -> list[Directions]:
    """At each layer, from the activations of the train set; those of the sweep are reused."""
    known = asked.probe.config
    backend = open_backend(chat.model, "transformers")
    described = {
        "backend": backend,
        "hook_point": known.hook_point,
        "position": known.position,
        "max_length": known.max_length,
        "weights": known.weights,
    }
    folder = cache_folder(config.cache, Manifest.of(chat, asked.train, **described))  # type: ignore[arg-type]
    cache = ActivationCache.build(folder, chat, asked.train, progress=True, **described)  # type: ignore[arg-type]
    labels = torch.from_numpy(asked.train.labels)
    found = []
    for layer in tqdm(asked.layers, "  directions", unit="layer", disable=len(asked.layers) < 2):
        acts = cache.layer(layer).float()
        found.append(
            Directions.of(
                layer,
                acts,
                labels,
                _weights(asked, layer, acts, config.seed),
                draws=config.draws,
                random=config.random,
                seed=config.seed,
            )
        )
    return found


def _weights(asked: Question, layer: int, acts: torch.Tensor, seed: int) -> torch.Tensor:
    """The frozen probe's at its own layer; at others, of one that is fitted as it was."""
    if asked.probe.config.layers == (layer,):
        return asked.probe.weight[0]
    folds = Folds.of(asked.train.labels, asked.train.groups, seed=seed)
    return fit(
        Stacked(acts[:, None]), asked.train.labels, folds, readout="layer", layers=[0]
    ).weight[0]


def _say(plan: Sequence[Trial], console: Console) -> None:
    """How the directions lie to each other."""
    for trial in plan:
        if trial.target == "class-mean" and trial.intervention == "ablate" and trial.draw is None:
            console.print(
                f"  layer {trial.layer}: the cosine of the probe's direction with the difference "
                f"of the class means is {trial.cosine:.2f}"
            )
