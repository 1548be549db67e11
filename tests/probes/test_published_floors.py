"""The lexical floors of published sets are what they are known to be, on these folds too.

Known (TF-IDF of one and two words, logistic, five folds): AdvBench against its harmless twins .975
with a row and its twin in one fold; XSTest .783 with whole `focus`es unseen and .528 with whole
`type`s unseen. Another way of cutting words and another C move them by a few hundredths; of the
eighteen types other folds make .35 to .53.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from probes import floors, metrics, prompts
from probes.folds import Folds


def floor_of(spec: str, floor: floors.Floor) -> float:
    """Over all rows at once, as the known ones were computed; the sweep takes the mean of folds."""
    found = prompts.load(spec)
    folds = Folds.of(found.labels, found.groups)
    scores = floors.cross_validated_scores(floor, found.texts, found.labels, folds)
    return metrics.auroc(found.labels, scores)


@pytest.mark.parametrize(
    ("spec", "floor", "known"),
    [
        ("advbench-twins", "tfidf-word", 0.975),
        ("xstest", "tfidf-word", 0.783),
        ("xstest?group=type", "tfidf-word", 0.528),
    ],
)
def test_floors_of_published_sets(
    requests_data: Path,
    spec: str,
    floor: floors.Floor,
    known: float,
) -> None:
    assert floor_of(spec, floor) == pytest.approx(known, abs=0.05)


def test_length_alone_tells_little(requests_data: Path) -> None:
    """The control: a floor that hardly sees a set is far from what words give."""
    assert floor_of("advbench-twins", "length") < 0.8
