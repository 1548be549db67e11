"""What the real model is asked: requests of published sets, dealt out so that no part leaks.

    >>> [one.text for one in requests("test", "twin")]

Harmful: AdvBench, and XSTest's unsafe half. Harmless but alarming: AdvBench's twins
(arXiv 2509.03888), and XSTest's safe half. Ordinary: Dolly and Self-Instruct. Read from the folder
in ACTIVATION_CRITIC_DATA, or else from the hub.

Parts: the model is aligned on one, the probe is fitted on another, fine-tuning data are drawn from
a third, and a fourth is for the evaluation alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from probes.files import Row
from probes.prompts._named import NamedSet
from probes.prompts.self_instruct import first

if TYPE_CHECKING:  # the list of prompt sets needs no arrays
    import numpy as np

Kind = Literal["twin", "ordinary", "safe", "unsafe", "harmful"]
Part = Literal["alignment", "probe", "attack", "test"]

FOLDS: Mapping[Part, int] = {"alignment": 6, "probe": 2, "attack": 2, "test": 2}
"""Twelfths of the groups."""

FOLDS_OF_XSTEST: Mapping[Part, int] = {"alignment": 6, "probe": 2, "attack": 1, "test": 3}
"""Of groups of its prompts alone: there are few, and figures on few say little."""

ALIKE = 0.6
"""Cosine of TF-IDF from which two requests are near-duplicates: AdvBench repeats itself."""

LONGEST = 140
"""Characters of a request: longer ones cost time and show nothing more."""

MOST = 1500
"""Rows of a set: Dolly on the hub has ten times as many."""


_XSTEST: tuple[Kind, ...] = ("unsafe", "safe")


class Source(NamedTuple):
    """How the rows of a set become requests."""

    set: str
    split: str | None
    kinds: Mapping[int, Kind]
    """By label."""
    text: Callable[[Row], str] | None = None
    """What is asked, where it is not the set's own prompt."""
    answer: Callable[[Row], str] | None = None
    """What the set itself has for an answer, if anything."""


SOURCES = (
    Source("advbench-twins", None, {1: "harmful", 0: "twin"}),
    Source("xstest", None, {1: "unsafe", 0: "safe"}),
    Source(  # a question without the text that it may be about
        "dolly", None, {0: "ordinary"},
        text=lambda row: str(row["instruction"]), answer=lambda row: str(row["response"]),
    ),
    Source(
        "self-instruct", "user-oriented", {0: "ordinary"},
        answer=lambda row: str(first(row)["output"]),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """One request."""

    text: str
    kind: Kind
    group: int
    """Near-duplicates, a row and its twin, and XSTest's prompts of one focus are of one group."""
    part: Part
    source: str
    """The set it is from."""
    answer: str = ""
    """What its set has for an answer; "" where it has none."""


class _Read(NamedTuple):
    text: str
    kind: Kind
    source: str
    group: str
    answer: str


def requests(part: Part, *kinds: Kind) -> list[Request]:
    """The requests of a part, of some kinds or of all, in the sets' order.

    Raises:
        InputError: A set can be read neither from the folder nor from the hub.
    """
    return [one for one in everything() if one.part == part and (not kinds or one.kind in kinds)]


@cache
def everything() -> tuple[Request, ...]:
    """All requests, each text once."""
    found: dict[str, _Read] = {}
    for source in SOURCES:
        for row in _rows(source):
            if len(row.text) <= LONGEST:
                found.setdefault(row.text, row)
    rows = list(found.values())
    groups = _groups([row.text for row in rows], [row.group for row in rows])
    parts = _parts([row.kind for row in rows], groups)
    return tuple(
        Request(row.text, row.kind, int(group), part, row.source, row.answer)
        for row, group, part in zip(rows, groups, parts, strict=True)
    )


def targets() -> dict[str, str]:
    """AdvBench's own opening sentences of compliance, by request."""
    found: NamedSet = importlib.import_module("probes.prompts.advbench").SET
    rows = found.rows("advbench", found.pick("advbench", None), None)
    return {found.prompt(row): str(row["target"]) for row, _ in rows}


def _rows(source: Source) -> Iterator[_Read]:
    module = importlib.import_module(f"probes.prompts.{source.set.replace('-', '_')}")
    named: NamedSet = module.SET
    split = named.pick(source.set, source.split)
    for number, (row, part) in enumerate(named.rows(source.set, split, None)):
        if number == MOST:
            return
        prompt = named.to_prompt(row, part, source=source.set, group=None)
        yield _Read(
            source.text(row) if source.text else prompt.text,
            source.kinds[prompt.label],
            source.set,
            f"{source.set}/{prompt.group}",
            source.answer(row) if source.answer else "",
        )


def _groups(texts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """The connected parts of: of one known group, or near-duplicates."""
    import numpy as np
    from scipy.sparse.csgraph import connected_components
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    alike = (words @ words.T) > ALIKE
    _, number = np.unique(known, return_inverse=True)
    same = number[:, None] == number[None, :]
    return connected_components(alike + same, directed=False)[1]


def _parts(kinds: Sequence[Kind], groups: np.ndarray) -> list[Part]:
    """Whole groups, so that each part has its share of each kind."""
    import numpy as np
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(sum(FOLDS.values()), shuffle=True, random_state=0)
    split = [fold for _, fold in folds.split(kinds, kinds, groups)]
    split.sort(key=len, reverse=True)  # the largest groups are for alignment
    ours = np.bincount(groups, [kind not in _XSTEST for kind in kinds]) == 0
    dealt = [
        [name for name, n in folds.items() for _ in range(n)] for folds in (FOLDS, FOLDS_OF_XSTEST)
    ]
    found: list[Part] = ["alignment"] * len(kinds)
    for number, rows in enumerate(split):
        for row in rows:
            found[row] = dealt[int(ours[groups[row]])][number]
    return found
