"""Metrics: exact on ties, undefined where undefined, and intervals that cover."""

import tracemalloc
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from probes import metrics
from probes.metrics import (
    auroc,
    auroc_interval,
    brier,
    ece,
    operating_point,
    threshold_at_fpr,
    threshold_in_gap,
    tpr_at_fpr,
    weighted_auroc,
)

labels_and_scores = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        arrays.arrays(np.int64, n, elements=st.integers(0, 1)).filter(lambda y: 0 < y.sum() < n),
        # Few values, so that ties are common.
        arrays.arrays(np.float64, n, elements=st.integers(-4, 4).map(float)),
    )
)


def by_pairs(labels: np.ndarray, scores: np.ndarray) -> float:
    """The definition, pair by pair."""
    gaps = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    return float(np.mean((gaps > 0) + 0.5 * (gaps == 0)))


@given(labels_and_scores)
def test_auroc_is_its_definition(case):
    labels, scores = case
    assert auroc(labels, scores) == pytest.approx(by_pairs(labels, scores), abs=1e-12)


@given(labels_and_scores)
def test_auroc_sees_the_order_only(case):
    labels, scores = case
    value = auroc(labels, scores)
    assert auroc(labels, np.exp(scores)) == value
    assert auroc(labels, scores * 1e-30) == value
    assert auroc(labels, -scores) == pytest.approx(1 - value)
    assert auroc(1 - labels, scores) == pytest.approx(1 - value)


def test_all_equal_is_half():
    assert auroc(np.array([0, 1, 1]), np.zeros(3)) == 0.5


@settings(max_examples=50)
@given(labels_and_scores, st.integers(0, 1000))
def test_weighted_auroc_is_sklearns(case, seed):
    labels, scores = case
    weights = np.random.default_rng(seed).integers(1, 4, (3, len(labels))).astype(float)
    wanted = [roc_auc_score(labels, scores, sample_weight=w) for w in weights]
    np.testing.assert_allclose(weighted_auroc(labels, scores, weights), wanted, atol=1e-12)


@pytest.mark.parametrize(
    ("labels", "scores", "why"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "3 rows of 1 class"),
        ([], [], "0 rows of 0 classes"),
        ([0, 1, 1], [0.1, np.nan, 0.3], "1 NaN among the scores"),
    ],
)
def test_undefined_is_nan_with_a_warning(labels, scores, why):
    y, s = np.array(labels, dtype=np.int64), np.array(scores, dtype=np.float64)
    with pytest.warns(RuntimeWarning, match=f"AUROC is undefined: {why}"):
        assert np.isnan(auroc(y, s))
    with pytest.warns(RuntimeWarning, match=why):
        assert np.isnan(auroc_interval(y, s, np.arange(len(y)))).all()
    with pytest.warns(RuntimeWarning, match=why):
        assert np.isnan(tpr_at_fpr(y, s, 0.5).tpr).all()


def test_a_fold_of_one_class_is_undefined():
    with pytest.warns(RuntimeWarning, match="AUROC of fold 1 is undefined"):
        interval = auroc_interval(
            np.array([0, 1, 1, 1]), np.arange(4.0), np.arange(4), fold=np.array([0, 0, 1, 1])
        )
    assert np.isnan(interval).all()


def test_folds_are_scored_apart():
    """Each fold in order within itself, but shifted: pooled, the shift would count as an error."""
    labels, fold = np.tile([0, 1], 20), np.repeat([0, 1], 20)
    scores = labels + 10.0 * fold * np.where(fold, -1, 1)
    assert auroc_interval(labels, scores, np.arange(40), fold=fold).estimate == 1.0
    assert auroc(labels, scores) < 0.8


def test_perfect_is_not_certain():
    """At 1 the interval is that of k pairs all in order: the rule of three, two-sided."""
    labels = np.repeat([0, 1], 30)
    interval = auroc_interval(labels, labels.astype(float), np.arange(60))
    assert interval.estimate == interval.hi == 1
    assert interval.lo == pytest.approx(0.025 ** (1 / 30))
    # Fewer groups, less room for certainty; and never more certain when less perfect.
    assert auroc_interval(labels, labels.astype(float), np.arange(60) // 3).lo < interval.lo
    worse = labels.astype(float)
    worse[0] = 2
    assert auroc_interval(labels, worse, np.arange(60)).lo <= interval.lo


def simulated(rng: np.random.Generator, groups: int, size: int, shared: float, shift: float):
    """Binormal scores whose rows share a part within their group."""
    labels = np.repeat(np.arange(groups) % 2, size)
    common = np.repeat(rng.normal(size=groups), size)
    own = rng.normal(size=groups * size)
    scores = shift * labels + shared**0.5 * common + (1 - shared) ** 0.5 * own
    return labels, scores, np.repeat(np.arange(groups), size)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.5])
