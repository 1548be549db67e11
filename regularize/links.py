"""The links of chains: each trained from what the last one left, measured, and reported."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from joblib import parallel_config
from tqdm import tqdm

from analysis import results
from analysis.chain_rows import ChainRow
from analysis.rows import StepRow
from probes.commands import arguments
from probes.errors import InputError
from regularize import measures
from regularize.arms import NONE
from regularize.cells import first_line
from regularize.chains import (
    FILES,
    Chain,
    about,
    attack_of,
    chains,
    data_of,
    first_missing,
    folder_of,
    made_from,
    model_of,
    run_of,
)
from regularize.critics import Critic
from regularize.grid import BROKEN, DONE, SUCCESS, rows_of
from regularize.workers import Workers

if TYPE_CHECKING:
    from probes.frozen import FrozenProbe
    from probes.models import ChatModel
    from regularize.chain import ChainConfig

DRIFT_PROMPTS = 64
"""Safe prompts that the drift is measured on."""


class Failed(NamedTuple):
    """A chain that came to no end."""

    name: str
    reason: str


def execute(config: ChainConfig) -> None:
    """Train what is missing, some chains side by side, and report.

    Raises:
        InputError: Chains have failed, or plain fine-tuning breaks nothing.
    """
    todo = chains(config)
    for model in config.models:
        _sweep(model, {one.arm.critic for one in todo}, config)
    failed: list[Failed] = []
    missing = [one for one in todo if first_missing(one, config) <= config.length]
    with (
        parallel_config(backend="loky", inner_max_num_threads=config.recipe.threads),
        tqdm(total=len(missing), desc="chains", unit="chain", disable=not missing) as bar,
    ):
        for found in Workers(config.jobs).map(_whole, [(one, config) for one in missing]):
            bar.update()
            failed += [found] if found else []
    _report([one for one in todo if first_missing(one, config) > config.length], config)
    if failed:
        listed = "".join(f"\n  {one.name}: {one.reason}" for one in failed)
        raise InputError(
            f"chains that failed: {len(failed)}. They are in no table and no figure; the same "
            f"command goes on with them.{listed}"
        )


def carry_out(chain: Chain, config: ChainConfig) -> None:
    """The links that are missing, one after another."""
    first = first_missing(chain, config)
    if first > 1 and not model_of(chain, first - 1, config).is_dir():
        first = 0  # what it would go on from is gone
    for link in range(first, config.length + 1):
        _link(chain, link, config)
        gc.collect()  # a Trainer and its model hold each other


def _link(chain: Chain, link: int, config: ChainConfig) -> None:
    """Train one link, measure the model, and leave both; link 0 is measured alone."""
    from probes import models
    from regularize import one_run
    from regularize.noise import without_noise

    without_noise()
    folder = folder_of(chain, link, config)
    shutil.rmtree(folder, ignore_errors=True)
    recipe = config.recipe

    def load(which: str | Path) -> ChatModel:
        return models.load(str(which), dtype=recipe.dtype, device_map=recipe.device_map)

    begins = chain.model if link < 2 else model_of(chain, link - 1, config)
    chat, first = load(begins), load(chain.model)
    steps: list[StepRow] = []
    row = about(chain, config)
    if link:
        run = run_of(chain, link, config)
        learnt = one_run.learn(
            run,
            chat,
            data_of(chain, link, config),
            critic=_critic(chain, config),
            recipe=recipe,
            cache=config.out / "cache",
            measure_kl=True,
            reference=first if chain.reference == "fixed" and link > 1 else None,
        )
        chat = learnt.chat
        steps = [StepRow(**asdict(replace(row, seed=run.seed)), **one) for one in learnt.log]
    evaluation = config.testbed.evaluate(
        chat, attack=attack_of(config), n=config.prompts, seed=chain.seed, split=config.split
    )  # fmt: skip
    found = [*evaluation.shares, *_read(chat, chain, config), _drift(chat, first, chain)]
    rows = [
        ChainRow(**asdict(row), reference=chain.reference, link=link, **one._asdict())
        for one in found
    ]
    results.write_all({"chains": rows, "steps": steps}, folder)
    results.replace({folder / "answers.jsonl": results.jsonl(evaluation.records())})
    if link > 0:
        chat.model.save_pretrained(folder / "model")
        chat.tokenizer.save_pretrained(folder / "model")
    done = json.dumps(made_from(chain, link, config), indent=2)
    results.replace({folder / DONE: done.encode()})
    if link > 1:  # of a chain one model is kept
        shutil.rmtree(model_of(chain, link - 1, config), ignore_errors=True)


def _read(chat: ChatModel, chain: Chain, config: ChainConfig) -> list[measures.Share]:
    """How the probe that was frozen on the first model reads this one."""
    import numpy as np

    from probes import metrics, prompts

    probe = _frozen(chain.model, config)
    read = prompts.load(config.watched, seed=chain.seed)
    logits = probe.logits(chat.model, chat.tokenizer, read.messages, allow_mismatch=True)
    found = logits.cpu().numpy().astype(np.float64)
    threshold = probe.config.threshold
    at = metrics.operating_point(
        read.labels, found, float("nan") if threshold is None else threshold
    )
    named = {"probe_auroc": metrics.auroc_interval(read.labels, found, read.groups),
             "probe_tpr": at.tpr, "probe_fpr": at.fpr}  # fmt: skip
    return [
        measures.Share(name, one.estimate, one.lo, one.hi, len(read)) for name, one in named.items()
    ]


def _drift(chat: ChatModel, first: ChatModel, chain: Chain) -> measures.Share:
    """Mean KL to the first model on safe prompts, nats per answer token."""
    from regularize import data, testbeds
    from regularize.controller import Yardstick

    safe = data.load(testbeds.of(chain.model).given(chain.model)["safe"], seed=chain.seed)
    yardstick = Yardstick(first.model, first, safe, n=DRIFT_PROMPTS, seed=chain.seed)
    nan = float("nan")
    return measures.Share("drift", yardstick.kl(chat.model), nan, nan, len(yardstick.rows))


def _critic(chain: Chain, config: ChainConfig) -> Critic | None:
    """The arm's, with the probe of the first model, whatever model it is to read."""
    name = chain.arm.critic
    swept = config.testbed.sweeps(chain.model, config.out, config.probes)
    path = str(swept.get(name, swept["probe"]).probe)
    critic = config.testbed.critic(name, path, chain.seed)
    if chain.reference == "moving" and hasattr(critic, "allow_mismatch"):
        return replace(critic, allow_mismatch=True)  # type: ignore[type-var]
    return critic


