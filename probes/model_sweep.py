"""One model of a sweep: load, capture, fit, score, export; what is still valid is reused.

    OUT/MODEL/TRAIN-SET/scores.{parquet,csv}  risks.{parquet,csv}  probe/  done.json

`done.json` is written last and says what the rest was made from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pandas as pd
from rich.console import Console
from rich.markup import escape

from analysis import results
from analysis.results import RiskRow, ScoreRow
from analysis.tables import best_layer
from probes import models, scoring
from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.errors import InputError
from probes.frozen import FrozenProbe
from probes.manifest import Manifest, cache_folder, slug, versions_of
from probes.models import ChatModel
from probes.prompts import PromptSet
from probes.provenance import FORMAT
from probes.scoring import Captured, Fitted, Lexical, Where

if TYPE_CHECKING:
    from probes.layer_sweep import SweepConfig


DONE = "done.json"

LEAST_HELD = 2**24
"""Bytes: what a fit may hold of one thing even where a shard is smaller."""


class Found(NamedTuple):
    """What one model gave."""

    scores: list[ScoreRow]
    risks: list[RiskRow]


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
    captured = {
        prompts.name: Captured(prompts, cache)
        for prompts, cache in _capture(chat, config, [*trains, *held_outs])
    }
    _say_what_was_read([cast(ActivationCache, one.acts) for one in captured.values()], console)
    found = Found([], [])
    for train in trains:
        unseen = [captured[other.name] for other in held_outs if other.name != train.name]
        folder = config.out / slug(spec) / slug(train.name)
        one = _on_train_set(spec, captured[train.name], unseen, config, words, folder)
        console.print(f"  frozen probe: {escape(str(folder / 'probe'))}", soft_wrap=True)
        found.scores.extend(one.scores)
        found.risks.extend(one.risks)
    return found


def _capture(
    chat: ChatModel, config: SweepConfig, sets: Sequence[PromptSet]
) -> Iterator[tuple[PromptSet, ActivationCache]]:
    """The activations of each set, once."""
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
        folder = cache_folder(config.cache, Manifest.of(chat, prompts, **described))
        yield (
            prompts,
            ActivationCache.build(folder, chat, prompts, progress=True, **described),
        )


def _say_what_was_read(caches: Sequence[ActivationCache], console: Console) -> None:
    """The text of the token read, for anyone to see that it is the right one."""
    index = pd.concat([cache.index for cache in caches])
    for (token, text), rows in index.groupby(["token_id", "token_text"]):
        console.print(
            f"  reads {caches[0].manifest.hook_point} at the last input token "
            f"{escape(repr(text))} (id {token}) of {len(rows)} prompts"
            f"{_shortened(int(rows['truncated'].sum()))}"
        )


def _shortened(n: int) -> str:
    return f", {n} of them shortened to --max-length" if n else ""


def _on_train_set(
    spec: str,
    train: Captured,
    held_out: Sequence[Captured],
    config: SweepConfig,
    words: dict[str, list[Lexical]],
    folder: Path,
) -> Found:
    """Fit, score and export on one train set, unless that was done before from the same things."""
    caches = [cast(ActivationCache, one.acts) for one in (train, *held_out)]
    manifest = caches[0].manifest
    made_from = _made_from(caches, config)
    if _is_done(folder, made_from):
        return _read(folder)
    (folder / DONE).unlink(missing_ok=True)

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
    found = Found(swept.scores, scoring.risks(where, chosen, train, held_out))
    FrozenProbe.of(
        chosen.probe,
        manifest,
        train.prompts,
        chosen.out_of_fold,
        auroc=chosen.auroc,
        fpr=config.fpr,
    ).save_pretrained(folder / "probe")
    results.write(found.scores, folder / "scores")
    results.write(found.risks, folder / "risks")
    results.replace({folder / DONE: made_from.encode()})
    return found


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


def _read(folder: Path) -> Found:
    tables = results.read_all(folder)
    scores, risks = (
        cast(list[dict[str, Any]], tables[name].to_dict("records")) for name in ("scores", "risks")
    )
    return Found([ScoreRow(**row) for row in scores], [RiskRow(**row) for row in risks])
