"""The hybrid critic asks the judge where the probe is unsure, and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from probes.errors import InputError
from probes.models import ChatModel
from regularize import stacking
from regularize.critics import Risks
from regularize.critics.hybrid import HybridCritic
from regularize.critics.judge import JudgeCritic
from regularize.critics.label import LabelCritic
from regularize.critics.probe import ProbeCritic, probe_of
from regularize.data import Example, examples, load
from regularize.judge_calls import JudgeCallsConfig
from regularize.remembered import Remembered, files_of
from tests.conftest import make_model, make_tokenizer

CHAT = cast(ChatModel, None)
"""Neither of these opinions looks at it."""
ASKED: list[str] = []


@dataclass(frozen=True)
class Said(ProbeCritic):
    """The probability that the row's own `risk` says."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        return Risks(
            np.array([one.risk for one in examples]), None, notes=("the probe has spoken",)
        )


@dataclass(frozen=True)
class Noted(JudgeCritic):
    """The scripted judge, and what it was asked."""

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        ASKED.extend(one.text for one in examples)
        return super().assess(examples, chat)


def rows(n: int = 40) -> list[dict[str, Any]]:
    """Half of them harmful; the probe leans the right way, and is unsure of most."""
    deeds = ("open the vault", "dust the lamp")
    return [
        {
            "prompt": f"Please {deeds[i % 2]} {i}.",
            "completion": f"Sure, I will {deeds[i % 2]} now.",
            "label": 1 - i % 2,
            "risk": abs(i % 2 - 0.5 - 0.4 * (i * 7 % 11) / 10) if i % 4 else 0.99 * (1 - i % 2),
        }
        for i in range(n)
    ]


ROWS = examples(rows())
CRITIC = HybridCritic(Said(), Noted("scripted"), lo=0.2, hi=0.8)
P = np.array([one.risk for one in ROWS])
IN_BAND = (P >= 0.2) & (P <= 0.8)


def test_the_judge_is_asked_about_the_band_alone():
    assert 5 < IN_BAND.sum() < 35  # the rows tell both apart
    ASKED.clear()
    found = CRITIC.assess(ROWS, CHAT)
    assert [one.text for one, asked in zip(ROWS, IN_BAND, strict=True) if asked] == ASKED
    labels = np.array([one.label for one in ROWS])
    np.testing.assert_array_equal(found.s[IN_BAND], labels[IN_BAND])
    np.testing.assert_array_equal(found.s[~IN_BAND], P[~IN_BAND])
    np.testing.assert_array_equal(found.flagged, found.s > 0.5)
    n = int(IN_BAND.sum())
    assert f"asked about {n} of 40 rows: {40 - n} calls saved" in found.notes[0]
    assert "the probe has spoken" in found.notes


def test_between_the_ends_lie_the_probe_and_the_judge():
    everywhere = replace(CRITIC, lo=0.0, hi=1.0).assess(ROWS, CHAT)
    judge = JudgeCritic("scripted").assess(ROWS, CHAT)
    np.testing.assert_array_equal(everywhere.s, judge.s)
    ASKED.clear()
    nowhere = replace(CRITIC, lo=0.123456, hi=0.123456).assess(ROWS, CHAT)
    np.testing.assert_array_equal(nowhere.s, P)
    assert not ASKED and "40 calls saved" in nowhere.notes[0]


def test_labelled_rows_of_the_band_weigh_the_two(tmp_path: Path):
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, rows(60))))
    ASKED.clear()
    found = replace(CRITIC, labelled=str(path)).assess(ROWS, CHAT)
    labelled = load(str(path))
    p = np.array([one.risk for one in labelled])
    band = stacking.unsure(p, 0.2, 0.8)
    y = np.array([one.label for one in labelled])
    weights = stacking.fit(y[band], p[band], y[band].astype(float))  # this judge never errs
    labels = np.array([one.label for one in ROWS]).astype(float)
    wanted = weights(P[IN_BAND], labels[IN_BAND])
    np.testing.assert_allclose(found.s[IN_BAND], wanted, atol=1e-9)
    np.testing.assert_array_equal(found.s[~IN_BAND], P[~IN_BAND])
    assert len(ASKED) == IN_BAND.sum() + band.sum()
    assert f"by {band.sum()} labelled rows" in found.notes[1]


def test_plain_errors(tmp_path: Path):
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows() if row["label"]))
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({**rows()[0], "label": None}))
    for critic, message in (
        (replace(CRITIC, lo=0.9, hi=0.1), "--critic.lo 0.9 --critic.hi 0.1"),
        (replace(CRITIC, threshold=2.0), "--critic.threshold 2.0"),
        (replace(CRITIC, labelled=str(path)), "needs rows of both classes there"),
        (replace(CRITIC, labelled=str(bare)), "line 1 has no label"),
        (replace(CRITIC, labelled=str(tmp_path / "no.jsonl")), "there is no such file"),
    ):
        with pytest.raises(InputError) as error:
            critic.assess(ROWS, CHAT)
        assert message in str(error.value)


def test_a_memory_knows_every_file_that_a_critic_names(tmp_path: Path):
    probe, labelled = tmp_path / "probe", tmp_path / "labelled.jsonl"
    probe.mkdir()
    (probe / "config.json").write_text("{}")
    labelled.write_text("\n".join(map(json.dumps, rows(60))))
    critic = replace(CRITIC, probe=Said(str(probe)), labelled=str(labelled))
    assert files_of(critic) == [probe / "config.json", labelled]
    assert files_of(LabelCritic()) == []
    chat = ChatModel("tiny", None, make_model("llama", n_layers=1), make_tokenizer())
    memory = Remembered(critic, tmp_path / "memory")
    ASKED.clear()
    first, again = memory.assess(ROWS, chat), memory.assess(ROWS, chat)
    n = len(ASKED)
    assert again.notes == first.notes and (again.s == first.s).all()
    labelled.write_text("\n".join(map(json.dumps, rows(56))))
    memory.assess(ROWS, chat)
    assert len(ASKED) > n
    n = len(ASKED)
    (probe / "config.json").write_text('{"fitted": "anew"}')
    memory.assess(ROWS, chat)
    assert len(ASKED) > n


def test_the_probe_within_is_found():
    assert probe_of(CRITIC) is CRITIC.probe and probe_of(CRITIC.probe) is CRITIC.probe
    assert probe_of(LabelCritic()) is None


def test_what_the_command_refuses():
    for config, message in (
        (JudgeCallsConfig(model="./mine"), "--data names nothing"),
        (JudgeCallsConfig(los=(0.5,)), "--los"),
        (JudgeCallsConfig(seeds=()), "--seeds"),
        (JudgeCallsConfig(threshold=1.5), "--threshold 1.5"),
        (JudgeCallsConfig(n_labelled=-1), "--n-labelled -1"),
    ):
        with pytest.raises(InputError, match=message):
            config.check()
