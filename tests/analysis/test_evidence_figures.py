"""Figures of what stands beside a sweep's scores."""

from __future__ import annotations

import math

import pytest

from analysis import results, style
from analysis.figures import operating_points, probe_under_drift, reliability_curves
from tests.analysis import synthetic_evidence
from tests.analysis.synthetic import HELD_OUT, MODELS, frame

SETS = ("miniature:train", *HELD_OUT)


def test_the_points_are_the_probes_and_the_best_floors_at_the_rate_that_has_a_threshold():
    table = frame(synthetic_evidence.operating())
    points = operating_points.plotted(table)
    assert set(points["fpr"]) == {0.01} and len(points) == 2 * len(MODELS) * len(SETS)
    with style.context():
        figure = operating_points.draw(table)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        style.clip(model) for model in MODELS
    ]
    ax = figure.axes[0]
    marks = {line.get_marker(): [] for line in ax.lines}
    for line in ax.lines:
        marks[line.get_marker()].append(line.get_xdata()[0])
    mine = points[points["model"] == MODELS[0]]
    probe, words = (mine[mine["readout"] == name] for name in ("layer", "tfidf-word"))
    assert marks["o"] == probe["tpr"].tolist() and marks["|"] == words["tpr"].tolist()
    assert marks["s"] == probe["realised_fpr"].tolist()


def test_without_a_threshold_there_is_nothing_to_draw():
    table = frame(synthetic_evidence.operating())
    with pytest.raises(results.NothingToDraw, match="no threshold"):
        operating_points.draw(table.assign(threshold=math.nan))


def test_reliability_shows_the_maps_that_a_probe_can_have():
    table = frame(synthetic_evidence.reliability(MODELS[:2]))
    with style.context():
        figure = reliability_curves.draw(table)
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert [title.partition("\n")[2] for title in titles] == ["as fitted"] * 2 + [
        "Platt, out of fold"
    ] * 2
    as_fitted, mapped = (figure.axes[i].lines[1] for i in (0, 2))

    def gap(line):
        return max(abs(line.get_xdata() - line.get_ydata()))

    assert gap(as_fitted) > 0.1 > 0.03 > gap(mapped)


def test_two_bins_in_one_place_are_refused():
    table = frame(synthetic_evidence.reliability(MODELS[:1]))
    with pytest.raises(results.TableError, match="two rows for"):
        reliability_curves.draw(table.assign(bin=0))


def test_drift_shows_what_auroc_hides():
    table = frame(synthetic_evidence.drift())
    with style.context():
        figure = probe_under_drift.draw(table)
    above, below = figure.axes
    for ax, column in ((above, "auroc"), (below, "tpr")):
        lines = [line for line in ax.lines if line.get_marker() in ("s", "o", "^")]
        want = [part[column].tolist() for _, part in table.groupby("defence", sort=False)]
        assert [line.get_ydata().tolist() for line in lines] == want
    assert above.get_ylim() == (0.9, 1)
    once = table[table["step"] == 0]
    with pytest.raises(results.NothingToDraw, match="no two looks"):
        probe_under_drift.draw(once)
