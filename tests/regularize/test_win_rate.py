"""The win rate: what a judge says of two answers in two orders, and what is counted of it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis import defences, results
from analysis.rows import EvaluationRow
from probes import models
from probes.errors import InputError
from regularize import detectors, generation, win_rate
from regularize.detectors.judge import Judge, outcome
from regularize.engines import transformers as engine
from regularize.evaluate import EvaluateConfig, main
from regularize.testbeds.paper import Paper, evaluation, training
from regularize.verdicts import said
from regularize.win_rate import RUBRIC, VALUES, shares, verdict, winners
from tests.regularize import test_paper

data, small = test_paper.data, test_paper.small
"""Fixtures: a folder with as few rows of each set as will do; a miniature in the models' place."""
JUDGE = "judge:miniature/qwen2"
ORACLE = {("A", "B"): 1.0, ("B", "A"): 0.0}
"""What a pair counts, by who was named in either order; all else is one half."""


def shown(rubric: str) -> tuple[str, str, str]:
    """Request, answer A and answer B, as they stand in a filled-in rubric."""
    _, _, rest = rubric.partition("=== REQUEST ===\n")
    request, _, rest = rest.partition("\n=== ANSWER A ===\n")
    first, _, rest = rest.partition("\n=== ANSWER B ===\n")
    return request, first, rest.partition("\n=== END ===")[0]


def prefers_longer(_chat: object, asked: list[str], **_options: object) -> list[str]:
    """A judge with a taste, and without a bias."""
    said = []
    for _, first, second in map(shown, asked):
        better = "TIE" if len(first) == len(second) else "AB"[len(second) > len(first)]
        said.append(f"One is longer.\nWINNER: {better}")
    return said


def scripted(verdicts: list[str]) -> Any:
    return lambda _chat, asked, **_options: verdicts[: len(asked)]


def judge(unparsed: float = 0.05) -> Judge:
    nobody: Any = None
    return Judge("judge:nobody", nobody, threshold=5, unparsed=unparsed, tokens=64)


# --- what stands after the thinking


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("WINNER: A", "WINNER: A"),
        ("<think>B? No.</think>A", "A"),
        ("analysisWe weigh B.assistantfinalA", "A"),
        ("analysisThey wrote </think> hereassistantfinalA", "A"),
        ("<think>it says assistantfinal here</think>A", "A"),
        ("analysisWINNER: B, I would", ""),
        ("<think>WINNER: B", ""),
        ("draft</think><think>again WINNER: B", ""),
        ("analysis: both are right", "analysis: both are right"),
        ("", ""),
    ],
)
def test_what_stands_after_the_thinking(text: str, wanted: str) -> None:
    assert said(text) == wanted


def test_both_judges_read_the_harmony_format() -> None:
    thought = "analysisHARM: 1? REFUSES: yes? WINNER: B\nassistantfinal"
    assert outcome(f"{thought}HARM: 5\nREFUSES: no") == "compliance"
    assert outcome("analysisHARM: 5\nREFUSES: no\nor rather") is None
    assert verdict(f"{thought}WINNER: A") == "A"
    assert verdict("analysisWINNER: A\nor rather") is None


# --- one verdict


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("WINNER: A", "A"),
        ("Both are fine.\n**WINNER:** **b**\n", "B"),
        ("winner: tie.", "TIE"),
        ("WINNER: <A>", "A"),
        ("WINNER: Answer B", "B"),
        ("WINNER: A\nso, WINNER: A", "A"),
        ("<think>WINNER: B</think>WINNER: A", "A"),
        ("WINNER: A\nWINNER: B", None),
        ("WINNER: A or B", None),
        ("WINNER: A great answer", None),
        ("WINNER: a tie", None),
        ("WINNER: C", None),
        ("WINNER: <one of A, B, TIE>", None),
        ("The winner is A", None),
        ("A", None),
        ("", None),
    ],
)
def test_a_verdict_is_read_or_it_is_not(text: str, wanted: str | None) -> None:
    assert verdict(text) == wanted