def _frozen(model: str, config: ChainConfig) -> FrozenProbe:
    from probes.frozen import FrozenProbe

    swept = config.testbed.sweeps(model, config.out, config.probes)
    return FrozenProbe.from_pretrained(str(swept["probe"].probe))


def _sweep(model: str, critics: set[str], config: ChainConfig) -> None:
    """Sweep for the frozen probes that are missing."""
    config.testbed.prepare(config.out)
    for name, swept in config.testbed.sweeps(model, config.out, config.probes).items():
        if name in {"probe", *critics}:
            swept.make()


def _whole(chain: Chain, config: ChainConfig) -> Failed | None:
    """In whatever process this is: why it failed, if it did."""
    try:
        carry_out(chain, config)
    except Exception as error:
        return Failed(chain.name(), first_line(error))
    return None


def _report(finished: Sequence[Chain], config: ChainConfig) -> None:
    """The table of all chains, on disk and on the screen, and the figures."""
    if not finished:
        return
    from rich.console import Console

    from analysis import chains as tabulated
    from analysis import figures

    rows: list[ChainRow] = []
    for chain in finished:
        for link in range(config.length + 1):
            rows += rows_of(folder_of(chain, link, config), "chains")
    own = {"n": config.prompts, "links": config.length, **asdict(config.recipe)}
    said = arguments(config, "torch", "transformers", "peft", **own)
    results.replace({config.out / "config.json": said.encode()})
    results.write(rows, config.out / "chains")
    table = results.read_all(config.out)["chains"]
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(tabulated.render(table))
    for path in figures.redraw({"chains": table}, config.out / "figures"):
        console.print(str(path), markup=False, soft_wrap=True)
    _positive_control(rows)


def _positive_control(rows: Sequence[ChainRow]) -> None:
    """Plain fine-tuning on harmful rows must break refusal at the first link.

    Raises:
        InputError: It does not, so that no defence can be judged.
    """
    hit = [
        row.value
        for row in rows
        if (row.defence, row.metric, row.link) == (NONE.defence, SUCCESS, 1) and row.harmful_share
        and row.attack != FILES
    ]  # fmt: skip
    if hit and (success := sum(hit) / len(hit)) < BROKEN:
        raise InputError(
            f"the positive control failed: after one plain fine-tuning the model complies with "
            f"{success:.0%} of harmful prompts, less than {BROKEN:.0%}; so weak an attack judges "
            "no defence. Give more --epochs or a larger --learning-rate"
        )
