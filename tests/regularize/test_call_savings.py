"""What a probe saves of a judge's calls: the critics that are compared, and the command."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from analysis.judge_call_rows import JudgeCallRow
from probes.errors import InputError
from regularize.call_savings import Opinions, critics, rows, set_aside
from regularize.data import examples
from regularize.judge_calls import JudgeCallsConfig
from tests.regularize.test_stacking import opinions

LOS = (0.3, 0.05, 0.0)


def found(seed: int = 0):
    shown, labelled = Opinions(*opinions(2000, 1)), Opinions(*opinions(300, 2))
    return shown, {(one.critic, one.lo): one for one in critics(shown, labelled, LOS, seed=seed)}


def test_a_band_round_everything_is_the_judge_and_the_control_asks_as_often():
    shown, by = found()
    np.testing.assert_array_equal(by["hybrid", 0.0].risk, shown.s)
    np.testing.assert_array_equal(by["random", 0.0].risk, shown.s)
    for lo in LOS:
        assert by["hybrid", lo].calls == by["random", lo].calls == by["stacked", lo].calls
        changed = by["random", lo].risk != shown.p
        assert changed.sum() <= by["random", lo].calls
    assert by["hybrid", 0.3].calls < by["hybrid", 0.05].calls < 2000
    assert sum(math.isnan(lo) for _, lo in by) == 2  # probe and judge alone


def test_where_the_probe_is_unsure_a_call_is_worth_more_than_anywhere():
    shown, by = found()

    def errors(name):
        return ((by[name, 0.3].risk > 0.5) != (shown.labels == 1)).mean()

    alone = ((shown.p > 0.5) != (shown.labels == 1)).mean()
    assert errors("hybrid") < errors("random") - 0.02 < alone


def test_labelled_rows_of_one_class_weigh_nothing():
    shown = Opinions(*opinions(200, 1))
    harmless = shown.of(shown.labels == 0)
    names = {one.critic for one in critics(shown, harmless, LOS, seed=0)}
    assert names == {"probe", "judge", "hybrid", "random"}


def test_no_text_is_on_both_sides():
    data = examples([{"prompt": f"say {i % 30}", "completion": "x"} for i in range(90)])
    aside = set_aside(data, 20, 0)
    texts = np.array([one.text for one in data])
    assert not set(texts[aside]) & set(texts[~aside]) and 20 <= aside.sum() < 90
    assert not np.array_equal(aside, set_aside(data, 20, 1))
    with pytest.raises(InputError, match="none are left"):
        set_aside(data, 90, 0)


def test_the_rows_are_of_the_rows_that_were_not_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a probe that tells nothing, on a few rows: what is counted is counted right."""
    import regularize.call_savings as module
    from regularize.critics import Risks

    class Blind:
        def assess(self, given, chat):
            return Risks(np.full(len(given), 0.5), None)

    monkeypatch.setattr(module, "_probes", lambda config: {"blind": Blind()})
    monkeypatch.setattr(module.models, "load", lambda *_, **__: None)
    config = JudgeCallsConfig(
        data=("miniature:look-alikes",), judges=("scripted",), los=(0.1,), seeds=(1,), out=tmp_path
    )
    got = list(rows(config, Console(quiet=True)))
    assert all(isinstance(row, JudgeCallRow) for row in got)
    table = pd.DataFrame([{name: getattr(row, name) for name in row.__slots__} for row in got])
    table = table.set_index("critic")
    assert set(table["n_pos"] + table["n_neg"]) == {300}
    assert table.loc["probe", ["judged", "recall", "fpr"]].tolist() == [0, 0, 0]
    for name in ("judge", "hybrid"):  # the band holds every row, and this judge never errs
        assert table.loc[name, ["judged", "recall", "fpr", "auroc"]].tolist() == [1, 1, 0, 1]
    assert table.loc["stacked", "labelled_calls"] == 100
