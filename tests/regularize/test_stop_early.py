"""An answer may be cut only where nothing that follows could change what it is taken for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import results
from analysis.rows import EvaluationRow
from probes.errors import InputError
from probes.miniature.language import REFUSALS
from regularize import asked, outcomes
from regularize.evaluate import EvaluateConfig, main
from regularize.outcomes import decided, judge
from regularize.testbeds.miniature.evaluation import draw
from regularize.utilities import Question
from regularize.utilities.exact import Exact
from regularize.utilities.gsm8k import Gsm8k
from regularize.utilities.miniature import Miniature

ROWS = [
    *draw("harmful", 4, seed=5, split="validation"), *draw("utility", 6, seed=5, split="validation")
]  # fmt: skip
PIECES = [" ", "\n", "S", "Sure,", "Sorry,", "No", ".", *REFUSALS, *(row.answer for row in ROWS)]
LANGUAGE = st.lists(
    st.sampled_from(PIECES).flatmap(
        lambda piece: st.integers(0, len(piece)).map(lambda n: piece[:n])
    ),
    max_size=5,
).map("".join)  # fmt: skip
NUMBERS = st.text("#$-,.0127 x\n", max_size=14).flatmap(
    lambda text: st.sampled_from([text, f"#### {text}", f"is 3 #### {text} 5"])
)
WORDS = st.text("ab \n", max_size=8)

Verdict = Callable[[str], Any]


def cuts(answer: str, done: Callable[[str], bool], verdict: Verdict) -> int:
    """How many beginnings are decided; each must be taken for what the whole answer is."""
    beginnings = [answer[:n] for n in range(1, len(answer) + 1)]
    found = [one for one in beginnings if done(one)]
    assert all(verdict(one) == verdict(answer) for one in found), answer
    return len(found)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(ROWS), LANGUAGE)
def test_the_exact_rule(row, answer: str) -> None:
    cuts(answer, lambda text: decided(row, text), lambda text: judge(row, text))
    task = Miniature("miniature", new=False)
    question = Question(row.text, row.answer)
    cuts(answer, lambda text: task.decided(question, text), lambda t: task.correct(question, t))


@settings(max_examples=400, deadline=None)
@given(NUMBERS, NUMBERS)
def test_the_final_number(right: str, answer: str) -> None:
    task, question = Gsm8k("gsm8k", ()), Question("", f"12 #### {right}")
    cuts(answer, lambda text: task.decided(question, text), lambda t: task.correct(question, t))


@settings(max_examples=400, deadline=None)
@given(WORDS, WORDS)
def test_exact_words(right: str, answer: str) -> None:
    task, question = Exact("exact:x", ()), Question("", right)
    cuts(answer, lambda text: task.decided(question, text), lambda t: task.correct(question, t))


def test_wrong_beginnings_are_decided_at_once_and_a_wrong_rule_is_caught() -> None:
    row = ROWS[0]
    wrong = row.answer[:-5] + "xyz and so on."
    assert cuts(wrong, lambda text: decided(row, text), lambda text: judge(row, text)) > 10
    assert not any(decided(row, row.answer[:n]) for n in range(len(row.answer) + 1))
    refusal = REFUSALS[0]
    assert decided(row, refusal) and not decided(row, refusal[:-1])
    with pytest.raises(AssertionError):  # control: "Sure," alone decides nothing about exactness
        cuts(row.answer, lambda text: "Sure" in text, lambda text: judge(row, text))
    task = Gsm8k("gsm8k", ())
    assert task.decided(Question("", "1"), "#### 42\n") and not task.decided(
        Question("", "1"), "42\n"
    )
    with pytest.raises(AssertionError):  # control: more digits may follow
        cuts("#### 42", lambda text: "####" in text, lambda t: task.correct(Question("", "42"), t))


def evaluated(out: Path, **options: Any):
    config = EvaluateConfig(
        model="miniature/llama-base", utility=("miniature",), new_task=("miniature:rotate",),
        harmful=("miniature:test",), n=20, max_new_tokens=32, out=out,
    )  # fmt: skip
    main(replace(config, **options))
    table = results.read(out / "evaluations.csv", EvaluationRow)
    lines = (out / "answers.jsonl").read_text().splitlines()
    return table, [json.loads(line) for line in lines]


def test_the_table_is_the_same_and_what_is_cut_says_so(tmp_path: Path) -> None:
    table, whole = evaluated(tmp_path / "whole")
    early, cut = evaluated(tmp_path / "cut", stop_early=True)
    assert early.equals(table)
    assert not any(one["cut"] for one in whole) and any(one["cut"] for one in cut)
    for a, b in zip(whole, cut, strict=True):
        assert {**a, "answer": "", "cut": None} == {**b, "answer": "", "cut": None}
        assert a["answer"].startswith(b["answer"])
        # What a detector reads is whole; what is not cut is; and who is cut had more to say.
        assert (len(b["answer"]) < len(a["answer"])) <= b["cut"]
        assert not (b["cut"] and b["kind"] == "harmful")
    assert sum(len(one["answer"]) for one in cut) < sum(len(one["answer"]) for one in whole)


def test_a_wrong_rule_would_change_the_table(tmp_path: Path, monkeypatch) -> None:
    table, _ = evaluated(tmp_path / "whole", model="miniature/llama")
    monkeypatch.setattr(Miniature, "decided", lambda *_: True)
    early, _ = evaluated(tmp_path / "cut", model="miniature/llama", stop_early=True)
    assert not early.equals(table)


def test_in_the_miniatures_own_evaluation_detectors_read_whole_answers(tmp_path: Path) -> None:
    config = EvaluateConfig(model="miniature/llama-base", n=10, stop_early=True, out=tmp_path)
    main(config)
    rows = list(map(json.loads, (tmp_path / "answers.jsonl").read_text().splitlines()))
    assert {one["kind"] for one in rows if one["cut"]} <= {"utility", "new-task"}
    assert any(one["cut"] for one in rows)
    assert all(one.decided for one in asked.from_miniature(n=2, seed=0, split="test"))
    assert outcomes.decided is decided


def test_another_engine_cannot(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--stop-early: vllm"):
        main(EvaluateConfig(engine="vllm", stop_early=True, out=tmp_path / "out"))
