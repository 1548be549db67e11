"""Leaks: planted ones are found, and all of those that a look at every pair finds."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probes import leaks, prompts
from probes.folds import Folds
from probes.prompts import Prompt, PromptSet

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnp" for b in "aeiou" for c in ("rt", "mp", "lk", "st")]


def text(rng: Random, n: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n))


def made(*rows: tuple[str, int], name: str = "train") -> PromptSet:
    return PromptSet(name, tuple(Prompt.of(one, label=label, source="s") for one, label in rows))


def one_letter_off(one: str) -> str:
    return f"{one[:20]}q{one[21:]}"


RNG = Random(0)
TRAIN = [text(RNG) for _ in range(40)]


def test_each_kind_is_found_once_and_by_its_strictest_name() -> None:
    train = made(*((one, i % 2) for i, one in enumerate(TRAIN)))
    other = made(
        (TRAIN[3], 1),
        (f"  {TRAIN[4].upper()}!! ", 0),
        (one_letter_off(TRAIN[5]), 1),
        (text(RNG), 0),
        name="other",
    )
    found = leaks.between(train, other)
    assert [(one.kind, one.train, one.other) for one in found] == [
        ("exact", 3, 0),
        ("normalised", 4, 1),
        ("near", 5, 2),
    ]
    assert found[0].similarity == found[1].similarity == 1 > found[2].similarity >= leaks.NEAR
    np.testing.assert_array_equal(leaks.new(train, other, found), [False, False, False, True])
    rows = leaks.rows(train, other, found)
    assert [(row.train_id, row.eval_id) for row in rows] == [
        (train.prompts[one.train].id, other.prompts[one.other].id) for one in found
    ]
    assert all(row.dropped and row.same_label for row in rows)


def test_a_twin_stays_and_a_copy_with_the_other_label_does_not() -> None:
    """What is nearly the same and means the other thing is what a probe is to be held to."""
    train = made((TRAIN[0], 1), (TRAIN[1], 1))
    other = made((one_letter_off(TRAIN[0]), 0), (TRAIN[1].title(), 0), name="other")
    found = leaks.between(train, other)
    assert [one.kind for one in found] == ["near", "normalised"]
    np.testing.assert_array_equal(leaks.new(train, other, found), [True, False])
    assert [row.dropped for row in leaks.rows(train, other, found)] == [False, True]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), changed=st.integers(0, 3))
def test_hashing_misses_next_to_nothing_that_a_look_at_every_pair_finds(
    seed: int, changed: int
) -> None:
    rng = Random(seed)
    texts = [text(rng, 15) for _ in range(15)]
    copies = []
    for one in texts:
        words = one.split()
        for _ in range(changed):
            words[rng.randrange(len(words))] = rng.choice(WORDS)
        copies.append(" ".join(words))
    train = made(*((one, 1) for one in texts))
    other = made(*((one, 1) for one in dict.fromkeys(copies)), name="other")
    found = {one.other: one for one in leaks.between(train, other)}
    missed = 0
    for row, prompt in enumerate(other.prompts):
        mine = leaks.grams(leaks.normalised(prompt.text))
        each = [leaks.jaccard(mine, leaks.grams(leaks.normalised(one))) for one in texts]
        if max(each) < leaks.NEAR:
            assert row not in found
        elif row in found:
            assert found[row].similarity == pytest.approx(max(each))
        else:
            missed += 1
    assert missed <= 1


def test_what_is_alike_inside_a_set_is_of_one_group_and_in_one_fold() -> None:
    texts = [text(RNG) for _ in range(60)]
    rows = [(one, i % 2) for i, one in enumerate(texts)]
    rows += [(one_letter_off(one), i % 2) for i, one in enumerate(texts)]
    train = made(*rows)
    found = leaks.inside(train)
    assert {(one.train, one.other) for one in found} == {(i, i + 60) for i in range(60)}
    joined = leaks.grouped(train, found)
    assert len(set(joined.groups)) == 60 and joined.labels.tolist() == train.labels.tolist()
    fold = Folds.of(joined.labels, joined.groups).fold
    np.testing.assert_array_equal(fold[:60], fold[60:])
    apart = Folds.of(train.labels, train.groups).fold
    assert (apart[:60] != apart[60:]).any()  # as they stood, they straddle


def test_chains_join_and_groups_that_were_there_stay() -> None:
    first = text(RNG)
    chain = [first, one_letter_off(first), one_letter_off(f"{first[:40]}q{first[41:]}")]
    train = made(*((one, 1) for one in [*chain, text(RNG), text(RNG)]))
    grouped = replace(
        train,
        prompts=(*train.prompts[:3], *(replace(p, group="given") for p in train.prompts[3:])),
    )
    joined = leaks.grouped(grouped, leaks.inside(grouped))
    assert len(set(joined.groups[:3])) == 1 and list(joined.groups[3:]) == ["given"] * 2
    assert leaks.grouped(train, []).prompts == train.prompts


@pytest.mark.parametrize("odd", ["", "?", "...", "日本語の文", "a", "🙂🙂"])
def test_odd_texts(odd: str) -> None:
    train = made((TRAIN[0], 1), (odd, 0))
    assert [one.kind for one in leaks.between(train, made((odd, 0), name="o"))] == ["exact"]
    assert leaks.between(made((TRAIN[0], 1)), made((odd, 0), name="o")) == []


def test_no_prompt_of_the_miniatures_held_out_sets_stands_in_their_train_set() -> None:
    train = prompts.load("miniature:train")
    for split in ("test", "look-alikes", "held-out-objects"):
        assert leaks.between(train, prompts.load(f"miniature:{split}")) == []
    within = leaks.inside(train)
    assert within and all(
        train.prompts[one.train].group == train.prompts[one.other].group for one in within
    )
