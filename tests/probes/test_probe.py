"""Probes: right weights, honest folds, and nothing found where there is nothing."""

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes import features
from probes import probe as probe_module
from probes.errors import InputError
from probes.features import Features
from probes.metrics import auroc, auroc_interval
from probes.probe import Folds, Stacked, cross_validate, fit
from tests.probes.separable import Sharded, WithEmbedding, planted


def sklearn_on(x: torch.Tensor, y: np.ndarray, C: float):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=C, tol=1e-10, max_iter=100_000))
    return model.fit(x.double().numpy(), y)


def mean_auroc(data, found) -> float:
    return auroc_interval(data.labels, found.logits, data.groups, fold=found.fold).estimate


@pytest.mark.parametrize(("n", "d_model"), [(200, 12), (60, 100)], ids=["tall", "wide"])
@pytest.mark.parametrize("C", [1e-3, 1.0])
def test_a_layer_is_sklearns_pipeline(n, d_model, C):
    data = planted(n, d_model=d_model)
    found = fit(data.acts, data.labels, data.folds, readout="layer", layers=[1], Cs=[C])
    x = data.acts.layer(1)
    theirs = sklearn_on(x, data.labels, C)
    logits = found.logits(data.acts)
    np.testing.assert_allclose(logits, theirs.decision_function(x.double().numpy()), atol=1e-5)
    assert np.ptp(logits) > 0.1


def test_pooled_is_sklearn_on_pooled_features():
    data = planted()
    scaled = np.stack(
        [StandardScaler().fit_transform(data.acts.layer(i).double().numpy()) for i in range(3)], 1
    )
    for readout, x in (
        ("pooled-mean", scaled.mean(1)),
        ("pooled-concat", scaled.reshape(len(scaled), -1) / 3**0.5),
    ):
        theirs = LogisticRegression(C=0.1, tol=1e-10, max_iter=10_000).fit(x, data.labels)
        found = fit(data.acts, data.labels, data.folds, readout=readout, layers=[0, 1, 2], Cs=[0.1])
        np.testing.assert_allclose(
            found.logits(data.acts), theirs.decision_function(x), atol=1e-5, err_msg=readout
        )


def test_class_mean_is_the_difference_of_means():
    data = planted()
    found = fit(data.acts, data.labels, data.folds, readout="class-mean", layers=[1])
    x = StandardScaler().fit_transform(data.acts.layer(1).double().numpy())
    means = [x[data.labels == label].mean(0) for label in (0, 1)]
    wanted = (x - (means[0] + means[1]) / 2) @ (means[1] - means[0])
    np.testing.assert_allclose(found.logits(data.acts), wanted, atol=1e-5)
    assert found.C is None


@pytest.mark.parametrize("numbers", [2**20, 400], ids=["blocks", "pieces"])
def test_streaming_gives_the_same(numbers, monkeypatch):
    monkeypatch.setattr(features, "NUMBERS", numbers)
    data = planted()
    sharded = Sharded(data.acts.activations)
    for readout, layers in (
        ("layer", [1]),
        ("pooled-mean", [0, 1, 2]),
        ("pooled-concat", [0, 1, 2]),
        ("class-mean", [1]),
    ):
        held = cross_validate(data.acts, data.labels, data.folds, readout=readout, layers=layers)
        streamed = cross_validate(
            sharded, data.labels, data.folds, readout=readout, layers=layers, memory=0
        )
        np.testing.assert_allclose(streamed.logits, held.logits, atol=1e-4, err_msg=readout)


def test_a_fit_holds_no_more_of_many_prompts(monkeypatch):
    """What is standardised at a time does not grow with the number of prompts."""
    largest = []
    original = Features.blocks

    def spy(self):
        for rows, x in original(self):
            largest.append(len(x))
            yield rows, x

    monkeypatch.setattr(Features, "blocks", spy)
    data = planted(400)
    sharded = Sharded(data.acts.activations)
    fit(sharded, data.labels, data.folds, readout="layer", layers=[1], memory=0)
    assert max(largest) == Sharded.size
    largest.clear()
    fit(sharded, data.labels, data.folds, readout="layer", layers=[1])
    assert max(largest) == 400, "the control: with memory to spare, all rows are held"


def test_the_planted_layer_wins():
    data = planted(gap=2.0, at=1)
    scores = [
        mean_auroc(
            data, cross_validate(data.acts, data.labels, data.folds, readout="layer", layers=[i])
        )
        for i in range(3)
    ]
    assert np.argmax(scores) == 1
    assert scores[1] > 0.85
    assert max(scores[0], scores[2]) < 0.65