def test_intervals_cover(shift):
    rng, truth = np.random.default_rng(0), norm.cdf(shift / 2**0.5)
    hits = {"rows": 0, "groups": 0, "groups as rows": 0}
    for _ in range(200):
        y, s, g = simulated(rng, 60, 1, 0.0, shift)
        hits["rows"] += _covers(y, s, g, truth)
        y, s, g = simulated(rng, 40, 4, 0.8, shift)
        hits["groups"] += _covers(y, s, g, truth)
        hits["groups as rows"] += _covers(y, s, np.arange(len(y)), truth)
    assert hits["rows"] >= 180
    assert hits["groups"] >= 180
    assert hits["groups as rows"] < 170, "the control: without groups, too narrow"


def _covers(y, s, g, truth) -> bool:
    interval = auroc_interval(y, s, g)
    return interval.lo <= truth <= interval.hi


def test_intervals_are_not_wider_than_need_be():
    rng = np.random.default_rng(1)
    y, s, g = simulated(rng, 400, 1, 0.0, 1.0)
    interval = auroc_interval(y, s, g)
    area = interval.estimate
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    hanley = np.sqrt(
        (area * (1 - area) + 199 * (q1 - area**2) + 199 * (q2 - area**2)) / (200 * 200)
    )
    assert interval.hi - interval.lo == pytest.approx(2 * 1.96 * hanley, rel=0.2)


@given(
    arrays.arrays(np.float64, st.integers(1, 60), elements=st.integers(0, 9).map(float)),
    st.floats(0.01, 0.5),
)
def test_the_threshold_keeps_its_rate_and_is_the_lowest(negatives, fpr):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        threshold = threshold_at_fpr(negatives, fpr)
    if np.isnan(threshold):
        assert len(negatives) * fpr < 1
        return
    assert np.mean(negatives > threshold) <= fpr + 1e-9
    lower = negatives[negatives < threshold]
    if len(lower):
        assert np.mean(negatives > lower.max()) > fpr


def test_too_few_negatives_are_said():
    labels, scores = np.array([0] * 99 + [1] * 50), np.arange(149.0)
    with pytest.warns(RuntimeWarning, match="from 99 harmless scores: it takes 100"):
        point = tpr_at_fpr(labels, scores, 0.01)
    assert np.isnan(point.threshold)
    assert np.isnan(point.tpr.estimate)
    assert tpr_at_fpr(np.append(labels, 0), np.append(scores, -1.0), 0.01).tpr.estimate == 1.0


@given(
    arrays.arrays(np.float64, st.integers(1, 60), elements=st.integers(0, 9).map(float)),
    st.floats(0.01, 0.5),
    st.integers(0, 3),
)
def test_the_raised_threshold_keeps_both_rates(negatives, fpr, seed):
    positives = np.random.default_rng(seed).normal(seed - 1.0, 3.0, 40)
    labels = np.repeat([0, 1], [len(negatives), len(positives)])
    both = np.concatenate([negatives, positives])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lowest = threshold_at_fpr(negatives, fpr)
        raised = threshold_in_gap(labels, both, fpr)
    if np.isnan(lowest):
        assert np.isnan(raised)
        return
    assert raised >= lowest
    assert np.mean(negatives > raised) <= np.mean(negatives > lowest) <= fpr + 1e-9
    assert np.mean(positives > raised) == np.mean(positives > lowest)


def test_where_the_classes_lie_apart_the_threshold_lies_between():
    labels = np.repeat([0, 1], 200)
    scores = np.concatenate([np.linspace(-9, -3, 200), np.linspace(1, 7, 200)])
    assert threshold_at_fpr(scores[labels == 0], 0.01) < -3  # the control: in the harmless bulk
    assert threshold_in_gap(labels, scores, 0.01) == pytest.approx(-1)