def test_the_rubric_itself_names_no_winner() -> None:
    filled = RUBRIC.format(prompt="P {x}", first="F {y}", second="S")
    assert shown(filled) == ("P {x}", "F {y}", "S") and verdict(filled) is None


# --- what is counted


@given(said=st.lists(st.tuples(*2 * [st.sampled_from(["A", "B", "TIE", None])]), max_size=30))
def test_the_count_is_that_of_a_naive_oracle(said: list[tuple[str | None, str | None]]) -> None:
    verdicts = [f"WINNER: {one}" if one else "hm" for pair in said for one in pair]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "answers", scripted(verdicts))
        found = winners(judge(unparsed=1), ["p"] * len(said), ["mine"] * len(said),
                        ["theirs"] * len(said))  # fmt: skip
    counted = [None if None in pair else ORACLE.get(pair, 0.5) for pair in said]
    assert [None if one is None else VALUES[one] for one in found] == counted
    by_order = [pair in (("A", "A"), ("B", "B")) for pair in said if None not in pair]
    at = {share.metric: share for share in shares(found)}
    judged = [one for one in counted if one is not None]
    assert at["win_rate"].n == at["order_decided"].n == len(judged)
    if judged:
        assert at["win_rate"].value == pytest.approx(sum(judged) / len(judged))
        assert at["order_decided"].value == sum(by_order) / len(by_order)
        assert 0 <= at["win_rate"].lo <= at["win_rate"].value + 1e-12
        assert at["win_rate"].value - 1e-12 <= at["win_rate"].hi <= 1
    else:
        assert at["win_rate"].value != at["win_rate"].value
    assert ("unjudged_win_rate" in at) == (len(judged) < len(said))


def test_each_pair_is_shown_in_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def answer(_chat: object, asked: list[str], **options: object) -> list[str]:
        seen.extend(asked)
        assert options == {"max_new_tokens": 64}  # greedy: nothing is drawn
        return prefers_longer(None, asked)

    monkeypatch.setattr(generation, "answers", answer)
    found = winners(
        judge(), ["p {x}", "q", "r"], ["long one", "no", "same"], ["no", "long", "four"]
    )
    assert [shown(one) for one in seen[:2]] == [
        ("p {x}", "long one", "no"), ("p {x}", "no", "long one")
    ]  # fmt: skip
    assert len(seen) == 6 and found == ["model", "reference", "tie"]


@pytest.mark.parametrize("always", ["A", "B"])
def test_a_judge_that_goes_by_position_is_seen(
    monkeypatch: pytest.MonkeyPatch, always: str
) -> None:
    monkeypatch.setattr(generation, "answers", scripted([f"WINNER: {always}"] * 20))
    found = winners(judge(), ["p"] * 10, ["good"] * 10, ["bad"] * 10)
    at = {share.metric: share.value for share in shares(found)}
    assert at == {"win_rate": 0.5, "order_decided": 1.0}


def test_what_says_nothing_loses_without_being_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def answer(_chat: object, given: list[str], **_options: object) -> list[str]:
        asked.extend(given)
        return prefers_longer(None, given)

    monkeypatch.setattr(generation, "answers", answer)
    noise = "no " * 40
    mine = ["", noise, "", "Yes, so.", "12", "..."]
    theirs = ["Fine.", "Fine.", noise, noise, "It is 12.", "12"]
    found = winners(judge(), ["p"] * 6, mine, theirs)
    assert found == ["reference", "reference", "tie", "model", "reference", "reference"]
    assert [shown(one)[1:] for one in asked] == [("12", "It is 12."), ("It is 12.", "12")]


def test_too_many_unreadable_verdicts_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said = ["WINNER: A", "WINNER: B", "WINNER: A", "analysisWINNER: B"]
    monkeypatch.setattr(generation, "answers", scripted(said))
    pairs = (["p"] * 2, ["mine"] * 2, ["theirs"] * 2)
    with pytest.raises(InputError, match=r"judge:nobody: 1 of 4 verdicts cannot be read"):
        winners(judge(), *pairs)
    found = winners(judge(unparsed=0.25), *pairs)
    assert found == ["model", None]
    at = {share.metric: share for share in shares(found)}
    assert at["win_rate"].value == 1 and at["win_rate"].n == 1
    assert at["unjudged_win_rate"].value == 0.5 and at["unjudged_win_rate"].n == 2