@pytest.mark.parametrize("readout", ["layer", "pooled-mean", "pooled-concat", "class-mean"])
def test_separable_is_one_and_shuffled_is_half(readout):
    data = planted(gap=12.0)
    layers = [1] if readout in ("layer", "class-mean") else [0, 1, 2]
    found = cross_validate(data.acts, data.labels, data.folds, readout=readout, layers=layers)
    assert mean_auroc(data, found) == 1.0
    null = []
    for seed in range(8):  # one shuffle spreads by .05 to .07, more than its rows alone would
        labels = np.random.default_rng(seed).permutation(data.labels)
        folds = Folds.of(labels, data.groups, seed=seed)
        found = cross_validate(data.acts, labels, folds, readout=readout, layers=layers)
        null.append(mean_auroc(data._replace(labels=labels), found))
    assert abs(np.mean(null) - 0.5) < 0.07


def test_a_probe_of_shuffled_labels_is_chance_elsewhere():
    data = planted(400, gap=12.0)
    train, rest = slice(0, 200), slice(200, 400)
    seen, unseen = (Stacked(data.acts.activations[rows]) for rows in (train, rest))
    shuffled = np.random.default_rng(0).permutation(data.labels)
    for labels, chance in ((shuffled, True), (data.labels, False)):
        folds = Folds.of(labels[train], data.groups[train])
        probe = fit(seen, labels[train], folds, readout="layer", layers=[1])
        interval = auroc_interval(labels[rest], probe.logits(unseen), data.groups[rest])
        assert (interval.lo < 0.5 < interval.hi) is chance


def test_a_constant_embedding_reads_exactly_half():
    data = planted()
    acts = WithEmbedding(data.acts.activations)
    found = cross_validate(acts, data.labels, data.folds, readout="embedding", layers=())
    assert mean_auroc(data, found) == 0.5
    # Pooled over folds, it would not: what the folds' AUROCs are averaged for.
    uneven = np.arange(200) % 3 == 0
    labels = uneven.astype(np.int64)
    folds = Folds.of(labels, data.groups)
    found = cross_validate(acts, labels, folds, readout="embedding", layers=())
    assert auroc(labels, found.logits) < 0.5
    assert auroc_interval(labels, found.logits, data.groups, fold=found.fold).estimate == 0.5


def test_a_feature_constant_in_training_weighs_nothing():
    data = planted()
    data.acts.activations[:, 1, 3] = 0.1
    found = fit(data.acts, data.labels, data.folds, readout="layer", layers=[1])
    assert found.weight[0, 3] == 0
    assert (found.weight[0, :3] != 0).all()


def test_C_is_chosen_without_the_scored_rows():
    """Whatever the labels and activations of a fold's rows, its own probe stays the same."""
    data = planted(gap=1.0)
    kwargs = {"readout": "layer", "layers": [1], "Cs": [1e-4, 1e-2, 1.0]}
    split = 0
    test = data.folds.fold == split
    rows = probe_module._rows(data.acts, data.labels, data.folds, "layer", [1], 2**28)
    before = probe_module._fit(rows, split, kwargs["Cs"])[0]
    labels, x = data.labels.copy(), data.acts.activations.clone()
    labels[test] = 1 - labels[test]
    x[torch.from_numpy(test)] *= 100
    changed = probe_module._rows(Stacked(x), labels, data.folds, "layer", [1], 2**28)
    after = probe_module._fit(changed, split, kwargs["Cs"])[0]
    torch.testing.assert_close(before.weight, after.weight, atol=0, rtol=0)
    assert (before.bias, before.C) == (after.bias, after.C)
    # The control: a fold that does train on those rows is another probe now.
    other = probe_module._fit(changed, 1, kwargs["Cs"])[0]
    assert not torch.equal(other.weight, probe_module._fit(rows, 1, kwargs["Cs"])[0].weight)


def test_choosing_on_the_scored_rows_would_flatter():
    """Of many equally empty choices the best on a fold is well above chance on that fold."""
    data = planted(100, layers=40, d_model=20, gap=0.0)
    logits = np.stack(
        [
            cross_validate(
                data.acts, data.labels, data.folds, readout="layer", layers=[i], Cs=[1.0]
            ).logits
            for i in range(40)
        ]
    )
    leaked = [
        max(auroc(data.labels[rows], row[rows]) for row in logits)
        for rows in (data.folds.fold == f for f in range(5))
    ]
    honest = cross_validate(
        data.acts, data.labels, data.folds, readout="pooled-concat", layers=range(40)
    )
    interval = auroc_interval(data.labels, honest.logits, data.groups, fold=honest.fold)
    assert np.mean(leaked) > 0.7
    assert interval.lo < 0.5 < interval.hi


