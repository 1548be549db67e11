"""Controls: nothing is found where nothing is, whatever the groups; what is there stands out."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from probes import controls as module
from probes import permutations
from probes.controls import controls, p_value
from probes.errors import InputError
from probes.metrics import auroc, auroc_interval
from probes.permutations import shuffles
from probes.probe import Folds, Stacked, cross_validate
from probes.scoring import Captured, Where
from tests.probes.separable import Planted, planted
from tests.probes.test_layer_choice import captured

WHERE = Where("m", "resid_post", "last-input-token", 3)
CS = (1e-3, 0.1)


def rows_of(data: Planted, **options):
    call = {"folds": 5, "Cs": CS, "permutations": 39} | options
    found = controls(WHERE, captured(data), **call)
    return {(row.control, row.layer): row for row in found}


def test_a_signal_stands_out_of_the_null_and_noise_does_not():
    data = planted(160, layers=2, gap=2.0, at=1, seed=3)
    found = rows_of(data)
    shuffled = [found["permuted-labels", layer] for layer in (0, 1, -1)]
    assert [row.draws for row in shuffled] == [39] * 3
    for row in shuffled[:2]:
        assert row.auroc_lo < 0.5 < row.auroc_hi
        assert row.auroc == pytest.approx(0.5, abs=0.04)
    assert shuffled[0].p_value > 0.05
    assert shuffled[0].auroc_lo <= shuffled[0].observed <= shuffled[0].auroc_hi
    assert shuffled[1].p_value == shuffled[2].p_value == 1 / 40
    assert shuffled[2].auroc > max(row.auroc for row in shuffled[:2]), "the best of two, by chance"
    assert shuffled[2].observed == shuffled[1].observed > 0.85
    assert {(row.model, row.train_set, row.seed) for row in found.values()} == {("m", "planted", 3)}


def test_what_is_observed_is_what_the_sweep_finds():
    data = planted(160, layers=2, gap=1.0, seed=3)
    folds = Folds.of(data.labels, data.groups, seed=WHERE.seed)
    found = rows_of(data, permutations=2)
    for layer in (0, 1):
        swept = cross_validate(
            data.acts, data.labels, folds, readout="layer", layers=[layer], Cs=CS
        )
        wanted = auroc_interval(data.labels, swept.logits, data.groups, fold=swept.fold).estimate
        assert found["permuted-labels", layer].observed == pytest.approx(wanted, abs=1e-3)


def test_a_shuffle_is_the_sweep_with_those_labels():
    """One by one through `cross_validate`, with the labels and inner folds of the shuffle."""
    data = planted(120, layers=1, gap=1.0, at=0, seed=1)
    folds = Folds.of(data.labels, data.groups, seed=WHERE.seed)
    taken = shuffles(data.labels, data.groups, folds, 2, WHERE.seed)
    null = []
    for one in taken:
        moved = Folds(folds.fold, folds.inner[:, one])
        found = cross_validate(
            data.acts, data.labels[one], moved, readout="layer", layers=[0], Cs=CS
        )
        null.append(
            auroc_interval(data.labels[one], found.logits, data.groups, fold=folds.fold).estimate
        )
    row = rows_of(data, permutations=2)["permuted-labels", 0]
    assert row.auroc == pytest.approx(np.mean(null), abs=2e-3)
    assert np.std(null) > 0.005, "they differ"


def test_how_much_is_held_changes_nothing():
    data = planted(90, layers=1, gap=1.0, at=0)
    whole, less = (rows_of(data, permutations=8, memory=m) for m in (2**28, 2**17))
    for one, other in zip(whole.values(), less.values(), strict=True):
        assert one.auroc == pytest.approx(other.auroc, abs=1e-3)
        assert one.observed == pytest.approx(other.observed, abs=1e-3)


def test_p_values_of_noise_are_uniform():
    found = []
    for seed in range(40):
        data = planted(40, layers=1, d_model=3, gap=0.0, at=0, seed=seed)
        rows = rows_of(data, permutations=9, folds=3, Cs=(0.01,))
        found.append(rows["permuted-labels", 0].p_value)
    assert np.mean(found) == pytest.approx(0.55, abs=0.15)
    assert np.mean(np.array(found) <= 0.2) < 0.4
    assert np.mean(np.array(found) > 0.8) < 0.4


def alike(seed: int, groups: int = 18, size: int = 8) -> Captured:
    """Rows of a group are nearly the same, and labels go by group: nothing else is to be found."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), size)
    labels = rng.permutation(np.arange(groups) % 2)[group]
    x = rng.normal(size=(groups, 1, 4))[group] + 0.1 * rng.normal(size=(len(group), 1, 4))
    data = Planted(Stacked(torch.from_numpy(x).float()), labels, group.astype(str), None)
    return captured(data)


