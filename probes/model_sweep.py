"""One model of a sweep: load, capture, fit, score, export; what is still valid is reused.

    OUT/MODEL/TRAIN-SET/scores.{parquet,csv}, risks, margins, ...  probe/  done.json
    OUT/MODEL/TRAIN-SET/probe-LAYER/          what --also names
    OUT/MODEL/TRAIN-SET/POSITION/...          the same of each position after the first

`done.json` is written last and says what the rest was made from. `directions.safetensors` holds
the weights of each layer's probe, for their cosines between positions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from safetensors.torch import load_file, save

from analysis import results
from analysis.results import ControlRow
from analysis.tables import best_layer
from probes import evidence, joined, models, reading, scoring
from probes.cache import ActivationCache
from probes.controls import controls
from probes.cosines import cosine_rows
from probes.frozen import FrozenProbe
from probes.hooks import Position
from probes.layer_choice import layer_choice
from probes.manifest import Manifest, slug, versions_of
from probes.provenance import FORMAT
from probes.ranks import ALONE, Ranks
from probes.scoring import Captured, Fitted, HeldOut, Judged, Where
from probes.tasks import Task

if TYPE_CHECKING:
    from probes.layer_sweep import SweepConfig


DONE = "done.json"

DIRECTIONS = "directions.safetensors"

LEAST_HELD = 2**24
"""Bytes: what a fit may hold of one thing even where a shard is smaller."""


TABLES = (
    "scores", "risks", "margins", "operating", "calibration", "reliability", "layers", "nested",
    "controls",
)  # fmt: skip
"""What a train set gives."""
BY_POSITION = ("scores", "margins", "layers", "nested", "controls")
"""Tables that tell positions apart; the others are of the first one alone."""


Activations = Mapping[Position, Mapping[str, ActivationCache]]
"""Of each position, of each prompt set by its name."""


def capture_model(
    spec: str, config: SweepConfig, tasks: Sequence[Task], ranks: Ranks = ALONE
) -> Activations:
    """Load one model and read all prompt sets, together with other processes if there are any.

    Args:
        spec: The model.
        config: What to do.
        tasks: What probes are fitted on and scored on.
        ranks: Who share the work.

    Returns:
        The activations of each set, by position and by the set's name.

    Raises:
        InputError: The model cannot be loaded or read.
    """
    with ranks.first_goes_first():  # it downloads, or makes, what the others then find
        chat = models.load(
            spec,
            revision=config.revision,
            dtype=config.dtype,
            device_map=config.device_map,
            chat_template=config.chat_template,
            weights=not config.remote,
        )
    sets = {one.name: one for task in tasks for one in (*task.parts, *task.held_out)}
    return reading.capture(chat, config, list(sets.values()), ranks)


def sweep_model(
    spec: str,
    config: SweepConfig,
    tasks: Sequence[Task],
    caches: Activations,
    words: dict[str, list[Judged]],
    console: Console,
) -> results.Tables:
    """Sweep one model over all train sets.

    Args:
        spec: The model.
        config: What to do.
        tasks: What probes are fitted on and scored on, one after the other.
        caches: What `capture_model` has read.
        words: The lexical floors by train set, which are the same for every model: the first that
            needs them adds them.
        console: Where to say what happens.

    Raises:
        InputError: A train set is too small.
    """
    found: results.Tables = {name: [] for name in (*TABLES, "cosines")}
    for position, of_sets in caches.items():
        first = position == config.positions[0]
        asked = config if first else replace(config, permutations=0)
        reading.say(list(of_sets.values()), console)
        for task in tasks:
            folder = _folder(config, spec, task, position)
            for name, rows in _on_train_set(spec, task, of_sets, asked, words, folder).items():
                if first or name in BY_POSITION:
                    found[name] += rows
            console.print(f"  frozen probe: {escape(str(folder / 'probe'))}", soft_wrap=True)
    for task in tasks:
        weights = {
            position: load_file(_folder(config, spec, task, position) / DIRECTIONS)["weight"]
            for position in config.positions
        }
        found["cosines"] += cosine_rows(
            weights, model=spec, hook_point=config.hook_point, train_set=task.train.name
        )
    return found


def _folder(config: SweepConfig, spec: str, task: Task, position: Position) -> Path:
    """Where the results of one train set at one position lie."""
    folder = config.out / slug(spec) / slug(task.train.name)
    return folder if position == config.positions[0] else folder / position


def _on_train_set(
    spec: str,
    task: Task,
    caches: Mapping[str, ActivationCache],
    config: SweepConfig,
    words: dict[str, list[Judged]],
    folder: Path,
) -> results.Tables:
    """Fit, score and export on one train set, unless that was done before from the same things."""
    used = [caches[one.name] for one in (*task.parts, *task.held_out)]
    manifest = used[0].manifest
    made_from = _made_from(used, config)
    if _is_done(folder, made_from):
        return results.read_rows(folder)
    (folder / DONE).unlink(missing_ok=True)

    train, unseen = task.train, task.unseen
    if train.name not in words:
        words[train.name] = scoring.lexical(
            train, unseen, folds=config.folds, seed=config.seed, progress=True
        )
    where = Where(spec, config.hook_point, manifest.position, config.seed)
    memory = _memory(manifest)
    captured = Captured(train, joined.activations(task.parts, caches))
    swept = scoring.sweep(
        where,
        captured,
        [
            HeldOut(scored, caches[scored.name], keep)
            for scored, keep in zip(unseen, task.keep, strict=True)
        ],
        words[train.name],
        folds=config.folds,
        Cs=config.C,
        memory=memory,
        progress=True,
    )
    chosen = _chosen(swept, config.export)
    sets = evidence.Sets(train, chosen.out_of_fold.fold, unseen)
    calibrated = evidence.calibrated(where, sets, chosen.judged, frozen=config.calibration)
    frozen = {"probe": chosen, **_also(swept, config.also)}
    if config.calibration == "platt":
        frozen = {name: evidence.platt(one, train.labels) for name, one in frozen.items()}
        chosen = frozen["probe"]
    readouts = [chosen.judged, *_beside(swept, chosen)]
    found: results.Tables = {
        "scores": swept.scores,
        "risks": scoring.risks(where, chosen, train, unseen),
        "margins": list(evidence.margins(where, sets, readouts, words[train.name])),
        "operating": list(
            evidence.operating(
                where, sets, [*readouts, *words[train.name]], [config.fpr, evidence.RARE]
            )
        ),
        "calibration": calibrated.scores,
        "reliability": calibrated.bins,
        "controls": _controls(where, captured, config, memory),
    }
    found["layers"], found["nested"] = layer_choice(
        where, captured, [one.out_of_fold for one in swept.layers]
    )
    for name, one in frozen.items():
        FrozenProbe.of(
            one.probe,
            manifest,
            train,
            one.out_of_fold,
            auroc=one.auroc,
            fpr=config.fpr,
            calibration=config.calibration,
        ).save_pretrained(folder / name)
    results.write_all(found, folder)
    weight = torch.cat([one.probe.weight for one in swept.layers])
    results.replace({folder / DIRECTIONS: save({"weight": weight})})
    results.replace({folder / DONE: made_from.encode()})
    return found


def _controls(where: Where, train: Captured, config: SweepConfig, memory: int) -> list[ControlRow]:
    """What is found where there is nothing, if that is asked for."""
    if not config.permutations:
        return []
    return controls(
        where,
        train,
        folds=config.folds,
        Cs=config.C,
        permutations=config.permutations,
        memory=memory,
        progress=True,
    )


def _beside(swept: scoring.Sweep, chosen: Fitted) -> list[Judged]:
    """What stands beside the chosen probe: the pooled one, and the class means where it reads."""
    others = [swept.pooled.judged]
    others += [
        one.judged
        for one in swept.fitted
        if one.probe.readout == "class-mean" and one.judged.layer == chosen.judged.layer
    ]
    return [one for one in others if one.readout != chosen.judged.readout]


def _memory(manifest: Manifest) -> int:
    """Bytes that a fit may hold of one thing: a shard in float32, whatever the number of prompts.

    A square matrix of the model's width, for the solver's axes, is small beside the model.
    """
    shard = 4 * manifest.shard_size * manifest.n_layers * manifest.d_model
    return max(shard, 8 * manifest.d_model**2, LEAST_HELD)


def _chosen(swept: scoring.Sweep, export: str) -> Fitted:
    """The probe to freeze. Held-out scores have no say in it."""
    if export == "pooled":
        return swept.pooled
    if export == "best":
        scores = pd.DataFrame([asdict(row) for row in swept.scores])
        return swept.layers[best_layer(scores)]
    return swept.layers[int(export)]


def _also(swept: scoring.Sweep, names: Sequence[str]) -> dict[str, Fitted]:
    """The further probes to freeze, by their folders."""
    if "all" in names:
        every = [str(layer) for layer in range(len(swept.layers))]
        names = [*every, *(name for name in names if name == "pooled")]
    return {f"probe-{name}": _chosen(swept, name) for name in names}


def _made_from(caches: Sequence[ActivationCache], config: SweepConfig) -> str:
    """All that the results of a train set follow from, as JSON."""
    return json.dumps(
        {
            "caches": {cache.manifest.prompt_set: cache.manifest.hash for cache in caches},
            "folds": config.folds,
            "C": config.C,
            "seed": config.seed,
            "fpr": config.fpr,
            "export": config.export,
            **({"also": list(config.also)} if config.also else {}),
            "calibration": config.calibration,
            "permutations": config.permutations,
            "keep_leaks": config.keep_leaks,
            "format": FORMAT,
            "versions": versions_of("activation-critic", "torch", "scikit-learn"),
        },
        indent=2,
    )


def _is_done(folder: Path, made_from: str) -> bool:
    done = folder / DONE
    return done.is_file() and done.read_text() == made_from
