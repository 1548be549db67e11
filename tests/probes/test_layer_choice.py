"""The choice of a layer: what it is worth on rows that had no say, and how sure it is."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from analysis.results import ScoreRow
from analysis.tables import best_layer
from probes import metrics
from probes.errors import InputError
from probes.layer_choice import layer_choice
from probes.metrics import auroc
from probes.probe import CrossValidated, cross_validate
from probes.prompts import Prompt, PromptSet
from probes.scoring import Captured, Where
from tests.analysis.synthetic import frame
from tests.probes.separable import planted

WHERE = Where("m", "resid_post", "last-input-token", 0)


def captured(data) -> Captured:
    rows = zip(data.labels, data.groups, strict=True)
    prompts = tuple(
        Prompt.of(f"prompt {i}", label=int(y), source="s", group=str(g))
        for i, (y, g) in enumerate(rows)
    )
    return Captured(PromptSet("planted", prompts), data.acts)


def swept(data, Cs=(1e-3, 0.1)) -> list[CrossValidated]:
    return [
        cross_validate(data.acts, data.labels, data.folds, readout="layer", layers=[i], Cs=Cs)
        for i in range(data.acts.n_layers)
    ]


def test_inner_aurocs_are_those_of_fits_without_the_rows():
    """By hand: one inner fold held out at a time, at the C that was chosen."""
    data = planted(120, gap=1.0)
    found = swept(data)[1]
    split = 3
    rows = data.folds.inner[split] >= 0
    x, y, inner = (
        data.acts.layer(1)[rows].double().numpy(),
        data.labels[rows],
        data.folds.inner[split, rows],
    )
    z = (x - x.mean(0)) / x.std(0)
    aurocs = []
    for i in range(5):
        model = LogisticRegression(C=found.C[split], tol=1e-10, max_iter=10_000)
        model.fit(z[inner != i], y[inner != i])
        aurocs.append(auroc(y[inner == i], model.decision_function(z[inner == i])))
    assert found.inner[split] == pytest.approx(np.mean(aurocs), abs=1e-12)


def test_a_layer_chosen_on_noise_is_flattered_and_nested_it_is_not(monkeypatch):
    """Of many layers of noise one looks good; scored on rows that had no say, it is chance."""
    monkeypatch.setattr(metrics, "DRAWS", 20)
    selected, nested = [], []
    for seed in range(8):
        data = planted(60, layers=10, d_model=3, gap=0.0, seed=seed)
        _, (row,) = layer_choice(WHERE, captured(data), swept(data, Cs=(1e-3,)))
        assert row.optimism == row.selected - row.nested
        selected.append(row.selected)
        nested.append(row.nested)
    assert np.mean(selected) > 0.6
    assert np.mean(nested) == pytest.approx(0.5, abs=0.08)


def test_a_clear_layer_is_chosen_by_all_and_costs_nothing():
    data = planted(gap=2.5, at=1)
    layers, (row,) = layer_choice(WHERE, captured(data), swept(data))
    assert row.layers == "1 1 1 1 1"
    assert row.optimism == 0
    assert row.nested_lo < row.nested < row.nested_hi
    assert [one.best for one in layers] == [False, True, False]
    assert [one.within_one_error for one in layers] == [False, True, False]
    assert [one.chosen for one in layers] == [0, 1, 0]
    assert layers[1].error == 0


def made(logits, n: int = 400, folds: int = 2, inner=None) -> list[CrossValidated]:
    fold = np.arange(n) // 2 % folds
    inner = np.zeros((len(logits), folds)) if inner is None else inner
    return [
        CrossValidated(one, fold, np.ones(folds), part)
        for one, part in zip(logits, inner, strict=True)
    ]


def test_equal_layers_share_the_draws_and_the_earlier_is_best():
    data = planted(400)
    rng = np.random.default_rng(0)
    logits = data.labels + rng.normal(size=400)
    near = logits - 0.05 * data.labels + 0.01 * rng.normal(size=400)
    worse = data.labels + 3 * rng.normal(size=400)
    found = made([worse, logits, logits.copy(), near])
    layers, (row,) = layer_choice(WHERE, captured(data), found)
    assert [one.best for one in layers] == [False, True, False, False]
    assert [one.within_one_error for one in layers][:3] == [False, True, True]
    assert sum(one.chosen for one in layers) == pytest.approx(1)
    assert layers[2].chosen == 0, "the earlier of equals is chosen"
    # Paired: the error of a difference of like layers is far below that of either.
    (alone,) = metrics.auroc_intervals(data.labels, [logits], data.groups, fold=found[0].fold)
    assert layers[3].error < 0.1 * (alone.hi - alone.lo) / 4
    assert row.layers == "0 0", "equal on the inner folds"


def test_the_rule_is_the_sweeps():
    data = planted(400)
    rng = np.random.default_rng(4)
    found = made([data.labels * gap + rng.normal(size=400) for gap in (0.5, 0.9, 0.9, 0.2)])
    layers, _ = layer_choice(WHERE, captured(data), found)
    rows = [
        ScoreRow(
            "m", "h", "p", one.layer, "layer", "t", "t", False, 1, 1, one.auroc, 0.0, 1.0, 0, 1.0
        )
        for one in layers
    ]
    assert best_layer(frame(rows)) == next(one.layer for one in layers if one.best)


def test_the_error_is_that_of_repeated_samples(monkeypatch):
    """The bootstrap's error of a difference, against its spread over fresh samples."""
    monkeypatch.setattr(metrics, "DRAWS", 100)
    rng, gaps, errors = np.random.default_rng(1), [], []
    data = planted(400)
    train = captured(data)
    for _ in range(60):
        common = rng.normal(size=400)
        good, poor = (data.labels * g + common + 0.5 * rng.normal(size=400) for g in (1.5, 1.0))
        layers, _ = layer_choice(WHERE, train, made([good, poor]))
        gaps.append(layers[0].auroc - layers[1].auroc)
        errors.append(layers[1].error)
    assert np.mean(errors) == pytest.approx(np.std(gaps), rel=0.25)


def test_what_is_no_layer_is_refused_and_nothing_to_choose_by_is_nan():
    data = planted(400)
    train, logits = captured(data), data.labels + np.zeros(400)
    with pytest.raises(InputError, match="on the same folds"):
        layer_choice(WHERE, train, [made([logits])[0]._replace(inner=None)])
    with pytest.raises(InputError, match="the same folds"):
        layer_choice(WHERE, train, [*made([logits]), *made([logits], folds=3)])
    with pytest.raises(InputError, match="200 prompts, but the set has 400"):
        layer_choice(WHERE, train, made([logits[:200]], n=200))
    with pytest.warns(RuntimeWarning, match="1 of 2 training parts"):
        _, (row,) = layer_choice(WHERE, train, made([logits], inner=np.array([[np.nan, 0.5]])))
    assert np.isnan([row.nested, row.optimism]).all()
    assert row.selected == 1
