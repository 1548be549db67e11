"""What is said beside AUROC: margins, operating points, calibration; and what is fitted on what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy import ndarray
from scipy.special import expit

from probes import evidence, metrics, tasks
from probes.features import Stacked
from probes.folds import Folds
from probes.joined import Joined
from probes.probe import LinearReadout, cross_validate
from probes.prompts import Prompt, PromptSet
from probes.scoring import Fitted, Judged, Where

WHERE = Where("m", "resid_post", "last-input-token", 0)


def prompt_set(labels: ndarray, name: str, start: int = 0) -> PromptSet:
    rng = np.random.default_rng(start)
    return PromptSet(
        name,
        tuple(
            Prompt.of(" ".join(map(str, rng.integers(0, 10**9, 6))), label=int(label), source=name)
            for label in labels
        ),
    )


def judged(readout: str, *logits: ndarray) -> Judged:
    return Judged(readout, 3, logits[0], list(logits[1:]), [metrics.UNDEFINED] * len(logits))


def with_aurocs(one: Judged, sets: evidence.Sets) -> Judged:
    found = [
        metrics.Interval(metrics.auroc(p.labels, s), 0, 1)
        for p, s in zip(sets.every, one.every, strict=True)
    ]
    return one._replace(aurocs=found)


@pytest.fixture
def sets() -> evidence.Sets:
    labels = np.arange(400) % 2
    train = prompt_set(labels, "train")
    fold = Folds.of(labels, train.groups).fold
    return evidence.Sets(train, fold, [prompt_set(np.arange(200) % 2, "other", 1)])


def scored(sets: evidence.Sets, shift: float, seed: int) -> list[ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=len(one)) + shift * one.labels for one in sets.every]


# The margin over the words


def test_margins_are_over_the_floor_that_is_best_on_that_very_set(sets: evidence.Sets) -> None:
    probe = with_aurocs(judged("layer", *scored(sets, 3, 0)), sets)
    word, char = scored(sets, 1, 1), scored(sets, 1, 2)
    word[0], char[1] = sets.train.labels * 1.0, sets.held_out[0].labels * 1.0
    words = [with_aurocs(judged(n, *s), sets) for n, s in (("tfidf-word", word), ("length", char))]
    rows = list(evidence.margins(WHERE, sets, [probe], words))
    assert [(row.eval_set, row.floor, row.held_out) for row in rows] == [
        ("train", "tfidf-word", False),
        ("other", "length", True),
    ]
    for i, row in enumerate(rows):
        floor = words[i].aurocs[i].estimate
        if row.held_out:  # in-distribution it is a mean over folds
            assert row.margin == pytest.approx(probe.aurocs[i].estimate - floor)
        assert row.margin_lo < row.margin < row.margin_hi and row.margin < 0


# The threshold that is frozen


def test_the_threshold_is_the_train_sets_and_the_rate_is_realised(sets: evidence.Sets) -> None:
    inside, outside = scored(sets, 3, 0)
    outside = outside + 2  # another set, whose harmless prompts look more harmful
    rows = {
        (row.fpr, row.eval_set): row
        for row in evidence.operating(WHERE, sets, [judged("layer", inside, outside)], [0.05, 1e-3])
    }
    own, other = rows[0.05, "train"], rows[0.05, "other"]
    assert own.threshold == other.threshold and own.n_calibration == 200
    assert own.realised_fpr <= 0.05 < 0.3 < other.realised_fpr
    labels = sets.held_out[0].labels
    assert other.tpr == (outside[labels == 1] > other.threshold).mean()
    assert other.realised_fpr_lo < other.realised_fpr < other.realised_fpr_hi
    assert (other.n_pos, other.n_neg) == (100, 100)
    few = rows[1e-3, "other"]  # 200 harmless prompts say nothing of one in a thousand
    assert np.isnan([few.threshold, few.tpr, few.realised_fpr]).all()


# Calibration


def test_an_overconfident_probe_is_told_and_platts_map_mends_it(sets: evidence.Sets) -> None:
    inside, outside = (5 * (2 * one - 2) for one in scored(sets, 2, 0))
    one = judged("layer", inside, outside)
    found = evidence.calibrated(WHERE, sets, one, frozen="platt")
    ece = {(row.calibration, row.eval_set): row.ece for row in found.scores}
    assert set(ece) == {(k, s) for k in ("none", "platt", "isotonic") for s in ("train", "other")}
    assert {row.calibration for row in found.scores if row.frozen} == {"platt"}
    nats = {(row.calibration, row.eval_set): row.log_loss for row in found.scores}
    for name in ("train", "other"):
        assert nats["platt", name] < nats["none", name]
    bins = [row for row in found.bins if (row.calibration, row.eval_set) == ("none", "other")]
    assert sum(row.n for row in bins) == 200 and [row.bin for row in bins] == list(range(10))


def test_platts_map_is_folded_into_the_probe() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 2
    acts = Stacked(torch.from_numpy(rng.normal(size=(300, 2, 5)) + 2 * labels[:, None, None]))
    folds = Folds.of(labels, np.arange(300))
    readout = LinearReadout("layer", (1,), torch.randn(1, 5), 0.7, 1.0)
    out_of_fold = cross_validate(acts, labels, folds, readout="layer", layers=[1])
    logits = readout.logits(acts)
    fitted = Fitted(readout, out_of_fold, judged("layer", out_of_fold.logits, logits))
    mapped = evidence.platt(fitted, labels)
    slope, intercept = np.polyfit(out_of_fold.logits, mapped.out_of_fold.logits, 1)
    np.testing.assert_allclose(mapped.probe.logits(acts), slope * logits + intercept, atol=1e-5)
    np.testing.assert_allclose(mapped.judged.outside[0], slope * logits + intercept, atol=1e-9)
    assert (
        metrics.brier(labels, expit(mapped.judged.inside))
        < metrics.brier(labels, expit(out_of_fold.logits)) + 1e-3
    )


# What is fitted on and what is scored


def test_every_train_set_is_scored_on_all_other_sets_and_what_it_holds_is_left_out() -> None:
    labels = np.arange(20) % 2
    a, b, c = (prompt_set(labels, name, i) for i, name in enumerate("abc"))
    c = replace(c, prompts=(*c.prompts, a.prompts[0]))
    found = list(tasks.tasks([a, b], [c, a]))
    assert [(one.train.name, [other.name for other in one.held_out]) for one in found] == [
        ("a", ["b", "c"]),
        ("b", ["a", "c"]),
    ]
    assert [len(one.unseen[1]) for one in found] == [20, 21]
    assert [(row.train_set, row.eval_set, row.kind) for row in found[0].leaks] == [
        ("a", "c", "exact")
    ]
    kept = next(iter(tasks.tasks([a, b], [c], keep_leaks=True)))
    assert len(kept.unseen[1]) == 21 and [row.dropped for row in kept.leaks] == [False]


def test_leaving_one_out_joins_the_others_and_their_activations() -> None:
    labels = np.arange(12) % 2
    a, b, c = (prompt_set(labels, name, i) for i, name in enumerate("abc"))
    b = replace(b, prompts=(*b.prompts, a.prompts[3]))
    found = list(tasks.tasks([a, b, c], [], leave_one_out=True))[3:]
    assert [(one.train.name, [other.name for other in one.held_out]) for one in found] == [
        ("all-but-a", ["a"]),
        ("all-but-b", ["b"]),
        ("all-but-c", ["c"]),
    ]
    last = found[-1]
    assert len(last.train) == 24  # what stands in both counts once
    sets = {one.name: one for one in (a, b, c)}
    values = {
        name: torch.arange(len(one)).float()[:, None, None].expand(-1, 2, 3) + 100 * i
        for i, (name, one) in enumerate(sets.items())
    }
    acts = Joined(
        tuple(Stacked(values[one.name]) for one in last.parts),  # type: ignore[arg-type]
        tuple(tasks.first_of_their_ids(last.parts)),
    )
    assert (acts.n_prompts, acts.n_layers, acts.d_model) == (24, 2, 3)
    rows, blocks = zip(*acts.blocks([1]), strict=True)
    read = torch.cat(blocks)[:, 0, 0]
    where = {p.id: values[n][i, 0, 0] for n in "ba" for i, p in enumerate(sets[n].prompts)}
    assert read.tolist() == [where[prompt.id] for prompt in last.train.prompts]
    assert [part.start for part in rows] == [0, 12]
