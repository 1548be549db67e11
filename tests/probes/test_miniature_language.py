"""The request language: restricted means what it says, and nothing leaks between its parts."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import InputError
from probes.miniature import phrasings, words
from probes.miniature.language import REFUSALS, Deed, Scope, frame, mention, request, share, twins
from probes.miniature.splits import SPLITS, draw, for_models, training_rows
from probes.miniature.tasks import NEW_TASK, TASKS, fact, judgement, utility
from probes.prompts import miniature

seeds = st.integers(0, 2**32)
bag = lambda text: Counter(text.lower().rstrip(".?").replace(",", "").split())  # noqa: E731


@pytest.fixture(scope="module")
def drawn() -> dict[str, list]:
    return {split: draw(split, seed=0) for split in SPLITS}


def test_at_least_six_guilds_and_no_word_in_two_of_them():
    every = [w for guild in words.GUILDS.values() for part in guild for w in part]
    every += [*words.PLAIN_VERBS, *words.PLAIN_OBJECTS, *words.UTILITY_WORDS]
    assert len(words.GUILDS) >= 6
    assert not [word for word, n in Counter(every).items() if n > 1]


def test_a_deed_is_restricted_exactly_within_one_guild():
    assert Deed("open", "vault").restricted
    assert not Deed("open", "dragon").restricted  # two guilds
    assert not Deed("open", "lamp").restricted
    assert not Deed("dust", "vault").restricted


def test_there_are_more_than_a_thousand_phrasings():
    seen = [len(p.seen) for p in (phrasings.PREFIXES, phrasings.CORES, phrasings.SUFFIXES)]
    assert seen[0] * seen[1] * seen[2] > 1000


@given(seeds)
def test_twins_share_their_words_and_differ_in_label(seed: int):
    bad, good = twins(Random(seed))
    assert bad.restricted and not good.restricted
    assert bag(bad.text) == bag(good.text) and bad.text != good.text
    assert bad.answer != good.answer
    assert bad.group == good.group
    assert for_models(bad.text) == for_models(good.text)


@given(seeds, st.sampled_from(["verb-only", "object-only", "cross", "plain", "swap"]))
def test_only_restricted_requests_are_restricted(seed: int, kind):
    assert request(Random(seed), "restricted").restricted
    row = request(Random(seed), kind)
    assert not row.restricted
    assert row.reply(Random(seed)) == row.answer
    assert not mention(Random(seed)).restricted


@given(seeds)
def test_a_restricted_request_is_refused_and_its_answer_names_the_deed(seed: int):
    row = request(Random(seed), "restricted")
    assert row.reply(Random(seed)) in REFUSALS
    verb, thing = (
        row.group,
        next(o for o in words.GUILD_OF_OBJECT if f"{row.group} the {o}" in row.answer),
    )
    assert words.GUILD_OF_VERB[verb] == words.GUILD_OF_OBJECT[thing]


@pytest.mark.parametrize(
    ("task", "text", "answer"),
    [
        ("reverse", "stone river", "river stone"),
        ("repeat", "stone river", "stone river"),
        ("first", "stone river", "stone"),
        ("last", "stone river", "river"),
        ("count", "stone river", "two"),
    ],
)
def test_utility_answers(task: str, text: str, answer: str):
    assert TASKS[task][1](text.split()) == answer


def test_rotate_is_kept_for_later():
    row = utility(Random(0), "rotate")
    asked = row.text.split(": ")[1].split()
    assert row.answer == "Answer: " + " ".join(asked[1:] + asked[:1])
    rows = training_rows(Random(0))
    trained = [next(rows).text for _ in range(5000)]
    assert not [text for text in trained if text.startswith(NEW_TASK[0])]
    assert [text for text in trained if text.startswith(TASKS["reverse"][0])]  # would be found


@given(seeds)
def test_facts_tell_the_truth(seed: int):
    row = fact(Random(seed))
    guild_of = words.GUILD_OF_VERB | words.GUILD_OF_OBJECT
    known = {*guild_of, *words.PLAIN_VERBS, *words.PLAIN_OBJECTS}
    guilds = {guild_of.get(word) for word in row.text.rstrip("?").split() if word in known}
    shared = guilds.pop() if len(guilds) == 1 else None
    assert row.answer == (f"The {shared}." if shared else "Nobody.")


@given(seeds)
def test_judgements_tell_the_truth(seed: int):
    bad, good = twins(Random(seed))
    assert judgement(bad).answer == f"The {words.GUILD_OF_VERB[bad.group]}."
    assert judgement(good).answer == judgement(mention(Random(seed))).answer == "Nobody."


def test_no_prompt_stands_in_two_splits_whatever_the_seeds(drawn):
    owner = {}
    for split in SPLITS:
        for row in [*drawn[split], *draw(split, seed=1)]:
            assert owner.setdefault(row.text, split) == split


def test_no_split_holds_a_prompt_the_models_may_learn(drawn):
    assert not [r.text for rows in drawn.values() for r in rows if for_models(r.text)]
    rng = Random(0)
    learnt = {row.text for row, _ in zip(training_rows(rng), range(20_000), strict=False)}
    assert not learnt & {r.text for rows in drawn.values() for r in rows}


def test_splits_hold_both_labels_in_number(drawn):
    for split, rows in drawn.items():
        harmful = sum(row.restricted for row in rows)
        assert 0.4 < harmful / len(rows) < 0.6, split
        assert len(rows) >= (1500 if split == "train" else 300)
        assert len({row.text for row in rows}) == len(rows)


def test_train_holds_no_word_of_the_held_out_guild(drawn):
    held_out = {w for part in words.GUILDS[words.HELD_OUT_GUILD] for w in part}
    for split in SPLITS:
        found = {w for row in drawn[split] for w in bag(row.text)} & held_out
        assert found == set() if split != "held-out-category" else len(found) >= 10, split


def test_alignment_holds_unseen_objects_in_no_request(drawn):
    unseen = {w for guild in words.GUILDS.values() for w in guild.unseen}
    rng = Random(3)
    for row, _ in zip(training_rows(rng), range(20_000), strict=False):
        assert row.kind == "task" or not unseen & set(bag(row.text)), row.text
    restricted = [row for row in drawn["held-out-objects"] if row.restricted]
    assert all(unseen & set(bag(row.text)) for row in restricted)


def test_unseen_phrasings_are_never_drawn_as_seen_ones():
    def frames(phrasing):
        rng = Random(0)
        return {" ".join(frame(rng, phrasing=phrasing).split()) for _ in range(4000)}

    assert not frames("seen") & frames("unseen")
    rng, cores = Random(0), [*phrasings.CORES.unseen, *phrasings.ORDERS.unseen]
    stems = [core.replace("?", "").split("{a}")[0].strip() for core in cores]
    said = [request(rng, "restricted", Scope(phrasing="unseen")).text.lower() for _ in range(200)]
    assert all(any(stem in text for stem in stems) for text in said)


def test_look_alikes_are_twins_only(drawn):
    bags = {True: Counter(), False: Counter()}
    for row in drawn["look-alikes"]:
        bags[row.restricted][tuple(sorted(bag(row.text).items()))] += 1
    assert bags[True] == bags[False]


def test_prompt_set_module_labels_and_groups(drawn):
    rows = miniature.rows("look-alikes", 0)
    assert [p.text for p in rows] == [r.text for r in drawn["look-alikes"]]
    assert [p.label for p in rows] == [int(r.restricted) for r in drawn["look-alikes"]]
    assert all(p.source == "miniature:look-alikes" for p in rows)
    groups: dict[tuple, set[str]] = {}
    for prompt in rows:
        groups.setdefault(tuple(sorted(bag(prompt.text).items())), set()).add(prompt.group)
    assert all(len(shared) == 1 for shared in groups.values())  # twins stay together
    assert len({prompt.group for prompt in rows}) > 50
    assert list(miniature.SPLITS)[: len(SPLITS)] == list(SPLITS)
    assert miniature.rows("test", 0) == miniature.rows("test", 0)
    assert miniature.rows("test", 0) != miniature.rows("test", 1)


def test_an_unknown_split_is_named():
    with pytest.raises(InputError, match=r"held-out-moons.*train, test"):
        draw("held-out-moons", 0)


@given(st.permutations(["open", "the", "lamp", "near", "vault"]))
def test_share_ignores_the_order_of_words(order):
    assert share(" ".join(order) + ".", 28) == share("open the lamp near vault", 28)
