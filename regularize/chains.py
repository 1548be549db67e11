"""The chains of `regularize.chain`: which they are, what their links are made from, where they lie.

OUT/chains/CHAIN/link-K/      chains, steps (tables of the link), answers.jsonl, done.json
OUT/chains/CHAIN/link-K/model the model after the last link that is finished, its adapter merged
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from probes.manifest import slug, versions_of
from regularize import measures
from regularize.arms import NONE, Arm, Run
from regularize.data import Example
from regularize.grid import DONE

if TYPE_CHECKING:
    from regularize.chain import ChainConfig

Reference = Literal["fixed", "moving", "none"]
FILES = "files"
"""What the attack is called where the data were given."""
STRIDE = 100
"""Between the seeds of two links, so that chains of neighbouring seeds have no data in common."""


class Chain(NamedTuple):
    """Fine-tunings in a row."""

    model: str
    arm: Arm
    reference: Reference
    share: float
    """Of harmful rows; NaN where it is not known."""
    seed: int

    def name(self) -> str:
        """Its folder."""
        words = (self.model, *self.arm.name.split("/"), self.reference, f"{self.share:g}",
                 f"seed{self.seed}")  # fmt: skip
        return slug("-".join(words))


def chains(config: ChainConfig) -> list[Chain]:
    """All of them, each once: arms that read and hold nothing have one reference, none."""
    known, found = config.known, list[Chain]()
    share = float("nan") if config.data else config.testbed.share
    for seed in config.seeds:
        for model in config.models:
            for name in config.arms:
                arm = known[name]
                kept: tuple[Reference, ...] = config.references if _reads(arm) else ("none",)
                found += [Chain(model, arm, one, share, seed) for one in kept]
            if config.control and not config.data:
                found.append(Chain(model, NONE, "none", 0.0, seed))
    return list(dict.fromkeys(found))


def data_of(chain: Chain, link: int, config: ChainConfig) -> list[Example]:
    """The training rows of a link, from 1 on."""
    from regularize import data, testbeds

    seed = seed_of(chain, link)
    if config.data:
        return data.load(config.data[link - 1], seed=seed)
    return testbeds.of(chain.model).training(run_of(chain, link, config).data, seed=seed)


def _reads(arm: Arm) -> bool:
    """Whether anything is held to a reference, or read of one."""
    method = arm.method
    held = method.needs_reference or method.has_constants or arm.anchors is not None
    return held or method.needs_risk


def attack_of(config: ChainConfig) -> str:
    """What the attack is called."""
    return FILES if config.data else config.testbed.attack


def seed_of(chain: Chain, link: int) -> int:
    """Of a link's data, order and adapter."""
    return chain.seed + STRIDE * (link - 1)


def run_of(chain: Chain, link: int, config: ChainConfig) -> Run:
    """What a link is for `one_run`."""
    rate, seed = config.recipe.learning_rate, seed_of(chain, link)
    return Run(chain.model, attack_of(config), chain.share, rate, seed, chain.arm)


def about(chain: Chain, config: ChainConfig) -> measures.Arm:
    """What all rows of a chain have in common."""
    return measures.Arm(
        chain.model,
        defence=chain.arm.defence,
        critic=chain.arm.critic,
        attack=attack_of(config),
        harmful_share=chain.share,
        learning_rate=config.recipe.learning_rate,
        seed=chain.seed,
    )


def folder_of(chain: Chain, link: int, config: ChainConfig) -> Path:
    """Where a link lies."""
    return config.out / "chains" / chain.name() / f"link-{link}"


def model_of(chain: Chain, link: int, config: ChainConfig) -> Path:
    """Where the model after a link lies."""
    return folder_of(chain, link, config) / "model"


def first_missing(chain: Chain, config: ChainConfig) -> int:
    """The first link that is not there, or not made from what it would be made from now."""
    for link in range(config.length + 1):
        done = folder_of(chain, link, config) / DONE
        if not done.is_file() or json.loads(done.read_text()) != made_from(chain, link, config):
            return link
    return config.length + 1


def made_from(chain: Chain, link: int, config: ChainConfig) -> dict[str, object]:
    """All that a link's results follow from, as JSON has it."""
    probe = config.testbed.sweeps(chain.model, config.out, config.probes)["probe"].probe
    known = probe / "config.json"
    share = None if config.data else chain.share  # NaN equals nothing
    return {
        "model": chain.model,
        "arm": [chain.arm.name, repr(chain.arm.method)],
        "anchors": chain.arm.anchors and list(chain.arm.anchors),
        "reference": chain.reference,
        "share": share,
        "seed": chain.seed,
        "link": link,
        "data": [[spec, _content(spec)] for spec in config.data[:link]],
        "probe": json.loads(known.read_text()) if known.is_file() else None,
        "read": config.watched,
        "n": config.prompts,
        "split": config.split,
        "recipe": asdict(config.recipe),
        "versions": versions_of("activation-critic", "torch", "transformers", "peft"),
    }


def _content(spec: str) -> str | None:
    """What a file holds, in few letters; None of what is no file."""
    path = Path(spec)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