def test_C_is_the_one_of_least_log_loss_on_the_inner_folds():
    data = planted(120, d_model=30, gap=1.0)
    Cs = [1e-3, 1e-2, 1e-1, 1.0]
    found = fit(data.acts, data.labels, data.folds, readout="layer", layers=[1], Cs=Cs)
    x = StandardScaler().fit_transform(data.acts.layer(1).double().numpy())
    inner, losses = data.folds.inner[-1], []
    for C in Cs:
        loss = 0.0
        for i in range(5):
            model = LogisticRegression(C=C, tol=1e-10, max_iter=10_000)
            model.fit(x[inner != i], data.labels[inner != i])
            z = model.decision_function(x[inner == i])
            loss += float(np.sum(np.logaddexp(0, z) - data.labels[inner == i] * z))
        losses.append(loss)
    assert Cs[int(np.argmin(losses))] == found.C
    assert found.C not in (Cs[0], Cs[-1]), "an end of the grid would be no test"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_never_straddle(size):
    labels = (np.arange(180) // 3) % 2
    groups = (np.arange(180) // size).astype(str)
    folds = Folds.of(labels, groups)
    for group in np.unique(groups):
        rows = groups == group
        assert len(np.unique(folds.fold[rows])) == 1
        for inner in folds.inner:
            assert len(np.unique(inner[rows])) == 1
    for split in range(5):
        np.testing.assert_array_equal(folds.train(split), folds.fold != split)
    assert folds.train(5).all()


def test_straddling_groups_would_be_seen():
    """A label that is only known through its group is chance when groups are kept together."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 5)
    labels = rng.permutation(np.arange(40) % 2)[groups]
    x = torch.from_numpy(rng.normal(size=(40, 60))[groups] + 0.1 * rng.normal(size=(200, 60)))
    scores = []
    for kept in (groups.astype(str), np.arange(200).astype(str)):
        folds = Folds.of(labels, kept)
        found = cross_validate(
            Stacked(x[:, None].float()), labels, folds, readout="layer", layers=[0]
        )
        scores.append(
            auroc_interval(labels, found.logits, groups.astype(str), fold=folds.fold).estimate
        )
    assert scores[0] < 0.75
    assert scores[1] > 0.99


@pytest.mark.parametrize(
    ("labels", "groups", "folds", "message"),
    [
        ([1] * 20, range(20), 5, "there are 20 and 0"),
        ([0, 1] * 3, range(6), 5, "5 folds need 5 groups .* there are 3 and 3 among 6 rows"),
        ([0, 1] * 20, [0] * 40, 5, r"there are 1 and 1 among 40 rows \(1 groups\)"),
        ([0, 1, 2] * 20, range(60), 5, "labels must be 0 or 1, but there is also 2"),
        ([0, 1] * 20, range(40), 1, "1 folds: cross-validation needs at least 2"),
    ],
)
def test_impossible_folds_are_refused(labels, groups, folds, message):
    with pytest.raises(InputError, match=message):
        Folds.of(np.array(labels), np.array(list(groups)).astype(str), folds=folds)


def test_what_does_not_fit_together_is_refused():
    data = planted()
    call = {"labels": data.labels, "folds": data.folds}
    with pytest.raises(InputError, match=r"0\.\.2"):
        fit(data.acts, **call, readout="layer", layers=[3])
    with pytest.raises(InputError, match="reads one layer, but 2"):
        fit(data.acts, **call, readout="layer", layers=[0, 1])
    with pytest.raises(InputError, match="without the embedding"):
        fit(data.acts, **call, readout="embedding", layers=())
    with pytest.raises(InputError, match="do not belong together"):
        fit(data.acts, data.labels[1:], data.folds, readout="layer", layers=[0])
    with pytest.raises(InputError, match="width 12, not 7"):
        fit(data.acts, **call, readout="layer", layers=[0]).logits(Stacked(torch.zeros(2, 3, 7)))


def test_bfloat16_activations_are_read():
    data = planted(gap=6.0)
    acts = Stacked(data.acts.activations.bfloat16())
    found = cross_validate(acts, data.labels, data.folds, readout="layer", layers=[1])
    assert mean_auroc(data, found) > 0.99
    assert ((expit(found.logits) >= 0) & (expit(found.logits) <= 1)).all()
