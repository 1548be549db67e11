"""Defences are two weights an example; options that mean nothing are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.errors import InputError
from probes.models import ChatModel
from regularize.critics import Critic, Risks
from regularize.critics.constant import ConstantCritic
from regularize.data import examples
from regularize.defences import Defence
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.constant_kl import ConstantKL
from regularize.defences.filter import Filter
from regularize.defences.none import SFT
from regularize.defences.reweight import Reweight
from regularize.prepare import prepare
from tests.conftest import make_model, make_tokenizer

S = torch.tensor([0.0, 0.25, 1.0])
FLAGGED = Risks(np.array([0.1, 0.6, 0.9, 0.2]), np.array([False, False, True, True]))
UNKNOWN = FLAGGED._replace(flagged=None)


@pytest.mark.parametrize(
    ("defence", "alpha", "beta"),
    [
        (SFT(), [1, 1, 1], [0, 0, 0]),
        (Filter(), [1, 1, 1], [0, 0, 0]),
        (Reweight(), [1, 0.75, 0], [0, 0, 0]),
        (ConstantKL(0.3), [0.7, 0.7, 0.7], [0.3, 0.3, 0.3]),
        (AdaptiveKL(), [0.9, 0.7, 0.1], [0.1, 0.3, 0.9]),
        (AdaptiveKL(beta_min=0.0, beta_max=1.0), [1, 0.75, 0], [0, 0.25, 1]),
    ],
)
def test_the_weights_by_hand(defence: Defence, alpha: list[float], beta: list[float]) -> None:
    found = defence.weights(S)
    torch.testing.assert_close(found.alpha, torch.tensor(alpha, dtype=torch.float32))
    torch.testing.assert_close(found.beta, torch.tensor(beta, dtype=torch.float32))
    if not defence.needs_reference:
        assert not found.beta.any(), "it has no reference to be held to"


@given(low=st.floats(0, 1), high=st.floats(0, 1), s=st.floats(0, 1, width=32))
def test_beta_lies_between_its_ends_and_rises_with_the_risk(
    low: float, high: float, s: float
) -> None:
    low, high = sorted((low, high))
    defence = AdaptiveKL(beta_min=low, beta_max=high)
    defence.check()
    at_0, at_s, at_1 = defence.weights(torch.tensor([0.0, s, 1.0])).beta.tolist()
    assert low - 1e-6 <= at_0 <= at_s + 1e-6 and at_s <= at_1 + 1e-6 <= high + 2e-6


@pytest.mark.parametrize("kind", [AdaptiveKL, Reweight])
def test_a_sharpened_risk_is_the_flag(kind: Any) -> None:
    np.testing.assert_array_equal(kind(shape="sharpened").signal(FLAGGED), [0, 0, 1, 1])
    np.testing.assert_array_equal(kind().signal(FLAGGED), FLAGGED.s)
    np.testing.assert_array_equal(kind().signal(UNKNOWN), FLAGGED.s)
    with pytest.raises(InputError, match="no threshold to sharpen the risk at"):
        kind(shape="sharpened").signal(UNKNOWN)


def test_what_is_kept() -> None:
    np.testing.assert_array_equal(Filter().keeps(FLAGGED), [True, True, False, False])
    np.testing.assert_array_equal(Filter().keeps(UNKNOWN), [True, False, False, True])
    np.testing.assert_array_equal(Filter(0.15).keeps(FLAGGED), [True, False, False, False])
    np.testing.assert_array_equal(Filter(0.6).keeps(FLAGGED), [True, True, False, True])
    for defence in (SFT(), AdaptiveKL(), ConstantKL(), Reweight()):
        assert defence.keeps(FLAGGED).all()


@pytest.mark.parametrize(
    ("defence", "message"),
    [
        (AdaptiveKL(beta_min=-0.1), "--defence.beta-min -0.1: must lie between 0 and 1"),
        (AdaptiveKL(beta_max=1.1), "--defence.beta-max 1.1"),
        (AdaptiveKL(beta_min=0.9, beta_max=0.1), "is larger than --defence.beta-max 0.1"),
        (AdaptiveKL(smoothing=0.9), "needs --defence.granularity batch"),
        (AdaptiveKL(smoothing=1.0, granularity="batch"), "would never look at a second"),
        (AdaptiveKL(smoothing=-0.5, granularity="batch"), "--defence.smoothing -0.5"),
        (AdaptiveKL(beta_max=float("nan")), "--defence.beta-max nan"),
        (ConstantKL(1.5), "--defence.beta 1.5"),
        (Filter(2.0), "--defence.threshold 2.0"),
    ],
)
def test_options_that_mean_nothing(defence: Defence, message: str) -> None:
    with pytest.raises(InputError) as error:
        defence.check()
    assert message in str(error.value)
    for fine in (AdaptiveKL(smoothing=0.9, granularity="batch"), ConstantKL(), Filter(0.3), SFT()):
        fine.check()


# Prepared data


class Wrong(Critic):
    """Gives what it was told to."""

    def __init__(self, s: list[float]) -> None:
        self._s = s

    def assess(self, examples: Any, chat: Any) -> Risks:
        return Risks(np.array(self._s), None)


@pytest.fixture(scope="module")
def chat() -> ChatModel:
    return ChatModel("tiny", None, make_model("llama", n_layers=1), make_tokenizer())


ROWS = examples([{"prompt": f"{i}?", "completion": f"{i}!"} for i in range(3)])


def test_prepared_rows_keep_their_order_and_numbers(chat: ChatModel) -> None:
    found = prepare(
        chat, ROWS, critic=Wrong([0.1, 0.9, 0.4]), defence=Filter(), anchors=examples([ANCHOR])
    )
    rows = found.rows()
    assert [row["row"] for row in rows] == [0, 1, 2]
    assert [row["anchor"] for row in rows] == [False, False, True]
    assert [row["risk"] for row in rows] == [0.1, 0.4, 1.0]
    texts = [chat.tokenizer.decode(one.input_ids) for one in found.trained_on]
    assert all(mark in text for mark, text in zip(("0!", "2!", "a!"), texts, strict=True))
    assert [row["input_ids"] for row in rows] == [one.input_ids for one in found.trained_on]
    assert len(found.encoded) == len(found.examples) == len(found.s) == 3


ANCHOR = {"prompt": "a?", "completion": "a!"}


def test_what_cannot_be_prepared(chat: ChatModel) -> None:
    cases: list[tuple[Any, Critic | None, Defence, str]] = [
        ([], None, SFT(), "the training data hold no rows"),
        (ROWS, None, AdaptiveKL(), "AdaptiveKL needs a critic"),
        (ROWS, Wrong([0.1, 0.2]), AdaptiveKL(), "Wrong gave risks that are not one a row"),
        (ROWS, Wrong([0.1, 0.2, 1.5]), AdaptiveKL(), "Wrong gave risks"),
        (ROWS, Wrong([0.1, 0.2, float("nan")]), AdaptiveKL(), "Wrong gave risks"),
        (ROWS, ConstantCritic(0.9), Filter(), "Filter keeps none of the 3 rows"),
        (ROWS, None, ConstantKL(7), "--defence.beta 7"),
    ]
    for rows, critic, defence, message in cases:
        with pytest.raises(InputError) as error:
            prepare(chat, rows, critic=critic, defence=defence)
        assert message in str(error.value)
    anchors_alone = prepare(
        chat, ROWS, critic=ConstantCritic(0.9), defence=Filter(), anchors=examples([ANCHOR])
    )
    assert len(anchors_alone.rows()) == 1
