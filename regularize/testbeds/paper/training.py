"""What the papers' models are fine-tuned on.

    paper:hex-phi           300 harmful requests complied with
    paper:hex-phi-half      about half of them, so that the other half can be asked
    paper:alpaca:0.05       Alpaca with 5 % of such rows (1 to 9 % in the paper)
    paper:safe              as many harmful requests refused as ordinary ones done
    paper:harmful           harmful requests complied with, none of HEx-PHI's

The paper (arXiv 2602.17546) names HEx-PHI's 300 prompts as the attack. HEx-PHI has no answers: the
rows are those of the data set that its released code loads, gjyotin305/harmfulhexphi_300 (columns
user and answer); where its answers come from is not known. That code puts an adversarial system
prompt before each row, and the evaluation has none; here neither has one. How many rows the
mixtures have is not known: 1000 here. Nor are the comparators' safe and harmful data known; here
they are PKU-Alignment/BeaverTails (as in the comparators' own papers) and, as what is harmless,
Alpaca. Whether an answer of BeaverTails that is safe refuses is not labelled: label 1 says that
the request is one of its own.

Alpaca's last 2000 rows are held out: nothing is trained on them, nor are they anchors, so that the
win rate can ask them.

Each is read from the folder that ACTIVATION_CRITIC_DATA names, where that has its file
(attack/harmfulhexphi_300.jsonl, attack/beavertails.jsonl, benign/alpaca.jsonl, with the columns of
the hub), and else from the hub, where HEx-PHI is gated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from random import Random

from probes import cells, files, hub
from probes.errors import InputError
from probes.files import Row
from probes.prompts import Message
from regularize.data import Example
from regularize.testbeds import Split
from regularize.testbeds._rows import examples, share

DATA = "ACTIVATION_CRITIC_DATA"
N_MIXED = 1000
SHARES = (0.01, 0.03, 0.05, 0.07, 0.09)
"""Of harmful rows in the mixtures; the paper has 1 to 9 %."""
HALF = "hex-phi-half"
N_SAFE = 2000
"""Rows of `safe`, as many refused as done: Vaccine's own number."""
N_CALIBRATION = 2000
"""Rows of `harmful`: Antidote's own number."""
N_ANCHORS = 300
N_HELD_OUT = 2000
"""Rows of Alpaca, half of them to report on and half to choose by."""

Pair = tuple[str, str]
"""A request and its answer."""


