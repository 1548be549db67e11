"""Arms: names, marks that tell them apart, and which of them belong in one picture."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from analysis import arms
from tests.analysis import synthetic


def table(pairs):
    return pd.DataFrame(pairs, columns=["defence", "critic"])


def cells(*settings, n=1):
    rows = pd.DataFrame(settings * n, columns=arms.SETTING)
    return rows.assign(defence="d", critic="none")


@pytest.mark.parametrize(
    "defence, critic, name, family",
    [
        ("before", "none", "before training", "before"),
        ("none", "none", "SFT", "none"),
        ("constant-kl-.5", "none", "constant-kl-.5", "constant-kl"),
        ("constant-kl-0.9", "none", "constant-kl-0.9", "constant-kl"),
        ("adaptive-kl", "probe-32", "adaptive-kl, probe-32", "adaptive-kl"),
        ("anchored+anchors", "probe", "anchored+anchors, probe", "anchored"),
        ("lisa", "none", "lisa", "lisa"),
    ],
)
def test_names_and_families(defence, critic, name, family):
    assert arms.label(defence, critic) == name
    assert arms.family(defence) == family


def test_colour_is_the_family_and_marker_the_critic_and_twenty_arms_differ_in_grey():
    found = arms.arms(table(list(synthetic.MANY_ARMS)))
    assert len(found) == 20
    colours, markers = {}, {}
    for (defence, critic), arm in found.items():
        assert colours.setdefault(arms.family(defence), arm.mark.colour) == arm.mark.colour
        assert markers.setdefault(critic, arm.mark.marker) == arm.mark.marker
        assert np.dot(to_rgb(arm.mark.colour), [0.299, 0.587, 0.114]) < 0.72
    assert len(set(colours.values())) == len(colours)
    assert len(set(markers.values())) == len(markers)
    assert len({arm.mark for arm in found.values()}) == 20
    assert [arm.number for arm in found.values()] == list(range(20))


def test_the_untrained_model_comes_first_and_its_absence_changes_no_number():
    whole = arms.arms(table([("none", "none"), ("lisa", "none"), ("before", "none")]))
    assert [arm.number for arm in whole.values()] == [0, 1, 2]
    assert next(iter(whole)) == ("before", "none")
    trained = arms.arms(table([("none", "none"), ("lisa", "none")]))
    assert trained == {pair: arm for pair, arm in whole.items() if pair[0] != "before"}


def test_the_common_cell_is_where_two_sweeps_cross():
    cross = [("mixed", s, 5e-3) for s in (0.01, 0.05, 0.09)]
    cross += [("mixed", 0.09, r) for r in (5e-4, 5e-5)]
    for n in (1, 3):
        found = arms.common_cell(cells(*cross, *[("all-harmful", 1.0, 5e-3)] * 9, n=n))
        assert set(found[arms.SETTING].itertuples(index=False, name=None)) == {
            ("mixed", 0.09, 5e-3)
        }
        assert len(found) == n
    # Without the mixed attack it is the commonest; an unknown share is a share.
    other = cells(("mine", math.nan, 1e-3), ("mine", math.nan, 1e-3), ("yours", 0.5, 1e-2))
    assert arms.common_cell(other)["attack"].tolist() == ["mine", "mine"]


def test_the_longest_sweep_differs_in_one_thing_alone():
    rows = cells(
        ("mixed", 0.01, 1e-3), ("mixed", 0.09, 1e-3), ("mixed", 0.09, 1e-2), ("mixed", 0.5, 1e-1),
        *[("mine", share, 1e-3) for share in (0.1, 0.2, 0.3)], ("mine", math.nan, 1e-3),
    )  # fmt: skip
    by_share = arms.longest_sweep(rows, "harmful_share")
    assert by_share["harmful_share"].tolist() == [0.01, 0.09]
    assert set(by_share["attack"]) == {"mixed"}
    assert arms.longest_sweep(rows, "learning_rate")["learning_rate"].tolist() == [1e-3, 1e-2]
    mine = rows[rows["attack"] == "mine"]
    assert arms.longest_sweep(mine, "harmful_share")["harmful_share"].tolist() == [0.1, 0.2, 0.3]
    assert arms.longest_sweep(mine, "learning_rate").empty
    # An arm with one value alone has no line.
    lone = pd.concat([rows, cells(("mixed", 0.05, 1e-3)).assign(defence="other")])
    pd.testing.assert_frame_equal(arms.longest_sweep(lone, "harmful_share"), by_share)


@pytest.mark.parametrize(
    "settings, words",
    [
        ([("mixed", 0.09, 5e-3)], "mixed, 9 % harmful, learning rate 5e-3"),
        ([("mixed", 1 / 11, 2e-5)], "mixed, 9.09 % harmful, learning rate 2e-5"),
        ([("all-harmful", 1.0, 1.6e-3)], "all-harmful, learning rate 1.6e-3"),
        ([("mine", math.nan, math.nan)], "mine"),
        ([("none", math.nan, math.nan)], ""),
        ([("mixed", 0.09, 5e-3), ("mixed", 0.01, 5e-3)], "mixed, learning rate 5e-3"),
    ],
)
def test_a_setting_in_words_leaves_out_what_differs_or_is_unknown(settings, words):
    assert arms.setting(cells(*settings)) == words
