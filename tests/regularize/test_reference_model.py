"""A reference that is another model: its KL is that to whole distributions of just that model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from probes.errors import InputError
from regularize.critics import Critic, Risks
from regularize.defences.adaptive_kl import AdaptiveKL
from regularize.defences.constant_kl import ConstantKL
from regularize.defences.vaccine import Vaccine
from tests.regularize.training import (
    ORDER,
    OTHER,
    SAME,
    adapted,
    by_hand,
    distance,
    run,
    states,
    tiny,
    trainer,
)

BETA = 0.5


def other(*, head: bool = False) -> Any:
    """Another model, with the same head or one of its own."""
    model = tiny()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if head or not ("embed" in name or "lm_head" in name):
                parameter.mul_(1.2)
    return model


def loss(log_q: Any, log_p: Any, target: Any, row: int) -> Any:
    nll = -log_q.gather(1, target[:, None])[:, 0]
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return ((1 - BETA) * nll + BETA * kl).sum()


@pytest.mark.parametrize("kind", ["cached", "copy"])
@pytest.mark.parametrize("head", [False, True], ids=["same head", "own head"])
def test_training_is_held_to_the_model_that_was_given(
    kind: Any, head: bool, tmp_path: Path
) -> None:
    found = run(
        tmp_path, defence=ConstantKL(BETA), reference=kind, reference_model=other(head=head),
        args=ORDER,
    )  # fmt: skip
    assert distance(found, by_hand(adapted(), loss, reference=other(head=head))) < SAME
    assert distance(found, by_hand(adapted(), loss, reference=tiny())) > OTHER  # the control


def test_with_itself_for_a_reference_nothing_changes(tmp_path: Path) -> None:
    found = run(tmp_path / "a", defence=ConstantKL(BETA), reference_model=tiny())
    assert distance(found, run(tmp_path / "b", defence=ConstantKL(BETA))) == 0


def test_full_fine_tuning_against_another_model(tmp_path: Path) -> None:
    how: dict[str, Any] = {"full": True, "args": {**ORDER, "learning_rate": 0.02}}
    found = run(tmp_path, defence=ConstantKL(BETA), reference_model=other(), **how)
    wanted = by_hand(tiny(), loss, reference=other(), lr=0.02)
    assert distance(found, {name: wanted[name] for name in found}) < SAME


def test_it_is_the_first_model_that_risks_are_read_of_and_it_stays(tmp_path: Path) -> None:
    seen = []

    class Looks(Critic):
        def assess(self, examples: Any, chat: Any) -> Risks:
            import numpy as np

            seen.append(chat.model)
            return Risks(np.full(len(examples), 0.5), None)

    reference = other()
    before = states(reference)
    made = trainer(tmp_path, critic=Looks(), defence=AdaptiveKL(), reference_model=reference)
    made.train()
    assert seen == [reference]
    after = states(reference)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_cannot_be_a_reference(tmp_path: Path) -> None:
    for options, message in (
        ({"reference": "adapter-off"}, "reference is another model here"),
        ({"defence": Vaccine(), "critic": None}, "takes no other reference model"),
        ({"reference_model": tiny(vocab_size=300)}, "a KL needs one vocabulary"),
    ):
        given: dict[str, Any] = {"reference_model": other(), "safe": [1], **options}
        with pytest.raises(InputError, match=message):
            trainer(tmp_path, **given)