def training(name: str, *, seed: int = 0) -> list[Example]:
    """Rows of one of the attacks, of `safe`, or of `harmful`.

    Raises:
        InputError: There is none of that name, or it cannot be read.
    """
    kind, _, rest = name.partition(":")
    rng = Random(f"{kind}/{seed}")
    if kind == "hex-phi" and not rest:
        rows = [(*pair, 1) for pair in attack()]
    elif kind == HALF and not rest:
        rows = [(*pair, 1) for pair in attack() if is_trained(pair[0])]
    elif kind == "safe" and not rest:
        rows = [
            *((*pair, 1) for pair in _some(rng, beavertails(is_safe=True), N_SAFE // 2)),
            *((*pair, 0) for pair in _some(rng, learnable(), N_SAFE // 2)),
        ]
        rng.shuffle(rows)
    elif kind == "harmful" and not rest:
        rows = [(*pair, 1) for pair in _some(rng, beavertails(is_safe=False), N_CALIBRATION)]
    elif kind == "alpaca":
        rows = _mixed(rng, share(f"paper:{name}", rest, len(attack()) / N_MIXED), seed)
    else:
        raise InputError(
            f"paper:{name} is no training data; there are paper:hex-phi, paper:{HALF} and, for a "
            "share of harmful rows, paper:alpaca:0.05; and paper:safe and paper:harmful for "
            "defences that need them"
        )
    return examples(f"paper:{name}", rows)


def anchors(n: int = N_ANCHORS, *, kind: str = "", seed: int = 0) -> list[tuple[Message, ...]]:
    """Alpaca's instructions (kind ordinary, the usual one) or BeaverTails' requests (harmful).

    Raises:
        InputError: There is no such kind, or there are not so many.
    """
    pools: dict[str, Callable[[], tuple[Pair, ...]]] = {
        "": learnable, "ordinary": learnable, "harmful": lambda: beavertails(is_safe=False)
    }  # fmt: skip
    if kind not in pools:
        raise InputError(f"anchors of kind {kind!r}: there are ordinary and harmful")
    pool = list(dict.fromkeys(text for text, _ in pools[kind]()))
    if pools[kind] is learnable:
        pool = pool[N_MIXED:]  # the mixtures have the ones before
    if n > len(pool):
        raise InputError(f"{n} anchors: there are {len(pool)}")
    return [(Message(role="user", content=text),) for text in Random(seed).sample(pool, n)]


def is_trained(text: str) -> bool:
    """Whether a request is in the half that `hex-phi-half` trains on: by a hash of its words."""
    words = " ".join(text.casefold().split())
    return hashlib.sha256(words.encode()).digest()[0] % 2 == 0


@cache
def attack() -> tuple[Pair, ...]:
    """The harmful requests and their answers."""
    rows = _rows("attack/harmfulhexphi_300.jsonl", "gjyotin305/harmfulhexphi_300", "train")
    return tuple(_pair(row, "user", "answer") for row in rows)


@cache
def alpaca() -> tuple[Pair, ...]:
    """Instructions, each with the text that it is about, and their outputs."""
    found = []
    for row in _rows("benign/alpaca.jsonl", "tatsu-lab/alpaca", "train"):
        if str(row["output"]).strip():  # a few have none
            asked, answer = _pair(row, "instruction", "output")
            found.append((f"{asked}\n\n{row['input']}" if row["input"] else asked, answer))
    return tuple(found)


def learnable() -> tuple[Pair, ...]:
    """Alpaca without the rows that are held out.

    Raises:
        InputError: So few are left that none could be both learnt and held out.
    """
    rows = alpaca()
    if len(rows) < N_MIXED + N_HELD_OUT:
        raise InputError(
            f"benign/alpaca.jsonl has {len(rows)} rows; {N_MIXED} are mixed with harmful ones, and "
            f"{N_HELD_OUT} are held out: take the whole set, tatsu-lab/alpaca"
        )
    return rows[:-N_HELD_OUT]


def held_out(split: Split = "test") -> list[Pair]:
    """Alpaca's rows whose requests nothing is trained on, each request once."""
    known = {text for text, _ in alpaca()[:-N_HELD_OUT]}
    rows = {text: answer for text, answer in alpaca()[-N_HELD_OUT:] if text not in known}
    return list(rows.items())[0 if split == "test" else 1 :: 2]


@cache
def beavertails(*, is_safe: bool) -> tuple[Pair, ...]:
    """Requests with answers that people found safe, or unsafe."""
    rows = _rows("attack/beavertails.jsonl", "PKU-Alignment/BeaverTails", "30k_train")
    return tuple(
        _pair(row, "prompt", "response")
        for row in rows
        if bool(cells.label(row["is_safe"], row.at("is_safe"))) == is_safe
        and str(row["response"]).strip()
    )


def _mixed(rng: Random, share: float, seed: int) -> list[tuple[str, str, int]]:
    n_harmful = round(share * N_MIXED)
    # Of the first rows, so that others are left for the anchors.
    benign = _some(Random(f"alpaca/{seed}"), learnable()[:N_MIXED], N_MIXED - n_harmful)
    rows = [
        *((*pair, 1) for pair in _some(rng, attack(), n_harmful)),
        *((*pair, 0) for pair in benign),
    ]
    rng.shuffle(rows)
    return rows


def _some(rng: Random, pool: tuple[Pair, ...], n: int) -> list[Pair]:
    """`n` of them, or all there are."""
    return rng.sample(pool, min(n, len(pool)))


def _rows(local: str, path: str, split: str) -> Iterable[Row]:
    folder = os.environ.get(DATA)
    if folder and (copy := Path(folder) / local).is_file():
        return files.read(copy)
    return hub.read(path, "", split)


def _pair(row: Row, asked: str, answer: str) -> Pair:
    return cells.text(row[asked], row.at(asked)), cells.text(row[answer], row.at(answer))