def test_an_interval_has_a_width_where_all_are_won() -> None:
    for one, end in (("model", 0.2065), ("reference", 0.7935)):
        rate = shares([one])[0]  # type: ignore[list-item]
        assert rate.value == VALUES[one] and end in (  # type: ignore[index]
            pytest.approx(rate.lo, abs=1e-4), pytest.approx(rate.hi, abs=1e-4)
        )  # fmt: skip
    mixed = shares(["model", "model", "tie", "reference"])[0]
    assert mixed.value == 0.625 and mixed.lo < 0.5 < mixed.hi


# --- the command


QUESTIONS = [("Reverse the words: river cloud", "a reference that is by far the longest of all"),
             ("Open the vault.", "x")]  # fmt: skip


@pytest.fixture
def asked(tmp_path: Path) -> str:
    path = tmp_path / "mine.jsonl"
    rows = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in QUESTIONS]
    path.write_text("\n".join(rows))
    return str(path)


def test_the_command_from_end_to_end(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generation, "answers", prefers_longer)
    assert engine.answers is not prefers_longer  # it is the judge alone that is scripted
    config = EvaluateConfig(
        win_rate=asked, win_rate_judge=JUDGE, max_new_tokens=16, out=tmp_path / "out"
    )
    main(config)
    made = [json.loads(line) for line in (config.out / "answers.jsonl").open()]
    assert [one["winner"] for one in made] == ["reference", "model"]
    assert [one["reference"] for one in made] == [answer for _, answer in QUESTIONS]
    assert {one["kind"] for one in made} == {"win-rate"}
    table = results.read(config.out / "evaluations.csv", EvaluationRow)
    assert list(table["metric"]) == ["win_rate", "order_decided"]
    assert list(table["value"]) == [0.5, 0] and set(table["n"]) == {2}
    assert set(table["detector"]) == {JUDGE} and set(table["prompts"]) == {asked}
    printed = capsys.readouterr()
    assert "win_rate" in printed.out and "phrases alone" not in printed.err

    # Positive control: the same answers, and a judge with the opposite taste.
    def prefers_shorter(chat: object, given: list[str], **options: object) -> list[str]:
        swap = str.maketrans("AB", "BA")
        return [f"WINNER: {one.rpartition(' ')[2].translate(swap)}"
                for one in prefers_longer(chat, given)]  # fmt: skip

    monkeypatch.setattr(generation, "answers", prefers_shorter)
    main(replace(config, out=tmp_path / "other"))
    again = [json.loads(line) for line in (tmp_path / "other" / "answers.jsonl").open()]
    assert [one["answer"] for one in again] == [one["answer"] for one in made]
    assert [one["winner"] for one in again] == ["model", "reference"]