def test_rates_at_a_threshold():
    labels, scores = np.array([0] * 10 + [1] * 10), np.r_[np.arange(10), np.arange(5, 15)] * 1.0
    point = operating_point(labels, scores, 8.0)
    assert point.fpr.estimate == 0.1
    assert point.tpr.estimate == 0.6
    # Clopper-Pearson, 1 of 10 (Clopper & Pearson 1934).
    assert point.fpr.lo == pytest.approx(0.002529, abs=1e-5)
    assert point.fpr.hi == pytest.approx(0.445016, abs=1e-5)


def test_calibration():
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    labels = (rng.uniform(size=len(p)) < p).astype(np.int64)
    assert ece(labels, p) < 0.02
    assert ece(labels, p / 2) == pytest.approx(0.25, abs=0.02)
    assert brier(labels, p) == pytest.approx(1 / 6, abs=0.01)
    assert brier(np.array([1, 1]), np.array([0.5, 1.0])) == 0.125


def in_one_table(labels, group, rng):
    """All draws at once, as drawn kind after kind."""
    kind = [set(labels[group == g]) for g in range(group.max() + 1)]
    times = np.empty((metrics.DRAWS, len(kind)))
    for wanted in ({1}, {0}, {0, 1}):
        of_kind = [g for g, found in enumerate(kind) if found == wanted]
        if of_kind:
            m = len(of_kind)
            size = max(m - 1, 1)
            picks = rng.multinomial(size, np.full(m, 1 / m), metrics.DRAWS)
            times[:, of_kind] = picks * (m / size)
    return times


