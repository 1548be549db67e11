"""The table and the figure of a judge's calls."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis import judge_calls, results, style
from analysis.figures import judge_calls_saved
from analysis.judge_call_rows import JudgeCallRow
from tests.analysis.synthetic import frame

ROW = JudgeCallRow(
    "miniature/llama", "miniature:mixed", "probe", "scripted", "probe", math.nan, 0.0, 0, 0, 50,
    450, 0.5, 0.8, 0.7, 0.9, 0.04, 0.02, 0.06, 0.9, 0.85, 0.95, 0.03, 0.02, 1,
)  # fmt: skip


def table(seeds=(1, 2)) -> pd.DataFrame:
    rows = []
    for seed in seeds:
        for probe in ("probe", "probe-early"):
            one = replace(ROW, probe=probe, seed=seed, recall=0.8 + seed / 100)
            rows += [one, replace(one, critic="judge", judged=1.0, recall=0.9)]
            for lo, judged in ((0.3, 0.1), (0.05, 0.3), (0.0, 1.0)):
                for critic in ("hybrid", "stacked", "random"):
                    rows.append(replace(one, critic=critic, lo=lo, judged=judged, recall=0.85))
    return frame(rows)


def test_points_are_means_over_seeds():
    points = judge_calls.points(table())
    assert len(points) == 2 * (2 + 9)
    probe = points[(points["critic"] == "probe") & (points["probe"] == "probe")].iloc[0]
    assert probe["recall"] == pytest.approx(0.815) and math.isnan(probe["lo"])
    assert probe["recall_lo"] < 0.8 < 0.83 < probe["recall_hi"]  # Student's, of two seeds
    assert probe["fpr_lo"] == 0.02  # the seeds agree: the rows' own
    with pytest.raises(results.TableError, match="two rows for"):
        judge_calls.points(pd.concat([table(), table()]))


def test_the_terminal_shows_the_usual_band():
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(judge_calls.render(table()))
    text = console.export_text()
    assert "hybrid, 0.05 to 0.95" in text and "0.3 to 0.7" not in text


def test_the_curves_begin_at_the_probe_and_end_at_the_judge():
    with style.context():
        figure = judge_calls_saved.draw(table())
    assert len(figure.axes) == 4
    for ax in figure.axes[:2]:
        curves = [line for line in ax.lines if len(line.get_xdata()) > 2]
        assert len(curves) == 3
        for line in curves:
            np.testing.assert_allclose(line.get_xdata(), [0, 0.1, 0.3, 1])
            assert line.get_ydata()[0] == pytest.approx(0.815)
    bare = table()
    with pytest.raises(results.NothingToDraw, match="no hybrid"):
        judge_calls_saved.draw(bare[bare["critic"] == "probe"])
