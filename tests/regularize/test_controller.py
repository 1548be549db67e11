"""beta by a budget: the rule against a plain loop, the drift against whole distributions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_utils import set_seed

from probes.errors import InputError
from probes.models import ChatModel
from regularize import controller
from regularize.controller import LEAST, MOST, Betas, Yardstick, betas, log_odds, moved
from regularize.data import examples
from regularize.defences import Steps
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.measures import Arm
from regularize.trainer import STEPS, RegularizedTrainer
from tests.conftest import make_tokenizer
from tests.regularize.training import (
    SAFE_ROWS,
    adapted,
    distance,
    equal,
    lora,
    run,
    tiny,
    trained,
    trainer,
)

SAFE = examples(SAFE_ROWS)
DRIFTS = st.lists(st.floats(0, 5), max_size=20)
BETA = st.floats(0.01, 0.99)


def by_hand(
    drifts: list[float], budget: float, *, least: float, most: float, rate: float
) -> list[float]:
    """beta_max after each look, as it is written in the docstring."""
    found, beta = [], most
    for drift in drifts:
        e = min(max(drift / budget - 1, -0.2), 0.2)
        odds = beta / (1 - beta) * math.exp(rate * e)
        # Its ends: beta_min below, and what counts as 1 above.
        beta = min(max(odds / (1 + odds), least), MOST)
        found.append(1.0 if beta >= MOST else beta)
    return found


def by_us(
    drifts: list[float], budget: float, *, least: float, most: float, rate: float
) -> list[float]:
    at, found = log_odds(most), []
    for drift in drifts:
        at = moved(at, drift, budget, rate=rate, floor=log_odds(least))
        found.append(betas(at, Betas(least, most), both=False).most)
    return found


@given(DRIFTS, st.floats(1e-3, 3), BETA, BETA, st.floats(0.01, 20))
def test_the_rule_is_that_of_a_plain_loop(
    drifts: list[float], budget: float, a: float, b: float, rate: float
) -> None:
    least, most = sorted((a, b))
    how: dict[str, Any] = {"least": least, "most": most, "rate": rate}
    assert by_us(drifts, budget, **how) == pytest.approx(by_hand(drifts, budget, **how), abs=1e-6)


def test_for_a_small_rate_it_is_that_of_ziegler() -> None:
    odds, rate = 0.9 / 0.1, 1e-3
    for drift in (0.01, 0.1, 0.11, 3.0):
        e = min(max(drift / 0.1 - 1, -0.2), 0.2)
        found = math.exp(moved(math.log(odds), drift, 0.1, rate=rate, floor=-9))
        assert found == pytest.approx(odds * (1 + rate * e), rel=1e-6)


@pytest.mark.parametrize("least", [0.0, 0.1, 0.5])
def test_no_drift_takes_beta_to_its_least_and_a_huge_one_to_1(least: float) -> None:
    how: dict[str, Any] = {"least": least, "most": 0.9, "rate": 2.0}
    assert by_us([0.0] * 60, 0.1, **how)[-1] == least
    assert by_us([50.0] * 60, 0.1, **how)[-1] == 1.0
    back = by_us([50.0] * 60 + [0.0] * 60, 0.1, **how)
    assert back[59] == 1.0 and back[-1] == least  # and down again
    assert by_us([0.1] * 9, 0.1, **how)[-1] == pytest.approx(0.9)  # at the budget it stays
    for budget, end in ((math.inf, least), (0.0, 1.0)):
        assert by_us([0.3] * 60, budget, **how)[-1] == end
    assert by_us([0.0] * 9, 0.0, **how)[-1] == pytest.approx(0.9)  # just at a budget of nothing


@given(st.floats(-8, 8), BETA, BETA)
def test_both_betas_move_by_one_factor_of_their_odds(by: float, a: float, b: float) -> None:
    least, most = sorted((a, b))
    floor, top = log_odds(least), log_odds(MOST)
    at = min(max(log_odds(most) + by, floor), top)
    found = betas(at, Betas(least, most), both=True)
    assert 0 <= found.least <= found.most + 1e-12 <= 1 + 2e-12
    if found.least > LEAST and found.most < 1:
        shift = at - log_odds(most)
        assert log_odds(found.least) - log_odds(least) == pytest.approx(shift, abs=1e-6)


# The drift


def chat_of(model: Any) -> ChatModel:
    return ChatModel("tiny", None, model, make_tokenizer())


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_drift_is_the_kl_over_whole_distributions(direction: Any) -> None:
    reference, policy = tiny(), adapted()
    yardstick = Yardstick(reference, chat_of(reference), SAFE, n=4)
    assert len(yardstick.rows) == 4
    assert yardstick.kl(reference, direction) < 1e-6  # and nothing has drifted yet
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.add_(
                    0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
                )
    total, n = 0.0, 0
    exact, other = tiny().double(), policy.double()
    with torch.no_grad():
        for row in yardstick.rows:
            ids, labels = torch.tensor(row.input_ids), torch.tensor(row.labels)
            log_p, log_q = (
                one(input_ids=ids[None]).logits[0, :-1][labels[1:] != -100].log_softmax(-1)
                for one in (exact, other)
            )
            if direction == "reverse":
                log_p, log_q = log_q, log_p
            total += float((log_p.exp() * (log_p - log_q)).sum())
            n += len(log_p)
    assert total / n > 1e-4
    assert yardstick.kl(policy.float(), direction) == pytest.approx(total / n, rel=1e-3)


def test_a_trained_head_does_not_move_the_yardstick() -> None:
    model = tiny()
    yardstick = Yardstick(model, chat_of(model), SAFE, n=4)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(1.5)
    assert yardstick.kl(model) > 1e-4


# In training


def budgeted(tmp_path: Path, **options: Any) -> RegularizedTrainer:
    """Looks at every step, but for what is given."""
    known = {"kl_budget": 0.01, "kl_every": 1, "kl_prompts": 4}
    how = {name: options.pop(name) for name in list(options) if name.startswith(("kl_", "beta_"))}
    defence = AdaptiveKL(**{**known, **how})
    set_seed(0)
    return trainer(tmp_path, defence=defence, safe=SAFE, **options)


def test_beta_moves_as_the_measured_drift_says(tmp_path: Path) -> None:
    made = budgeted(tmp_path, kl_every=2, kl_rate=1.5)
    made.train()
    rows = controller.rows(made.state.log_history, Arm("tiny", seed=3))
    assert [row.step for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [math.isnan(row.drift) for row in rows] == [True, True, False, False, False, False]
    # Looked at before the third and the fifth step.
    drifts = [rows[2].drift, rows[4].drift]
    assert rows[3].drift == drifts[0] != drifts[1] and min(drifts) > 0
    ours = [row.beta_max for row in rows]
    wanted = by_hand(drifts, 0.01, least=0.1, most=0.9, rate=1.5)
    first, second = wanted
    assert ours == pytest.approx([0.9, 0.9, first, first, second, second], rel=1e-6)
    assert {row.budget for row in rows} == {0.01} and {row.beta_min for row in rows} == {0.1}
    # What was logged of the examples' own beta follows from these.
    for entry, row in zip(made.state.log_history, rows, strict=False):
        at = row.beta_min + (row.beta_max - row.beta_min) * entry["risk"]
        assert entry["beta"] == pytest.approx(at, rel=1e-5)


@pytest.mark.parametrize(("budget", "end"), [(math.inf, 0.1), (0.0, 1.0)])
def test_a_budget_of_nothing_and_one_without_end(tmp_path: Path, budget: float, end: float) -> None:
    made = budgeted(tmp_path, kl_budget=budget, kl_rate=20.0)
    made.train()
    rows = controller.rows(made.state.log_history, Arm("tiny"))
    assert rows[-1].beta_max == end and rows[0].beta_max == 0.9


def test_without_a_budget_nothing_is_computed(tmp_path: Path) -> None:
    set_seed(0)
    plain = trainer(tmp_path / "a", defence=AdaptiveKL(kl_every=1, kl_rate=9.0), safe=SAFE)
    assert type(plain._acts) is Steps
    plain.train()
    assert not controller.rows(plain.state.log_history, Arm("tiny"))
    assert equal(trained(plain.model), run(tmp_path / "b"))  # to the last bit
    assert repr(AdaptiveKL(kl_every=9)) == repr(AdaptiveKL())
    assert repr(AdaptiveKL(kl_budget=1.0)) != repr(AdaptiveKL(kl_budget=1.0, kl_every=9))


def test_to_look_changes_nothing_and_to_move_does(tmp_path: Path) -> None:
    def end(folder: str, **options: Any) -> Any:
        made = budgeted(tmp_path / folder, model=tiny(dropout=0.2), **options)
        made.train()
        return trained(made.model)

    fixed = run(tmp_path / "fixed", model=tiny(dropout=0.2))
    assert distance(end("looks", kl_rate=1e-9), fixed) < 1e-6
    assert distance(end("moves", kl_rate=20.0), fixed) > 1e-3


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_a_resumed_run_goes_on_with_its_beta(full: bool, tmp_path: Path) -> None:
    how: dict[str, Any] = {
        "full": full,
        "kl_every": 2,
        "args": {
            "save_strategy": "steps",
            "save_steps": 3,
            **({"learning_rate": 0.02} if full else {}),
        },
    }
    whole = budgeted(tmp_path / "whole", **how)
    whole.train()
    checkpoint = tmp_path / "whole" / "out" / "checkpoint-3"

    def resumed(folder: str) -> Any:
        made = budgeted(tmp_path / folder, **how)
        made.train(resume_from_checkpoint=str(checkpoint))
        return made

    again = resumed("again")
    assert distance(trained(again.model), trained(whole.model)) < 1e-7
    first, second = (controller.rows(one.state.log_history, Arm("t")) for one in (whole, again))
    assert [row.beta_max for row in second] == pytest.approx([row.beta_max for row in first])
    (checkpoint / STEPS).unlink()  # positive control
    assert distance(trained(resumed("without").model), trained(whole.model)) > 1e-6


def test_a_checkpoint_of_another_defence_is_refused(tmp_path: Path) -> None:
    made = budgeted(tmp_path)
    with pytest.raises(InputError, match="has no drift: it is of another defence"):
        made._acts.restore({"log_odds": torch.tensor(0.0)})


def test_the_drift_is_from_the_reference_that_was_given(tmp_path: Path) -> None:
    other = tiny()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    made = budgeted(tmp_path, kl_rate=1e-9, reference_model=other)
    made.train()
    first = controller.rows(made.state.log_history, Arm("t"))[1].drift
    own = budgeted(tmp_path / "own", kl_rate=1e-9)
    own.train()
    assert first > 2 * controller.rows(own.state.log_history, Arm("t"))[1].drift


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_budget": -0.1}, "--defence.kl-budget -0.1: nats, and not negative"),
        ({"kl_budget": math.nan}, "--defence.kl-budget nan"),
        ({"kl_every": 0}, "--defence.kl-every 0: must be at least 1"),
        ({"kl_prompts": 0}, "--defence.kl-prompts 0"),
        ({"kl_rate": 0.0}, "--defence.kl-rate 0.0: must be finite and more than zero"),
        ({"kl_rate": math.inf}, "--defence.kl-rate inf"),
    ],
)
def test_options_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        AdaptiveKL(**{"kl_budget": 0.1, **options}).check()
    assert message in str(error.value)


def test_a_budget_needs_safe_prompts(tmp_path: Path) -> None:
    assert AdaptiveKL().needs == ()
    with pytest.raises(InputError, match="give --safe"):
        trainer(tmp_path, defence=AdaptiveKL(kl_budget=0.1))


def test_a_reference_that_says_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("regularize.anchors.answered", lambda *_, **__: [])
    with pytest.raises(InputError, match="answers none of the 4 safe prompts"):
        budgeted(tmp_path, peft_config=lora())
    assert replace(AdaptiveKL(), kl_budget=0.0).needs == ("safe",)
