"""Data that attackers make against a model's frozen probe, in the grid of `regularize.compare`.

They depend on the model, its probe and the seed, and so are made before the runs, once for all
arms. They lie in OUT/attacks/MODEL-ATTACK-SHARE-SEED: rows.jsonl, training data as any other, and
attack.json, the forms that the attacker chose and what they were made from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import results
from analysis.attacker_rows import AttackerRow
from probes.manifest import slug
from regularize import measures
from regularize.arms import NONE, Run

if TYPE_CHECKING:
    from regularize.compare import CompareConfig
    from regularize.testbeds import Made

TABLE = "attackers"
MADE = "attack.json"
"""Written last: where it lies, the rest does."""
ASKED = "asked.json"
"""What the row of the untrained model was made from."""


def folder_of(run: Run, config: CompareConfig) -> Path:
    """Where the data of a run lie that an attacker makes."""
    words = (run.model, run.attack, f"{run.share:g}", f"seed{run.seed}")
    return config.out / "attacks" / slug("-".join(words))


def of(run: Run, config: CompareConfig) -> Made | None:
    """What an attacker made for a run, now if it is not there; None where there is no attacker."""
    if config.testbed.attacker(run.attack) is None:
        return None
    probe = config.testbed.sweeps(run.model, config.out, config.probes)["probe"].probe
    return config.testbed.made(run, folder_of(run, config), probe)


def digest(run: Run, config: CompareConfig) -> str | None:
    """Of what was made for a run; None where nothing was."""
    made = folder_of(run, config) / MADE
    return hashlib.sha256(made.read_bytes()).hexdigest() if made.is_file() else None


def prepare(model: str, runs: Sequence[Run], config: CompareConfig) -> None:
    """Make what a model's runs are trained on, and ask the untrained model in each form."""
    for run in _once([run for run in runs if run.model == model], config):
        if (made := of(run, config)) is None:
            continue
        folder = folder_of(run, config)
        from_ = json.dumps([digest(run, config), config.prompts, config.split]).encode()
        asked = folder / ASKED
        if asked.is_file() and asked.read_bytes() == from_:
            continue
        from probes import models

        recipe = config.recipe
        chat = models.load(model, dtype=recipe.dtype, device_map=recipe.device_map)
        found = made.evaluate(chat, n=config.prompts, seed=run.seed, split=config.split)
        about = measures.Arm(model, attack=run.attack, harmful_share=run.share, seed=run.seed)
        results.write([made.row(about, made.seen(None, chat), found.shares)], folder / TABLE)
        results.replace({asked: from_})


def rows(runs: Sequence[Run], config: CompareConfig) -> list[AttackerRow]:
    """Of the runs that had an attacker, and of the untrained models that were asked in a form."""
    from regularize import grid

    attacked = [run for run in runs if config.testbed.attacker(run.attack) is not None]
    folders = [folder_of(run, config) for run in _once(attacked, config)]
    folders += [grid.folder_of(run, config) for run in attacked]
    return [row for folder in folders for row in results.rows(folder, TABLE)]


def _once(runs: Sequence[Run], config: CompareConfig) -> list[Run]:
    """A run for each folder."""
    plain = [replace(run, arm=NONE) for run in runs]
    return list({folder_of(run, config): run for run in plain}.values())
