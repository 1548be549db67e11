"""One model of a sweep: load, capture, fit, score, export; what is still valid is reused.

    OUT/MODEL/TRAIN-SET/scores.{parquet,csv}  risks.{parquet,csv}  probe/  done.json
    OUT/MODEL/TRAIN-SET/POSITION/...          the same of each position after the first

`done.json` is written last and says what the rest was made from. With several positions
`directions.safetensors` holds the weights of each layer's probe besides, for their cosines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pandas as pd
import torch
from rich.console import Console
from rich.markup import escape
from safetensors.torch import load_file, save

from analysis import results
from analysis.evidence_rows import CosineRow
from analysis.results import RiskRow, ScoreRow
from analysis.tables import best_layer
from probes import models, scoring
from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.directions import cosine_rows
from probes.errors import InputError
from probes.frozen import FrozenProbe
from probes.hooks import LAST, Position
from probes.manifest import Manifest, cache_folder, slug, versions_of
from probes.models import ChatModel
from probes.prompts import PromptSet
from probes.provenance import FORMAT
from probes.scoring import Captured, Fitted, Lexical, Where

if TYPE_CHECKING:
    from probes.layer_sweep import SweepConfig


DONE = "done.json"

DIRECTIONS = "directions.safetensors"

SHOWN = 2
"""Of many texts that are read, how many are shown."""

LEAST_HELD = 2**24
"""Bytes: what a fit may hold of one thing even where a shard is smaller."""


class Found(NamedTuple):
    """What one model gave."""

    scores: list[ScoreRow]
    """Of every position."""
    risks: list[RiskRow]
    """Of the first position alone: these rows have no column to tell positions apart."""
    cosines: list[CosineRow]
    """Between positions."""


def sweep_model(
    spec: str,
    config: SweepConfig,
    trains: Sequence[PromptSet],
    held_outs: Sequence[PromptSet],
    words: dict[str, list[Lexical]],
    console: Console,
) -> Found:
    """Sweep one model over all train sets.

    Args:
        spec: The model.
        config: What to do.
        trains: What probes are fitted on, one after the other.
        held_outs: What they are scored on.
        words: The lexical floors by train set, which are the same for every model: the first that
            needs them adds them.
        console: Where to say what happens.

    Raises:
        InputError: The model cannot be loaded or read, or a train set is too small.
    """
    chat = models.load(
        spec,
        revision=config.revision,
        dtype=config.dtype,
        device_map=config.device_map,
        chat_template=config.chat_template,
        weights=not config.remote,
    )
    captured: dict[Position, dict[str, Captured]] = {one: {} for one in config.positions}
    for prompts, caches in _capture(chat, config, [*trains, *held_outs]):
        for cache in caches:
            captured[cache.manifest.position][prompts.name] = Captured(prompts, cache)
    found = Found([], [], [])
    for position, sets in captured.items():
        _say_what_was_read([cast(ActivationCache, one.acts) for one in sets.values()], console)
        for train in trains:
            unseen = [sets[other.name] for other in held_outs if other.name != train.name]
            folder = _folder(config, spec, train, position)
            scores, risks = _on_train_set(spec, sets[train.name], unseen, config, words, folder)
            console.print(f"  frozen probe: {escape(str(folder / 'probe'))}", soft_wrap=True)
            found.scores.extend(scores)
            found.risks.extend(risks if position == config.positions[0] else [])
    for train in trains if len(config.positions) > 1 else ():
        weights = {
            position: load_file(_folder(config, spec, train, position) / DIRECTIONS)["weight"]
            for position in config.positions
        }
        found.cosines.extend(
            cosine_rows(weights, model=spec, hook_point=config.hook_point, train_set=train.name)
        )
    return found


def _folder(config: SweepConfig, spec: str, train: PromptSet, position: Position) -> Path:
    """Where the results of one train set at one position lie."""
    folder = config.out / slug(spec) / slug(train.name)
    return folder if position == config.positions[0] else folder / position


def _capture(
    chat: ChatModel, config: SweepConfig, sets: Sequence[PromptSet]
) -> Iterator[tuple[PromptSet, list[ActivationCache]]]:
    """The activations of each set, once for all positions."""
    backend = open_backend(
        chat.model, config.backend, remote=config.remote, revision=config.revision
    )
    if config.export.isdecimal() and int(config.export) >= backend.n_layers:
        raise InputError(
            f"--export {config.export}: {chat.name} has the layers 0 to {backend.n_layers - 1}"
        )
    weights = models.weights_fingerprint(chat.model)
    for prompts in {one.name: one for one in sets}.values():
        described: dict[str, Any] = {
            "backend": backend,
            "hook_point": config.hook_point,
            "max_length": config.max_length or models.context_length(chat.model),
            "shard_size": config.shard_size,
            "token_budget": config.token_budget,
            "weights": weights,
        }
        manifests = [
            Manifest.of(chat, prompts, position=position, **described)
            for position in config.positions
        ]
        folders = {cache_folder(config.cache, manifest): manifest for manifest in manifests}
        yield (
            prompts,
            ActivationCache.build_each(folders, chat, prompts, backend=backend, progress=True),
        )


def _say_what_was_read(caches: Sequence[ActivationCache], console: Console) -> None:
    """The text of the tokens read, for anyone to see that they are the right ones."""
    index = pd.concat([cache.index for cache in caches])
    manifest = caches[0].manifest
    read = index.groupby(["token_id", "token_text"])["truncated"].agg(["size", "sum"])
    shown, where = read, "the last input token"
    if manifest.position != LAST:  # there may be as many texts as prompts: the most frequent tell
        shown, where = read.nlargest(SHOWN, "size"), manifest.position
    for (token, text), (n, cut) in zip(shown.index, shown.to_numpy(), strict=True):
        text = repr(text if len(text) <= 60 else f"{text[:60]}...")
        console.print(
            f"  reads {manifest.hook_point} at {where} {escape(text)} (id {token}) of {n} prompts"
            f"{_shortened(cut)}"
        )
    if len(read) > len(shown):
        others = read["size"].sum() - shown["size"].sum()
        console.print(f"  and {len(read) - len(shown)} other texts of {others} prompts")


def _shortened(n: int) -> str:
    return f", {n} of them shortened to --max-length" if n else ""


def _on_train_set(
    spec: str,
    train: Captured,
    held_out: Sequence[Captured],
    config: SweepConfig,
    words: dict[str, list[Lexical]],
    folder: Path,
) -> tuple[list[ScoreRow], list[RiskRow]]:
    """Fit, score and export on one train set, unless that was done before from the same things."""
    caches = [cast(ActivationCache, one.acts) for one in (train, *held_out)]
    manifest = caches[0].manifest
    made_from, several = _made_from(caches, config), len(config.positions) > 1
    if _is_done(folder, made_from) and (not several or (folder / DIRECTIONS).is_file()):
        return _read(folder)
    for name in (DONE, DIRECTIONS):
        (folder / name).unlink(missing_ok=True)

    name = train.prompts.name
    if name not in words:
        words[name] = scoring.lexical(
            train.prompts,
            [one.prompts for one in held_out],
            folds=config.folds,
            seed=config.seed,
            progress=True,
        )
    where = Where(spec, config.hook_point, manifest.position, config.seed)
    swept = scoring.sweep(
        where,
        train,
        held_out,
        words[name],
        folds=config.folds,
        Cs=config.C,
        memory=_memory(manifest),
        progress=True,
    )
    chosen = _chosen(swept, config.export)
    scores, risks = swept.scores, scoring.risks(where, chosen, train, held_out)
    FrozenProbe.of(
        chosen.probe,
        manifest,
        train.prompts,
        chosen.out_of_fold,
        auroc=chosen.auroc,
        fpr=config.fpr,
    ).save_pretrained(folder / "probe")
    results.write(scores, folder / "scores")
    results.write(risks, folder / "risks")
    if several:
        weight = torch.cat([one.probe.weight for one in swept.layers])
        results.replace({folder / DIRECTIONS: save({"weight": weight})})
    results.replace({folder / DONE: made_from.encode()})
    return scores, risks


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
            "format": FORMAT,
            "versions": versions_of("activation-critic", "torch", "scikit-learn"),
        },
        indent=2,
    )


def _is_done(folder: Path, made_from: str) -> bool:
    done = folder / DONE
    return done.is_file() and done.read_text() == made_from


def _read(folder: Path) -> tuple[list[ScoreRow], list[RiskRow]]:
    tables = results.read_all(folder)
    scores, risks = (
        cast(list[dict[str, Any]], tables[name].to_dict("records")) for name in ("scores", "risks")
    )
    return [ScoreRow(**row) for row in scores], [RiskRow(**row) for row in risks]
