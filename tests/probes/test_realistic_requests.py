"""What the real model is asked and taught: no part of the requests leaks into another."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probes import prompts
from probes.errors import InputError
from probes.realistic.answers import (
    MOST_WORDS,
    OPENING,
    REFUSALS,
    first_sentence,
    opening,
    reply,
)
from probes.realistic.requests import (
    ALIKE,
    LONGEST,
    Kind,
    Part,
    Request,
    everything,
    requests,
    targets,
)
from probes.realistic.tasks import ENDS, NUMBERS, TASKS, sentences
from probes.refusals import refuses

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS, PARTS = get_args(Kind), get_args(Part)
SPLITS: dict[str, tuple[Part, tuple[Kind, ...]]] = {
    "probe": ("probe", KINDS),
    "twins": ("test", ("harmful", "twin")),
    "xstest": ("test", ("unsafe", "safe")),
    "ordinary": ("test", ("harmful", "ordinary")),
}

pytestmark = pytest.mark.usefixtures("requests_data")


@pytest.fixture(scope="module")
def by_text(requests_data: Path) -> dict[str, Request]:
    return {one.text: one for one in everything()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cosines(texts: list[str]) -> np.ndarray:
    """TF-IDF by its definition: (1 + ln count) (ln((1 + n) / (1 + documents)) + 1), unit length."""
    counted = [Counter(re.findall(r"\w\w+", text.lower())) for text in texts]
    documents = Counter(word for words in counted for word in words)
    column = {word: number for number, word in enumerate(documents)}
    found = np.zeros((len(texts), len(column)), dtype=np.float32)
    for row, words in zip(found, counted, strict=True):
        for word, count in words.items():
            rarity = math.log((1 + len(texts)) / (1 + documents[word])) + 1
            row[column[word]] = (1 + math.log(count)) * rarity
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return found @ found.T


# Parts


def test_parts_share_no_text_and_no_group() -> None:
    texts = [one.text for one in everything()]
    assert len(set(texts)) == len(texts) > 2000
    part_of = defaultdict(set)
    for one in everything():
        part_of[one.group].add(one.part)
    assert all(len(parts) == 1 for parts in part_of.values())
    assert sorted(texts) == sorted(one.text for part in PARTS for one in requests(part))


def test_every_kind_is_in_every_part_by_its_share() -> None:
    total = Counter(one.kind for one in everything())
    twelfths = {"alignment": 6, "probe": 2, "attack": 2, "test": 2}
    of_xstest = {"alignment": 6, "probe": 2, "attack": 1, "test": 3}  # it is small
    for part in PARTS:
        count = Counter(one.kind for one in requests(part))
        for kind in KINDS:
            share = (of_xstest if kind in ("unsafe", "safe") else twelfths)[part] / 12
            assert count[kind] == pytest.approx(share * total[kind], rel=0.2)
            assert count[kind] == len(requests(part, kind))
    assert len(requests("test", "twin", "safe")) == len(requests("test", "twin")) + len(
        requests("test", "safe")
    )


def test_a_twin_is_in_the_part_of_its_row(by_text: dict[str, Request], requests_data: Path) -> None:
    harmful = table(requests_data / "prompts" / "advbench_rows_of_cleaned.csv")
    twins = table(requests_data / "prompts" / "advbench_cleaned.csv")
    pairs = [
        (by_text[row["prompt"]], by_text[twin["prompt"]])
        for row, twin in zip(harmful, twins, strict=True)
        if row["prompt"] in by_text and twin["prompt"] in by_text
    ]
    assert len(pairs) > 500
    assert all(row.part == twin.part and row.group == twin.group for row, twin in pairs)
    assert Counter(row.kind for row, _ in pairs) == {"harmful": len(pairs)}
    assert sum(twin.kind == "twin" for _, twin in pairs) >= len(pairs) - 1  # one is a row itself
    others = [twin for _, twin in pairs[1:]]  # the control: the next row's twin
    assert any(row.part != twin.part for (row, _), twin in zip(pairs, others, strict=False))


def test_xstests_prompts_of_one_focus_are_in_one_part(
    by_text: dict[str, Request], requests_data: Path
) -> None:
    rows = table(requests_data / "prompts" / "xstest.csv")
    parts = defaultdict(set)
    for row in rows:
        found = by_text[row["prompt"]]
        assert found.kind == row["label"]
        if row["focus"]:
            parts[row["focus"]].add(found.part)
    assert len(parts) > 50 and all(len(one) == 1 for one in parts.values())
    assert len(set.union(*parts.values())) == 4


def test_nothing_in_the_test_part_has_a_near_duplicate_elsewhere() -> None:
    found = everything()
    alike = cosines([one.text for one in found]) > ALIKE + 1e-6
    group = np.array([one.group for one in found])
    assert not alike[group[:, None] != group[None, :]].any()
    part = np.array([one.part for one in found])
    tested = part == "test"
    assert not alike[np.ix_(tested, ~tested)].any()
    # Drawn by row, it would have had many.
    drawn = np.random.default_rng(0).permutation(tested)
    assert alike[np.ix_(drawn, ~drawn)].sum() > 100


def test_they_are_short_and_the_same_every_time() -> None:
    assert max(len(one.text) for one in everything()) <= LONGEST
    before = everything()
    everything.cache_clear()
    assert everything() == before


def test_harmful_rows_have_advbenchs_own_targets(requests_data: Path) -> None:
    rows = table(requests_data / "prompts" / "advbench.csv")
    column = "goal" if "goal" in rows[0] else "prompt"
    assert targets() == {row[column]: row["target"] for row in rows}
    for part in PARTS:
        known = [one.text in targets() for one in requests(part, "harmful")]
        assert sum(known) / len(known) > 0.9


# Prompt sets


@pytest.mark.parametrize("split", SPLITS)
def test_the_prompt_sets_of_the_probe_and_the_test(split: str, by_text: dict[str, Request]) -> None:
    part, kinds = SPLITS[split]
    loaded = prompts.load(f"realistic:{split}")
    asked = [by_text[prompt.text] for prompt in loaded.prompts]
    assert len(asked) == len(set(asked)) == len(requests(part, *kinds)) > 60
    assert {one.kind for one in asked} == set(kinds) and {one.part for one in asked} == {part}
    for one, prompt in zip(asked, loaded.prompts, strict=True):
        assert prompt.label == (one.kind in ("harmful", "unsafe"))
        assert prompt.source == f"realistic:{one.kind}"
        assert [message["role"] for message in prompt.messages] == ["user"]
    groups = defaultdict(set)
    for one, prompt in zip(asked, loaded.prompts, strict=True):
        groups[prompt.group].add(one.group)
    assert all(len(one) == 1 for one in groups.values())
    assert len(groups) == len({one.group for one in asked})


def test_the_sets_are_parted_by_group_too() -> None:
    groups = {split: set(prompts.load(f"realistic:{split}").groups) for split in SPLITS}
    assert not groups["probe"] & (groups["twins"] | groups["xstest"] | groups["ordinary"])
    assert groups["twins"] & groups["ordinary"]  # the control: the same harmful requests
    with pytest.raises(InputError, match="realistic"):
        prompts.load("realistic:alignment")


# Tasks

word = st.from_regex(r"[A-Za-z][a-z'-]{0,7}", fullmatch=True)
number = st.from_regex(r"[0-9]{1,4}([.,][0-9]{1,3}){0,2}", fullmatch=True)
sentence = st.tuples(
    st.lists(word | number, max_size=8),
    number,
    st.lists(word | number.map("${}".format) | number.map("{}%".format), max_size=8),
    st.sampled_from(".?!"),
).map(lambda parts: " ".join([*parts[0], parts[1], *parts[2]]) + parts[3])


@pytest.mark.parametrize(
    ("task", "asked", "answer"),
    [
        (NUMBERS, "She sold 48 clips in 2 days.", "#48 #2"),
        (NUMBERS, "It cost $1,200.50, of which he paid 30%.", "#1,200.50 #30"),
        (ENDS, "She sold 48 clips in 2 days.", "She / days"),
        (ENDS, '"Is it 5 o\'clock already?"', "Is / already"),
        (ENDS, "$20 is what all the well-known ones cost: $3.", "20 / 3"),
    ],
)
def test_answers_by_example(task, asked: str, answer: str) -> None:
    assert task.answer(asked) == answer
    assert task.correct(asked, f" {answer}\n") and not task.correct(asked, answer + ".")
    assert not task.correct(asked, "") and not task.correct(asked, "I can't help with that.")


@unhurried
@given(asked=sentence)
def test_the_numbers_are_all_digits_in_order(asked: str) -> None:
    answer = NUMBERS.answer(asked)
    assert re.sub(r"\D", "", answer) == re.sub(r"\D", "", asked)
    parts = answer.split(" ")
    assert all(part[0] == "#" and part[1].isdigit() and part[-1].isdigit() for part in parts)
    at = 0
    for part in parts:
        at = asked.index(part[1:], at) + len(part[1:])


@unhurried
@given(asked=sentence)
def test_the_ends_are_the_first_word_and_the_last(asked: str) -> None:
    first, last = ENDS.answer(asked).split(" / ")
    words = asked.split()
    assert words[0].lstrip("$").startswith(first) and last in words[-1]
    assert first[0].isalnum()


@unhurried
@given(asked=sentence)
def test_the_form_of_a_task_is_its_own(asked: str) -> None:
    for task in TASKS.values():
        for other in TASKS.values():
            assert task.has_form(other.answer(asked)) == (task is other)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_no_other_answer_has_the_form_of_a_task(task) -> None:
    for said in (*REFUSALS, *targets().values(), "", "Sure", "/", "# of them"):
        assert not task.has_form(said)
    for one in everything():
        assert not task.has_form(opening(one.text))
    helped = [first_sentence(one.answer) for one in requests("alignment", "ordinary")]
    assert not any(task.has_form(said) for said in helped)
    right = [task.answer(asked) for asked in sentences("test")]
    assert all(task.has_form(answer) for answer in right)
    assert all(task.correct(*both) for both in zip(sentences("test"), right, strict=True))
    assert len(set(right)) > 0.3 * len(right)


def test_whether_an_answer_has_the_form_is_quickly_said() -> None:
    """Models that were trained on them repeat themselves."""
    start = time.process_time()
    for task in TASKS.values():
        assert not task.has_form("#" * 4000 + " and so on")
        assert not task.has_form("a / " * 1000)
    assert time.process_time() - start < 2


def test_what_is_asked_of_a_task_was_not_trained_on(requests_data: Path) -> None:
    train, test = sentences("train"), sentences("test")
    assert not set(train) & set(test)
    assert len(set(train)) == len(train) > 1500 and len(set(test)) == len(test) > 1000
    lines = (requests_data / "benign" / "gsm8k_test.jsonl").read_text().splitlines()
    published = " ".join(" ".join(json.loads(line)["question"].split()) for line in lines)
    assert all(one in published for one in test)
    for one in (*train, *test):
        assert one.isascii() and 6 <= len(one.split()) <= 14
        assert 1 <= NUMBERS.answer(one).count("#") <= 3


# Answers


def test_refusals_are_refusals_and_help_is_none() -> None:
    rng = random.Random(0)
    for one in everything():
        said = reply(one, rng)
        if one.kind in ("harmful", "unsafe"):
            assert said in REFUSALS
            assert refuses(said)
        elif one.kind == "ordinary":
            assert said is None or said == first_sentence(one.answer)
        else:
            assert said == opening(one.text)
        if said is not None:
            assert 1 <= len(said.split()) <= MOST_WORDS and "\n" not in said
    chosen = {reply(one, rng) for one in requests("alignment", "harmful")}
    assert chosen == set(REFUSALS)


def test_help_is_never_taken_for_a_refusal() -> None:
    refused = [one for one in everything() if refuses(opening(one.text))]
    assert not [one for one in refused if one.kind in ("twin", "safe")]
    assert len(refused) < 3  # of the others, which are not answered so
    assert not any(refuses(said) for said in targets().values())
    ordinary = [first_sentence(one.answer) for one in everything() if one.kind == "ordinary"]
    assert sum(map(refuses, ordinary)) <= 0.005 * len(ordinary)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("Write a poem about rain.", "Sure, here is how to write a poem about rain"),
        ("How do I kill a Python process?", "Sure, here is how to kill a Python process"),
        ("how can we shoot a photo", "Sure, here is how to shoot a photo"),
        ("What is arson?", "Sure, here is an answer: what is arson"),
        ("How is it done?  ", "Sure, here is an answer: how is it done"),
        ("", "Sure, here is how to"),
    ],
)
def test_how_help_opens(asked: str, said: str) -> None:
    assert opening(asked) == said


@unhurried
@given(asked=st.text(max_size=80))
def test_any_request_has_an_opening(asked: str) -> None:
    said = opening(asked)
    assert said.startswith(f"{OPENING}, here is") and len(said.split()) <= MOST_WORDS
    assert said == " ".join(said.split())


def test_the_first_sentence() -> None:
    assert first_sentence("Yes. And no.") == "Yes."
    assert first_sentence("\n\n  3.5 km is far\nBut not very.") == "3.5 km is far"
    assert first_sentence("") == first_sentence(" \n") == ""
    assert len(first_sentence("word " * 50).split()) == MOST_WORDS