def test_by_group_there_is_no_false_alarm_and_by_row_there_is(monkeypatch):
    by_group, by_row = [], []
    for seed in range(50):
        train = alike(seed)
        call = {"folds": 3, "Cs": (0.01,), "permutations": 9}
        where = WHERE._replace(seed=seed)
        with monkeypatch.context() as patch:
            by_group.append(controls(where, train, **call)[0].p_value)
            patch.setattr(
                module,
                "shuffles",
                lambda labels, groups, *rest: shuffles(labels, np.arange(len(labels)), *rest),
            )
            by_row.append(controls(where, train, **call)[0].p_value)
    alarms, outside = (
        [np.mean(np.isin(one, extreme)) for one in (by_group, by_row)]
        for extreme in ((0.1,), (0.1, 1.0))
    )
    assert alarms[0] <= 0.2, "0.1 is expected"
    assert outside[0] <= 0.35, "0.2 is expected"
    # The control: with each row as evidence of its own the null is far too narrow.
    assert alarms[1] > 1.5 * max(alarms[0], 0.1)
    assert outside[1] > 0.5


def test_random_directions_are_turned_on_the_training_rows():
    data = planted(120, layers=2, gap=3.0, at=1, seed=2)
    found = rows_of(data, permutations=15)
    folds = Folds.of(data.labels, data.groups, seed=WHERE.seed)
    for layer in (0, 1):
        x = data.acts.layer(layer).double().numpy()
        directions = np.random.default_rng([WHERE.seed, layer]).standard_normal((12, 15))
        wanted = []
        for direction in directions.T:
            parts = []
            for part in range(5):
                test = folds.fold == part
                scores = StandardScaler().fit(x[~test]).transform(x) @ direction
                sign = 1 if auroc(data.labels[~test], scores[~test]) >= 0.5 else -1
                parts.append(auroc(data.labels[test], sign * scores[test]))
            wanted.append(np.mean(parts))
        row = found["random-direction", layer]
        assert row.auroc == pytest.approx(np.mean(wanted), abs=1e-9)
        assert row.auroc_hi == pytest.approx(np.quantile(wanted, 0.975), abs=1e-9)
        assert row.observed == found["permuted-labels", layer].observed
    assert found["random-direction", 1].auroc > 0.55, "not .5 by symmetry"


def test_a_p_value_is_never_zero_and_counts_ties():
    null = np.array([0.4, 0.5, 0.6])
    assert p_value(null, 0.7) == 0.25
    assert p_value(null, 0.6) == 0.5
    assert p_value(null, 0.1) == 1


@st.composite
def grouped(draw):
    """Singles, twins and larger groups, some of them mixed."""
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    sizes = draw(st.sampled_from([(1,), (2,), (1, 2), (1, 3, 6)]))
    group = np.repeat(np.arange(60), rng.choice(sizes, 60))
    mixed = rng.random(60) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    labels = np.where(mixed[group], rng.integers(0, 2, len(group)), rng.integers(0, 2, 60)[group])
    return labels, group


@settings(max_examples=25, deadline=None)
@given(grouped(), st.sampled_from([1, 4, 100]))
def test_shuffles_move_whole_groups_within_a_fold(case, least):
    labels, group = case
    folds = Folds.of(labels, group.astype(str), folds=3)
    before = permutations.LEAST
    permutations.LEAST = least
    try:
        found = shuffles(labels, group, folds, 3, seed=0)
    finally:
        permutations.LEAST = before
    size = np.bincount(group)
    for taken in found:
        np.testing.assert_array_equal(folds.fold[taken], folds.fold)
        for g in range(60):
            rows = np.flatnonzero(group == g)
            (giver,) = set(group[taken[rows]])
            assert len(set(taken[rows])) == min(len(rows), size[giver])
            assert (folds.inner[:, taken[rows]] == folds.inner[:, taken[rows[:1]]]).all()
    alike = len(set(size)) == 1
    if alike:  # exact: each group gives once, and so each row
        for taken in found:
            assert Counter(taken) == Counter(range(len(labels)))


def test_labels_leave_their_rows_and_their_groups():
    """Of true labels little is left: else the null band would lie above chance."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(250), rng.choice([1, 2, 3, 5, 8], 250))
    share = rng.choice([0.0, 1.0, 0.2, 0.8], 250)
    labels = (rng.random(len(group)) < share[group]).astype(np.int64)
    folds = Folds.of(labels, group.astype(str))
    found = labels[shuffles(labels, group, folds, 50, seed=0)]
    kept = [np.corrcoef(one, labels)[0, 1] for one in found]
    assert abs(np.mean(kept)) < 0.06
    assert len({one.tobytes() for one in found}) == 50


def test_too_few_ways_to_shuffle_are_said():
    group = np.repeat(np.arange(6), 10)
    labels = group % 2
    folds = Folds.of(labels, group.astype(str), folds=3)
    with pytest.warns(RuntimeWarning, match="in about 8 ways only"):
        shuffles(labels, group, folds, 5, seed=0)


def test_rows_that_cannot_move_are_said():
    """Folds that hold one class each: no shuffle within them moves anything."""
    labels = np.repeat([0, 1], 30)
    fold = np.repeat([0, 1], 30)
    folds = Folds(fold, np.zeros((3, 60), dtype=np.int64))
    with (
        pytest.warns(RuntimeWarning, match="1 ways only|60 of 60 rows keep their label"),
        pytest.raises(InputError, match="one class"),
    ):
        shuffles(labels, np.arange(60), folds, 2, seed=0)


def test_a_group_across_folds_is_refused():
    folds = Folds(np.array([0, 1, 0, 1]), np.zeros((3, 4), dtype=np.int64))
    with pytest.raises(InputError, match="several folds"):
        shuffles(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), folds, 2, seed=0)