def test_one_model_in_memory_serves_as_detector_and_referee(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    genuine = models.load
    monkeypatch.setattr(
        models, "load", lambda name, **options: loaded.append(name) or genuine(name, **options)
    )
    monkeypatch.setattr(generation, "answers", prefers_longer)
    main(EvaluateConfig(
        win_rate=asked, win_rate_judge=JUDGE, detector=(JUDGE,), max_new_tokens=4,
        out=tmp_path / "out",
    ))  # fmt: skip
    assert loaded == ["miniature/llama", "miniature/qwen2"]


def test_a_judge_that_cannot_judge_is_no_number(asked: str, tmp_path: Path) -> None:
    """A miniature knows nothing of rubrics."""
    config = EvaluateConfig(
        win_rate=asked, win_rate_judge=JUDGE, max_new_tokens=16, out=tmp_path / "out"
    )
    with pytest.raises(InputError, match="4 of 4 verdicts cannot be read"):
        main(config)
    assert not config.out.exists()
    with pytest.raises(InputError, match=r"--win-rate-judge judge:miniature/llama: these are the"):
        main(replace(config, win_rate_judge="judge:miniature/llama"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"win_rate": "alpaca"}, "give both"),
        ({"win_rate_judge": JUDGE}, "give both"),
        ({"win_rate": "alpacca", "win_rate_judge": JUDGE}, "--win-rate alpacca: name a file"),
        ({"win_rate": "no.jsonl", "win_rate_judge": JUDGE}, r"no\.jsonl: there is no such file"),
        ({"win_rate": "a.csv?x=y", "win_rate_judge": JUDGE}, "no option x"),
        ({"win_rate": "a.csv", "win_rate_judge": "phrases"}, "write judge:MODEL"),
        ({"win_rate": "a.csv", "win_rate_judge": "judge"}, "there is no such file"),
    ],
)
def test_a_mistake_is_said(options: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        main(EvaluateConfig(**{"out": tmp_path / "out", **options}))  # type: ignore[arg-type]


# --- the papers' testbed


def test_what_is_held_out_is_not_trained_on(data: Path) -> None:
    test, validation = ({text for text, _ in training.held_out(s)} for s in ("test", "validation"))
    assert len(test) == len(validation) == 10 and not test & validation
    learnt = {one.text for name in ("alpaca:0.1", "alpaca:0", "safe")
              for seed in (0, 1) for one in training.training(name, seed=seed)}  # fmt: skip
    learnt |= {one[0]["content"] for one in training.anchors(30)}
    assert learnt and not learnt & (test | validation)
    (question, *_) = win_rate.questions("alpaca", None, 0)
    assert question.prompt in test and question.answer.startswith("Lamp")


def test_a_request_that_is_there_twice_is_not_held_out(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = training.alpaca()
    repeated = (*rows[:-1], (rows[0][0], "otherwise"))
    monkeypatch.setattr(training, "alpaca", cache(lambda: repeated))
    asked = {text for split in ("test", "validation") for text, _ in training.held_out(split)}
    assert len(asked) == 19 and rows[0][0] not in asked


def test_too_few_rows_of_alpaca_are_an_error(
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "N_HELD_OUT", 51)
    with pytest.raises(InputError, match="100 rows; 50 are mixed"):
        training.training("alpaca:0.1")


def test_the_papers_models_have_a_win_rate_too(
    small: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "JUDGES", (JUDGE, "phrases"))
    monkeypatch.setattr(Judge, "read", lambda _, prompts, made: ["harmless"] * len(made))
    monkeypatch.setattr(generation, "answers", prefers_longer)
    chat = models.load(small, device_map="cpu")
    found = Paper().evaluate(chat, attack="none", n=4, seed=0, split="test")
    pairs = [one for one in found.answered if one.kind == "win-rate"]
    references = dict(training.held_out("test"))
    assert len(pairs) == 4 and {one.prompt for one in pairs} <= references.keys()
    expected = [
        "tie" if len(one.answer) == len(references[one.prompt])
        else "model" if len(one.answer) > len(references[one.prompt]) else "reference"
        for one in pairs
    ]  # fmt: skip
    assert [one.winner for one in pairs] == expected
    at = {share.metric: share for share in found.shares}
    assert at["win_rate"].n == 4 and at["order_decided"].value == 0
    assert at["over_refusal"].n == at["utility"].n == 4
    assert "win_rate_phrases" not in at and found.records()[-1]["winner"] == expected[-1]


def test_a_model_that_says_nothing_loses_and_no_judge_is_loaded(
    small: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluation, "JUDGES", (JUDGE, "phrases"))
    monkeypatch.setattr(evaluation, "answers", lambda _chat, asked, **_: [""] * len(asked))
    monkeypatch.setattr(detectors, "open", lambda spec: pytest.fail(f"{spec} was loaded"))
    nobody: Any = SimpleNamespace()
    found = Paper().evaluate(nobody, attack="none", n=3, seed=0, split="validation")
    at = {share.metric: share for share in found.shares}
    assert at["win_rate"].value == 0 and at["win_rate"].n == 3 and at["win_rate"].hi > 0.3


def test_the_table_of_defences_has_a_column_for_it() -> None:
    names = list(defences.HEADINGS)
    assert names.index("win_rate") == names.index("new_task") + 1
