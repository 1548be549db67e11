"""Lexical floors: on the probe's folds, and blind to the rows that they are scored on."""

import tracemalloc

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from probes import floors
from probes.floors import FLOORS, cross_validated_scores, held_out_scores, lengths
from probes.metrics import auroc, auroc_interval
from probes.probe import Folds

OBJECTS = ["lamp", "table", "cup", "door", "garden", "river", "stone", "horse", "ladder", "candle"]


def sentences(n: int = 100, *, telling: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 2
    verbs = ["break" if label and telling else "clean" for label in labels]
    texts = [f"{verb} the {rng.choice(OBJECTS)} in {rng.integers(99)}" for verb in verbs]
    return texts, labels, np.arange(n).astype(str)


@pytest.mark.parametrize("floor", ["tfidf-word", "tfidf-char"])
def test_a_telling_word_is_found_and_its_absence_is_chance(floor):
    for telling in (True, False):
        texts, labels, groups = sentences(telling=telling)
        folds = Folds.of(labels, groups)
        found = cross_validated_scores(floor, texts, labels, folds)
        interval = auroc_interval(labels, found, groups, fold=folds.fold)
        assert (interval.estimate > 0.99) == telling
        assert (interval.lo < 0.5) != telling


def test_length_is_found():
    labels = np.arange(60) % 2
    texts = [" ".join(["word"] * (3 + 3 * label)) for label in labels]
    folds = Folds.of(labels, np.arange(60).astype(str))
    assert auroc(labels, cross_validated_scores("length", texts, labels, folds)) == 1.0
    np.testing.assert_allclose(np.expm1(lengths(["ab cd"])), [[5, 2]])


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_does_not_see_what_it_scores(floor):
    """Other texts in a fold leave the scores of the rest of that fold as they were."""
    texts, labels, groups = sentences(telling=True)
    folds = Folds.of(labels, groups)
    before = cross_validated_scores(floor, texts, labels, folds)
    (test,) = np.nonzero(folds.fold == 0)
    texts[test[0]] = "something else altogether, of words that were never seen"
    after = cross_validated_scores(floor, texts, labels, folds)
    np.testing.assert_array_equal(before[test[1:]], after[test[1:]])
    others = folds.fold != 0  # the control: folds that train on that row do change
    assert (before[others] != after[others]).any()


def test_held_out_sets_are_scored_by_the_floor_of_all_rows():
    texts, labels, groups = sentences(telling=True)
    folds = Folds.of(labels, groups)
    first, second = held_out_scores(
        "tfidf-word", texts, labels, folds, [["break the sea", "clean the sea"], ["clean the cup"]]
    )
    assert first[0] > 0 > first[1]
    assert second.shape == (1,)


def test_no_words_at_all_is_chance():
    labels = np.arange(40) % 2
    folds = Folds.of(labels, np.arange(40).astype(str))
    for floor in FLOORS:
        found = cross_validated_scores(floor, ["?"] * 40, labels, folds)
        assert np.ptp(found[folds.fold == 0]) == 0, floor
    assert tuple(sorted(floors.CS)) == floors.CS


@pytest.mark.parametrize(("rows", "memory"), [(7, 1), (1024, 2**23)], ids=["file", "held"])
@pytest.mark.parametrize("floor", FLOORS)
def test_blocks_give_scikit_learns_own(floor, rows, memory, monkeypatch):
    """Vectorised and fitted as a whole, C chosen by the same inner folds."""
    monkeypatch.setattr(floors, "ROWS", rows)
    monkeypatch.setattr(floors, "MEMORY", memory)
    texts, labels, groups = sentences(telling=True)
    labels = np.where(np.arange(len(labels)) % 9 == 0, 1 - labels, labels)
    folds = Folds.of(labels, groups)
    wanted = np.empty(len(labels))
    for split in range(folds.n):
        train, test = np.flatnonzero(folds.train(split)), np.flatnonzero(folds.fold == split)
        vectoriser = (
            make_pipeline(FunctionTransformer(lengths), StandardScaler())
            if floor == "length"
            else TfidfVectorizer(sublinear_tf=True, **floors.NGRAMS[floor])
        )
        X = vectoriser.fit_transform([texts[row] for row in train])
        search = GridSearchCV(
            LogisticRegression(max_iter=1000),
            {"C": floors.CS},
            scoring="neg_log_loss",
            cv=PredefinedSplit(folds.inner[split, train]),
        ).fit(X, labels[train])
        wanted[test] = search.decision_function(vectoriser.transform([texts[r] for r in test]))
    found = cross_validated_scores(floor, texts, labels, folds)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_features_of_many_texts_are_not_held(monkeypatch):
    def peak(n: int) -> int:
        texts, labels, groups = sentences(n, telling=True)
        folds = Folds.of(labels, groups, folds=3)
        tracemalloc.start()
        cross_validated_scores("tfidf-char", texts, labels, folds)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    monkeypatch.setattr(floors, "CS", (1.0,))
    monkeypatch.setattr(floors, "ROWS", 100)
    monkeypatch.setattr(floors, "MEMORY", 2**16)
    grown = peak(1800) - peak(300)
    assert grown < 1500 * 250, "bytes: a few numbers a text"
    monkeypatch.setattr(floors, "MEMORY", 2**30)
    assert peak(1800) - peak(300) > 1500 * 500, "the control: features held"
