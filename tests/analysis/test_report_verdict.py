"""The verdict's rules: each from both sides of its mark, and never beyond the interval."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from analysis.report import marks, rules_changing, rules_reading, rules_using, verdict
from analysis.report.wording import bound, digits, percent, points, signed
from tests.analysis import synthetic
from tests.analysis import synthetic_sweep as made

NAN = float("nan")
ABLATE, ADD = rules_changing.EFFECTS


def score(**other):
    row = next(row for row in synthetic.scores(models=("m",), held_out=("a",))
               if row.readout == "layer" and row.held_out)  # fmt: skip
    one = replace(row, eval_set="a", auroc=0.9, auroc_lo=0.85, auroc_hi=0.95, n_pos=50, n_neg=40)
    return replace(one, **other)


INSIDE = score(eval_set="t", held_out=False, auroc=0.99, auroc_lo=0.98, auroc_hi=1.0)


@pytest.mark.parametrize(("lo", "hi", "word"), [
    (0.81, 0.9, "holds"), (0.8, 0.9, "holds"), (0.79, 0.8, "weak"), (0.7, 0.79, "fails"),
])  # fmt: skip
def test_an_interval_beside_its_mark(lo, hi, word):
    assert marks.beside(lo, hi, 0.8) == word


@given(st.lists(st.sampled_from(["holds", "weak", "fails"]), min_size=1))
def test_the_worst_set_decides(words):
    said = marks.worst(words)
    assert (said == "fails") == ("fails" in words)
    assert (said == "holds") == (set(words) == {"holds"})


@pytest.mark.parametrize(("rows", "word", "said"), [
    ([(0.2, 0.1, 0.3)], "holds", "+.200 [+.100, +.300] over tfidf-char (paired; n = 50/40)"),
    ([(0.2, 0.0, 0.3)], "weak", "the probe is not shown to read more than the words do"),
    ([(0.2, 0.1, 0.3), (0.0, -0.1, 0.1)], "weak", "of the 2 held-out sets is s1"),
    ([(-0.1, -0.2, 0.0)], "weak", "includes no difference"),
    ([(0.2, 0.1, 0.3), (-0.1, -0.2, -0.01)], "fails", "On s1 the words alone do better"),
    ([(0.2, 0.1, 0.3), (NAN, NAN, NAN)], "holds", "undefined on 1 more set"),
    ([(NAN, NAN, NAN)], "not computed", "undefined on every set"),
])  # fmt: skip
def test_the_lead_over_the_words(rows, word, said):
    margins = [made.margin(eval_set=f"s{i}", margin=m, margin_lo=lo, margin_hi=hi)
               for i, (m, lo, hi) in enumerate(rows)]  # fmt: skip
    claim = rules_reading.above_words(margins, [score(eval_set="s0")])
    assert claim.word == word
    assert said in claim.sentence


def test_a_lead_without_held_out_sets_is_weak_at_best():
    sure = made.margin(held_out=False)
    claim = rules_reading.above_words([sure], [])
    assert (claim.word, "No other set was scored" in claim.sentence) == ("weak", True)
    claim = rules_reading.above_words([replace(sure, margin_lo=-0.1)], [])
    assert (claim.word, "not shown to read more" in claim.sentence) == ("weak", True)
    # Beside a held-out set the train set has no say.
    low = replace(sure, margin=-0.3, margin_lo=-0.4, margin_hi=-0.2)
    assert rules_reading.above_words([low, made.margin()], []).word == "holds"


@given(st.lists(st.tuples(*[st.floats(-1, 1)] * 3).map(sorted), min_size=1, max_size=6))
def test_no_lead_is_claimed_beyond_an_interval(ends):
    margins = [made.margin(eval_set=f"s{i}", margin_lo=lo, margin=m, margin_hi=hi)
               for i, (lo, m, hi) in enumerate(ends)]  # fmt: skip
    claim = rules_reading.above_words(margins, [])
    assert (claim.word == "holds") == all(lo > 0 for lo, _, _ in ends)
    assert (claim.word == "fails") == any(hi < 0 for _, _, hi in ends)
    named = [row for row in margins if f"{row.eval_set}:" in claim.sentence
             or f"On {row.eval_set} " in claim.sentence]  # fmt: skip
    assert any(signed(row.margin) in claim.sentence for row in named)


@pytest.mark.parametrize(("rows", "word", "said"), [
    ([(0.9, 0.8, 0.95)], "holds", "a: AUROC .900 [.800, .950] (n = 50/40), against .990"),
    ([(0.9, 0.79, 0.95)], "weak", "a: AUROC .900 [.790, .950]"),
    ([(0.7, 0.6, 0.79)], "fails", "Better than chance, but with the whole interval below .8: a"),
    ([(0.6, 0.45, 0.75)], "fails", "the interval includes chance"),
    ([(0.3, 0.2, 0.49)], "fails", "lies below chance"),
    ([(NAN, NAN, NAN)], "not computed", "undefined on every held-out set"),
    ([(0.9, 0.85, 0.95), (NAN, NAN, NAN)], "holds", "undefined on 1 more set"),
    ([(0.88, 0.85, 0.9), (0.9, 0.5, 1.0)], "weak", "The interval of b reaches lower: .900 [.500"),
])  # fmt: skip
def test_the_worst_held_out_set(rows, word, said):
    scores = [score(eval_set=name, auroc=a, auroc_lo=lo, auroc_hi=hi)
              for name, (a, lo, hi) in zip("ab", rows, strict=False)]  # fmt: skip
    claim = rules_reading.carries_over([INSIDE, *scores])
    assert claim.word == word
    assert said in claim.sentence
    assert rules_reading.carries_over([INSIDE]).word == "not computed"


@pytest.mark.parametrize(("other", "word", "said"), [
    ({}, "holds", "choosing has added .003"),
    ({"optimism": 0.0101}, "weak", "is the one to quote"),
    ({"selected": 0.9881, "optimism": 0.0101}, "fails", "above the interval of the nested"),
    ({"selected": 0.9881}, "fails", "above the interval of the nested"),
    ({"nested": 0.6, "nested_lo": 0.5, "nested_hi": 0.99}, "weak", "includes chance"),
    ({"nested": 0.3, "nested_lo": 0.2, "nested_hi": 0.4}, "fails", "below chance"),
    ({"nested": NAN}, "not computed", "undefined"),
])  # fmt: skip
def test_the_choice_of_the_layer(other, word, said):
    claim = rules_reading.layer_choice([made.nested(**other)], [made.layer()])
    assert claim.word == word
    assert said in claim.sentence
    assert word == "not computed" or "it is the best in 62.0 %" in claim.sentence


@pytest.mark.parametrize(("rows", "word", "said"), [
    ([{}], "holds", "xstest, 0.0 % [0.0 %, 0.9 %] of 400 harmless prompts flagged"),
    ([{"realised_fpr_hi": 0.0101}], "weak", "Asked for 1 %"),
    ([{"n_neg": 100, "realised_fpr_hi": 0.036}], "weak", "too few to speak of 1 %: it takes 368"),
    ([{"realised_fpr": 0.03, "realised_fpr_lo": 0.011, "realised_fpr_hi": 0.05}], "fails",
     "lies above 1 % on 1 set"),
    ([{"realised_fpr": 0.03, "realised_fpr_lo": 0.01, "realised_fpr_hi": 0.05}], "weak", "3.0 %"),
    ([{}, {"eval_set": "hard", "n_pos": 0}], "holds", "harmless prompts alone: hard, 0.0 %"),
    ([{"held_out": False}], "not computed", "No held-out set"),
    ([{"threshold": NAN, "n_calibration": 30}], "weak", "the 30 harmless prompts"),
])  # fmt: skip
def test_false_alarms_at_the_frozen_threshold(rows, word, said):
    claim = rules_using.false_alarms([made.operating(**other) for other in rows])
    assert claim.word == word
    assert said in claim.sentence


@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.2])
def test_how_many_negatives_a_rate_takes(rate):
    n = rules_using.needed(rate)
    ends = [beta.ppf(0.975, 1, m) for m in (n - 1, n)]  # Clopper-Pearson of 0 of m
    assert ends[1] <= rate < ends[0]


@pytest.mark.parametrize(("lo", "hi", "word"), [
    (0.5, 0.9, "holds"), (0.49, 0.9, "weak"), (0.1, 0.49, "fails")
])  # fmt: skip
def test_the_share_that_is_caught(lo, hi, word):
    claim = rules_using.catches([made.operating(), made.operating(tpr_lo=lo, tpr_hi=hi)])
    assert claim.word == word
    assert percent(lo) in claim.sentence


@pytest.mark.parametrize(("other", "word", "said"), [
    ({"p_value": 0.05}, "holds", "over 100 permutations of the labels; p = .050"),
    ({"p_value": 0.06}, "fails", "it does as well"),
    ({"p_value": 0.5, "draws": 10}, "weak", "below .091"),
    ({"p_value": NAN}, "not computed", "undefined"),
])  # fmt: skip
def test_controls(other, word, said):
    claim = rules_reading.beats("permuted-labels", [made.control(**other)], 4)
    assert claim.word == word
    assert said in claim.sentence
    assert rules_reading.beats("random-direction", [made.control()], 4).word == "not computed"


@pytest.mark.parametrize(("other", "word"), [
    ({"ece": 0.05}, "holds"),
    ({"ece": 0.05, "n": 199}, "weak"),
    ({"ece": 0.059}, "weak"),  # by chance .0595 at n = 450
    ({"ece": 0.06}, "fails"),
    ({"held_out": False}, "not computed"),
    ({"frozen": False, "calibration": "platt"}, "not computed"),
    ({"frozen": False}, "holds"),
])  # fmt: skip
def test_calibration(other, word):
    assert rules_using.calibrated([made.calibration(**other)]).word == word


def test_what_ten_bins_show_by_chance():
    rng, n = np.random.default_rng(0), 400
    for p, near in ((0.5, True), (0.05, False)):
        shares = rng.binomial(n // 10, p, size=(4000, 10)) / (n // 10)
        by_chance = np.abs(shares - p).mean()
        assert by_chance <= 1.02 * rules_using.by_chance(n)
        assert (by_chance > 0.97 * rules_using.by_chance(n)) == near
    assert rules_using.by_chance(0) == math.inf


@pytest.mark.parametrize(("rows", "word", "said"), [
    ([{}], "holds", "1 pair with 1 other set found; 1 prompt dropped"),
    ([{"dropped": False}], "weak", "xstest counts prompts that were trained on"),
    ([{"dropped": False, "kind": "normalised"}], "fails", "1 of them with the same letters"),
    ([{"dropped": False, "same_label": False}], "holds", "1 pair with 1 other set"),
    ([{"dropped": False, "same_label": False, "kind": "exact"}], "weak", "both harmful and"),
    ([{"eval_set": made.TRAIN}], "weak", "both sides of a fold"),
    ([{"eval_set": made.TRAIN, "same_label": False}], "holds", "No pair with another set"),
    ([{"eval_set": made.TRAIN, "same_group": True}], "holds", "No pair with another set"),
])  # fmt: skip
def test_leaks(rows, word, said):
    claim = rules_using.leaks([made.leak(**other) for other in rows])
    assert claim.word == word
    assert said in claim.sentence


def test_leaks_that_were_not_looked_for_are_not_absent():
    assert rules_using.leaks(None).word == "not computed"
    assert rules_using.leaks(None, searched=True).word == "holds"


def random(n=19, **other):
    return [{"direction": "random", "draw": i, "change": -0.02} | other for i in range(n)]


NONSENSE = {"metric": "incoherent", "value": 0.1}


@pytest.mark.parametrize(("rows", "word", "said"), [
    ([{}, *random()], "holds", "from 95.0 % to 55.0 %: −40.0 points [−48.0, −31.0] (n = 100"),
    ([{}, *random()], "holds", "Of 19 random directions of the same length the largest change is "
     "−2.0; p = .050"),
    ([{}, *random(18)], "weak", "So few directions"),
    ([{}, *random(18), *random(1, draw=18, change=-0.4)], "weak", "p = .100. It need not be this"),
    ([{}, *random(38), *random(1, draw=38, change=-0.4)], "holds", "p = .050"),
    ([{}], "weak", "No random direction was tried"),
    ([{"change_hi": 0.0}, *random()], "weak", "no effect is shown"),
    ([{"change": 0.2, "change_lo": 0.1, "change_hi": 0.3}, *random()], "fails", "other way round"),
    ([{"value": 0.0, "change": -0.04}, *random()], "weak", "nothing that a change could show"),
    ([{}, *random(), NONSENSE], "weak", "broken rather than steered"),
    ([{}, *random(), NONSENSE | {"value": 0.09}], "holds", "p = .050"),
    ([{"change": NAN}, *random()], "not computed", "no ablate row"),
    ([{"label": 0}], "not computed", "no ablate row"),
    ([{"target": "class-mean"}], "not computed", "no ablate row"),
    ([{}, *random(), {"eval_set": "b", "change_hi": 0.1}], "weak", "n = 100, b"),
])  # fmt: skip
def test_removing_the_direction(rows, word, said):
    claim = rules_changing.changes(ABLATE, [made.causal(**other) for other in rows], 4)
    assert claim.word == word
    assert said in claim.sentence


def test_another_layer_has_no_say_where_the_probes_own_was_changed():
    bad = made.causal(layer=2, change=0.2, change_lo=0.1, change_hi=0.3)
    good = [made.causal(**other) for other in ({}, *random())]
    assert rules_changing.changes(ABLATE, [bad, *good], 4).word == "holds"
    assert rules_changing.changes(ABLATE, [bad, *good], 2).word == "fails"
    assert rules_changing.changes(ABLATE, [bad], 4).word == "fails"


def test_a_choice_among_strengths_is_given_to_the_random_directions_too():
    def add(strength, change, **other):
        return made.causal(label=0, intervention="add", strength=strength, change=change, value=0.6,
                           change_lo=change - 0.05, change_hi=change + 0.05, **other)  # fmt: skip

    own = [add(1.0, 0.3), add(4.0, 0.2)]
    flat = [add(s, 0.1, direction="random", draw=i) for s in (1.0, 4.0) for i in range(19)]
    claim = rules_changing.changes(ADD, own + flat, 4)
    assert (claim.word, "added (1 SD) at layer 4" in claim.sentence) == ("holds", True)
    # At no single strength is the direction beaten by more than the other's choice allows.
    strong = [add(4.0, 0.35, direction="random", draw=i) for i in range(10)]
    claim = rules_changing.changes(ADD, own + flat[:19] + strong, 4)
    assert (claim.word, "p = .550" in claim.sentence) == ("weak", True)


@pytest.mark.parametrize(("lo", "hi", "word"), [
    (0.8, 0.9, "holds"), (0.79, 0.9, "weak"), (0.6, 0.79, "fails")
])  # fmt: skip
def test_drift_is_judged_where_each_run_ends(lo, hi, word):
    rows = [made.drift(step=50, auroc=0.1, auroc_lo=0.0, auroc_hi=0.2), made.drift(step=0),
            made.drift(auroc=hi, auroc_lo=lo, auroc_hi=hi), made.drift(seed=1)]  # fmt: skip
    claim = rules_changing.drifted(rows)
    assert claim.word == word
    assert "2 runs" in claim.sentence


def test_every_claim_says_what_its_mark_is_and_which_table_it_lacks(tmp_path):
    from analysis import results
    from analysis.report.cases import cases

    everything = cases(results.read_all(made.write(tmp_path / "a")), 0.01)[0]
    assert (everything.layer, everything.fpr) == (4, 0.01)
    full = verdict.judge(everything)
    assert [name for name, _ in verdict.explained()] == [claim.name for claim in full.claims]
    assert not full.of("not computed")
    assert {claim.word for claim in full.claims} == {"holds", "weak", "fails"}

    alone = verdict.judge(cases(results.read_all(made.write(tmp_path / "b", "scores")))[0])
    assert len(alone.of("not computed")) == len(full.claims) - 1
    assert all("is not among the results" in claim.sentence for claim in alone.of("not computed"))


def test_numbers_as_they_are_written():
    assert [digits(x) for x in (0.987, -0.0132, 1.0, -0.0001, NAN)] == [
        ".987", "−.013", "1.000", ".000", "–"]  # fmt: skip
    assert [signed(x) for x in (0.31, -0.31, 0.0, NAN)] == ["+.310", "−.310", ".000", "–"]
    assert [points(x) for x in (0.4, -0.4, 0.0001)] == ["+40.0", "−40.0", "0.0"]
    held = "n~=~3 is 95~% [.1,~.2] [see a]"
    assert bound("n = 3 is 95 % [.1, .2] [see a]") == held.replace("~", "\N{NO-BREAK SPACE}")
