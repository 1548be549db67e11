"""Utilities: what counts as right, and malformed files."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import InputError
from regularize import plugins, utilities
from regularize.utilities import Question
from regularize.utilities.gsm8k import final_number


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_one_file_each_is_a_utility() -> None:
    assert set(plugins.found(utilities, utilities.Utility)) == {"exact", "gsm8k", "miniature"}
    with pytest.raises(InputError, match="only exact, gsm8k, miniature"):
        utilities.open("mmlu")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("5 + 3 = 8\n#### 8", "8"),
        ("#### 1,234", "1234"),
        ("#### $12.50 dollars", "12.5"),
        ("#### -7", "-7"),
        ("#### −7", "-7"),
        ("#### -$7", "-7"),
        ("#### 18. And then 5 more: 23", "18"),
        ("#### none, but 4", "4"),
        ("We get 3. ####", "3"),
        ("She has 12 apples.", "12"),
        ("10-8", "8"),
        ("The answer is 3.0.", "3"),
        ("It costs $1,000,000 in all", "1000000"),
        ("1,2,3", "3"),
        ("about .5 km", "0.5"),
        ("**42**", "42"),
        ("50% of them", "50"),
        ("x12 and B2B", None),
        ("no number", None),
        ("", None),
    ],
)
def test_the_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


@given(st.integers(-(10**9), 10**9), st.text(alphabet="abc .,\n", max_size=20))
def test_numbers_are_compared_by_value(value: int, around: str) -> None:
    for written in (f"{value}", f"{value:,}", f"{value}.00"):
        assert final_number(f"{around}\n#### {written}\n{around}") == value
        assert final_number(f"12 {around} is {written} ") == value


def test_gsm8k_from_the_data_folder(data_dir: Path, monkeypatch) -> None:
    monkeypatch.setenv("ACTIVATION_CRITIC_DATA", str(data_dir))
    known = utilities.open("gsm8k")
    questions = known.questions(None, 0)
    assert len(questions) == 1319
    assert all(known.correct(question, question.answer) for question in questions)
    bare = [question.answer.rpartition("####")[2] for question in questions]
    assert all(map(known.correct, questions, bare))
    # Control: another question's answer is mostly wrong, and no answer always.
    shifted = bare[1:] + bare[:1]
    assert sum(map(known.correct, questions, shifted)) < 0.1 * len(questions)
    assert not any(known.correct(question, "") for question in questions)


def test_questions_are_drawn_by_the_seed(tmp_path: Path) -> None:
    rows = [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(50)]
    known = utilities.open(f"gsm8k:{write(tmp_path / 'mine.jsonl', rows)}")
    drawn = known.questions(10, 0)
    assert len(set(drawn)) == 10
    assert drawn == known.questions(10, 0) != known.questions(10, 1)
    assert known.questions(None, 0) == known.questions(99, 0)
    assert len(known.questions(None, 0)) == 50


def test_exact_match_leaves_white_space_aside(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", [{"prompt": "Rotate: a b", "answer": "b  a"}])
    known = utilities.open(f"exact:{path}")
    (question,) = known.questions(None, 0)
    assert question == Question("Rotate: a b", "b  a")
    assert known.correct(question, " b a\n") and not known.correct(question, "B a")
    assert not known.correct(question, "b a b") and not known.correct(question, "")


def test_other_column_names_and_csv(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("q,a\nTwo and two?,4\n")
    known = utilities.open(f"exact:{tmp_path / 'mine.csv'}?prompt=q&answer=a")
    assert known.questions(1, 0) == [Question("Two and two?", "4")]


def test_the_miniatures_tasks() -> None:
    old, new = utilities.open("miniature"), utilities.open("miniature:rotate")
    assert len(old.questions(None, 0)) == 200 and len(new.questions(30, 0)) == 30
    question = new.questions(1, 0)[0]
    assert new.correct(question, f" {question.answer}\n") and not new.correct(question, "Answer:")
    assert {q.prompt for q in new.questions(50, 0)}.isdisjoint(
        q.prompt for q in old.questions(50, 0)
    )


@pytest.mark.parametrize(
    ("spec", "content", "message"),
    [
        ("gsm8k", '{"question": "a", "answer": "none"}\n', "line 1, field 'answer': no number"),
        ("gsm8k", '{"question": "a"}\n', "line 1, field 'answer'"),
        ("gsm8k", '{"question": "", "answer": "#### 1"}\n', "line 1, field 'question'"),
        ("gsm8k", '{"question": "a", "answer": "#### 1"}\n{"qu', "line 2"),
        ("exact", '{"prompt": "a", "answer": 4}\n', "line 1, field 'answer'"),
        ("exact", '{"prompt": "a", "answer": "b"}\n[]\n', "line 2"),
        ("exact", "", "empty"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, spec: str, content: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        utilities.open(f"{spec}:{path}")
    assert "mine.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exact", "name a .jsonl"),
        ("exact:nowhere.jsonl", "no such file"),
        ("gsm8k:nowhere/mine.jsonl", "no such file"),
        ("gsm8k?n=3", "no option n"),
        ("miniature:reverse", "miniature:rotate"),
        ("miniature?a=b", "no option a"),
    ],
)
def test_what_is_wrong_with_a_spec(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        utilities.open(spec)