def test_draws_do_not_depend_on_how_many_are_held(monkeypatch):
    rng = np.random.default_rng(2)
    labels, group = np.arange(90) % 2, np.sort(np.arange(90) % 41)  # of all three kinds
    wanted_rng, wanted = np.random.default_rng(5), []
    for _ in range(2):  # the second fold goes on where the first one ends
        wanted.append(in_one_table(labels, group, wanted_rng))
    for table in (1, 7 * 90, 10**9):
        monkeypatch.setattr(metrics, "TABLE", table)
        rng = np.random.default_rng(5)
        for one in wanted:
            blocks = list(metrics._resampled(labels, group, rng))
            assert len(blocks) == -(-metrics.DRAWS // min(max(table // 90, 1), metrics.DRAWS))
            np.testing.assert_array_equal(np.concatenate([times for _, times in blocks]), one)


def test_intervals_share_their_draws_but_nothing_else():
    rng = np.random.default_rng(3)
    labels, fold = np.arange(60) % 2, np.arange(60) % 5 % 2
    scores = [labels + rng.normal(size=60), rng.normal(size=60), np.full(60, np.nan)]
    with pytest.warns(RuntimeWarning, match="60 NaN"):
        found = metrics.auroc_intervals(labels, scores, np.arange(60), fold=fold)
    alone = [auroc_interval(labels, one, np.arange(60), fold=fold) for one in scores[:2]]
    assert found[:2] == alone
    assert found[0] != found[1]
    assert np.isnan(found[2]).all()


def test_the_bootstrap_holds_no_table_of_all_draws(monkeypatch):
    def peak(n: int) -> int:
        labels = np.arange(n) % 2
        tracemalloc.start()
        auroc_interval(labels, np.sin(np.arange(n)), np.arange(n))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    monkeypatch.setattr(metrics, "DRAWS", 200)
    grown = peak(3000) - peak(500)
    assert grown < 2500 * 400, "bytes: some numbers a prompt, at most 400 bytes"
    monkeypatch.setattr(metrics, "TABLE", 10**9)
    assert peak(3000) - peak(500) > 2500 * 8 * 200, "the control: one table"


def pairs_of_detectors(
    rng: np.random.Generator, n: int, shifts: tuple[float, float], shared: float
):
    """Two binormal detectors of the same rows, whose errors are correlated."""
    labels = np.arange(n) % 2
    common = rng.normal(size=n)
    own = rng.normal(size=(2, n))
    noise = shared**0.5 * common + (1 - shared) ** 0.5 * own
    return labels, [shift * labels + part for shift, part in zip(shifts, noise, strict=True)]


@pytest.mark.parametrize("shifts", [(1.0, 1.0), (2.0, 1.0), (3.5, 2.5)])
def test_intervals_of_differences_cover(shifts, monkeypatch):
    monkeypatch.setattr(metrics, "DRAWS", 200)
    n, rng = 40 if shifts[0] > 3 else 120, np.random.default_rng(0)
    truth = norm.cdf(shifts[0] / 2**0.5) - norm.cdf(shifts[1] / 2**0.5)
    hits, bare, widths = 0, 0, []
    for _ in range(200):
        labels, scores = pairs_of_detectors(rng, n, shifts, 0.7)
        (found,) = metrics.auroc_differences(labels, scores, [(0, 1)], np.arange(n))
        hits += found.lo <= truth <= found.hi
        draws = metrics.auroc_draws(labels, scores, np.arange(n)).draws
        bare += abs(found.estimate - truth) <= 1.96 * (draws[0] - draws[1]).std(ddof=1)
        widths.append((found.hi - found.lo) / (2 * 1.96 * draws.var(1, ddof=1).sum() ** 0.5))
    assert hits >= 182
    if shifts[0] > 3:
        assert bare < 182, "the control: near 1 the draws alone are too sure"
    else:
        assert np.mean(widths) < 0.85, "narrower than of detectors that are scored on other rows"


def test_without_groups_intervals_of_differences_are_too_narrow(monkeypatch):
    monkeypatch.setattr(metrics, "DRAWS", 200)
    rng, hits = np.random.default_rng(1), {"groups": 0, "rows": 0}
    for _ in range(150):
        y, a, g = simulated(rng, 40, 4, 0.8, 1.0)
        _, b, _ = simulated(rng, 40, 4, 0.8, 1.0)
        for name, groups in (("groups", g), ("rows", np.arange(len(y)))):
            (found,) = metrics.auroc_differences(y, [a, b], [(0, 1)], groups)
            hits[name] += found.lo <= 0 <= found.hi
    assert hits["groups"] >= 135
    assert hits["rows"] < 130, "the control: too narrow"


def test_two_perfect_detectors_may_differ_by_what_so_few_pairs_leave_open(monkeypatch):
    """Rare errors of one detector alone: none is seen in the sample, and yet the interval covers.

    k pairs, each put in order by a always and by b with probability 1 - d: 2.5 % of samples show
    none of b's errors where d = 1 - .025^(1/k), which is where the interval ends.
    """
    for n in (10, 60):
        labels = np.arange(2 * n) % 2
        perfect = labels.astype(float)
        (found,) = metrics.auroc_differences(
            labels, [perfect, 2 * perfect], [(0, 1)], np.arange(2 * n)
        )
        assert found.estimate == 0
        assert found.hi == -found.lo == pytest.approx(1 - 0.025 ** (1 / n))
    monkeypatch.setattr(metrics, "DRAWS", 50)
    rng, missed, bare, k = np.random.default_rng(2), 0, 0, 20
    d = 1 - 0.025 ** (1 / k)
    for _ in range(300):
        labels = np.repeat([0, 1], k)
        a, b = labels.astype(float), labels.astype(float)
        b[k:] = np.where(rng.random(k) < d, -1.0, 1.0)  # below all harmless ones
        (found,) = metrics.auroc_differences(labels, [a, b], [(0, 1)], np.arange(2 * k))
        missed += not found.lo <= d <= found.hi
        draws = metrics.auroc_draws(labels, [a, b], np.arange(2 * k)).draws
        bare += abs(found.estimate - d) > 1.96 * (draws[0] - draws[1]).std(ddof=1)
    assert missed <= 0.06 * 300
    assert bare > missed, "the control"


def test_differences_are_symmetric_signed_and_clipped():
    rng = np.random.default_rng(3)
    labels, fold = np.arange(60) % 2, np.arange(60) // 2 % 3
    good, poor = labels + 0.8 * rng.normal(size=60), rng.normal(size=60)
    undefined = np.full(60, np.nan)
    scores = [good, poor, undefined, labels * 1.0, -1.0 * labels]
    with pytest.warns(RuntimeWarning, match="60 NaN"):
        found = metrics.auroc_differences(
            labels, scores, [(0, 1), (1, 0), (0, 0), (0, 2), (3, 4)], np.arange(60), fold=fold
        )
    forth, back, itself, nothing, most = found
    each = metrics.auroc_intervals(labels, [good, poor], np.arange(60), fold=fold)
    assert forth.estimate == pytest.approx(each[0].estimate - each[1].estimate)
    assert forth.hi - forth.estimate == pytest.approx(forth.estimate - forth.lo)
    np.testing.assert_allclose([back.estimate, back.hi, back.lo], -np.array([*forth]), atol=1e-12)
    assert itself.estimate == 0
    assert np.isnan(nothing).all()
    assert most.estimate == most.hi == 1
    assert most.lo < 1
