"""Constrained SFT (arXiv 2406.05946): the paper's loss as it is printed, by autograd, in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes.errors import InputError
from regularize.data import IGNORE
from regularize.defences import At
from regularize.defences.constrained_sft import ConstrainedSFT
from regularize.defences.none import SFT
from regularize.losses import Head
from regularize.passes import constants
from tests.regularize.training import (
    ORDER,
    OTHER,
    SAME,
    adapted,
    by_hand,
    distance,
    encoded,
    equal,
    run,
    states,
    tiny,
)

VOCAB, WIDTH = 23, 7


def printed(log_q: Tensor, log_p: Tensor, b: Tensor) -> Tensor:
    """sum_t -(2 / b_t) log sigmoid(b_t D_t)."""
    return -(2 / b * torch.nn.functional.logsigmoid(b * (log_q - log_p))).sum()


def b_of(answers: Sequence[int], defence: ConstrainedSFT) -> Tensor:
    """By hand, token by token."""
    found = []
    for n in answers:
        for t in range(1, n + 1):
            if t == 1:
                found.append(defence.b_first)
            elif t <= defence.early:
                found.append(defence.b_early)
            else:
                found.append(defence.b_late)
    return torch.tensor(found, dtype=torch.float64)


@settings(deadline=None)
@given(
    answers=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    b=st.tuples(*[st.floats(0.05, 8)] * 3),
    early=st.integers(1, 7),
    seed=st.integers(0, 2**16),
)
def test_its_gradient_is_that_of_the_printed_loss(
    answers: list[int], b: tuple[float, float, float], early: int, seed: int
) -> None:
    make = torch.Generator().manual_seed(seed)
    defence, n = ConstrainedSFT(*b, early), sum(answers)
    weight, bias = (
        torch.randn(VOCAB, *size, generator=make, dtype=torch.float64) for size in ((WIDTH,), ())
    )
    head = Head(weight, bias)
    now, before = torch.randn(2, n, WIDTH, generator=make, dtype=torch.float64)
    now.requires_grad_()
    target = torch.randint(VOCAB, (n,), generator=make)

    def label(hidden: Tensor) -> Tensor:
        logits = torch.nn.functional.linear(hidden, weight, bias)
        return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]

    def gradient(b_t: Tensor) -> Tensor:
        return torch.autograd.grad(printed(label(now), label(before), b_t), now)[0]

    place = torch.cat([torch.arange(one) for one in answers])
    one = torch.ones(n, dtype=torch.float64)
    known = defence.of_reference(before, head, target)
    torch.testing.assert_close(known[:, 0], label(before))
    terms = defence.loss(At(now, head, target, place, one, 0 * one, None, known))
    ours = torch.autograd.grad(terms.loss, now)[0]
    torch.testing.assert_close(ours, gradient(b_of(answers, defence)))
    torch.testing.assert_close(terms.nll, -label(now).detach())


def test_the_place_in_the_answer_counts() -> None:
    """The control: counted from 1 instead, the gradient is another."""
    make = torch.Generator().manual_seed(0)
    head = Head(torch.randn(VOCAB, WIDTH, generator=make), None)
    now, before = torch.randn(2, 8, WIDTH, generator=make)
    target, place, one = torch.arange(8), torch.arange(8), torch.ones(8)
    defence = ConstrainedSFT(b_first=0.1, b_early=3.0)
    known = defence.of_reference(before, head, target)
    now.requires_grad_()
    slopes = [
        torch.autograd.grad(
            defence.loss(At(now, head, target, where, one, 0 * one, None, known)).loss, now
        )[0]
        for where in (place, place + 1)
    ]
    assert float((slopes[0] - slopes[1]).abs().max()) > 0.1


def naive_training(model: Any, defence: ConstrainedSFT) -> dict[str, Tensor]:
    """Two whole models and the printed loss."""

    def loss(log_q: Tensor, log_p: Tensor, target: Tensor, _: int) -> Tensor:
        now, before = (one.gather(1, target[:, None])[:, 0].double() for one in (log_q, log_p))
        return printed(now, before, b_of([len(target)], defence))

    return by_hand(model, loss)


def test_training_goes_the_printed_way(tmp_path: Path) -> None:
    defence = ConstrainedSFT()
    ours = run(tmp_path, defence=defence, args=ORDER)
    assert distance(ours, naive_training(adapted(), defence)) < SAME
    assert distance(ours, run(tmp_path, defence=SFT(), args=ORDER)) > OTHER


def test_accumulation_changes_nothing(tmp_path: Path) -> None:
    defence = ConstrainedSFT(b_first=4.0)
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **ORDER}
    whole = run(tmp_path, defence=defence, args=ORDER)
    assert distance(run(tmp_path, defence=defence, args=parts), whole) < SAME


def test_with_b_at_zero_it_is_plain_fine_tuning(tmp_path: Path) -> None:
    for full in (False, True):  # where the head is trained too
        args = {**ORDER, "learning_rate": 0.02}
        none = run(tmp_path, defence=SFT(), full=full, args=args)
        assert (
            distance(run(tmp_path, defence=ConstrainedSFT(0, 0, 0), full=full, args=args), none)
            < SAME
        )
        assert distance(run(tmp_path, defence=ConstrainedSFT(), full=full, args=args), none) > 1e-5


def test_its_constants_are_transformers_own_log_probabilities() -> None:
    model, rows = tiny(), encoded()
    found = constants(model, rows, ConstrainedSFT().of_reference, token_budget=64)
    assert len(found) == len(rows)
    for row, log_ref in zip(rows, found, strict=True):
        ids, labels = torch.tensor(row.input_ids), torch.tensor(row.labels)
        wanted = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        answer = labels[1:] != IGNORE
        wanted = wanted[answer].gather(1, labels[1:][answer][:, None])
        torch.testing.assert_close(log_ref, wanted.detach(), atol=1e-5, rtol=1e-5)


def test_a_model_that_is_not_trained_with_it_is_left_alone(tmp_path: Path) -> None:
    other = tiny()
    before = states(other)
    run(tmp_path, defence=ConstrainedSFT(), args={"max_steps": 1})
    assert equal(states(other), before)


@pytest.mark.parametrize("name", ["b_first", "b_early", "b_late", "early"])
def test_what_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"--defence.{name.replace('_', '-')} -1: must not be"):
        ConstrainedSFT(**{name: -1}).check()
