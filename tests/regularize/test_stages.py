"""What a defence does beside its loss: before training, at its steps, after it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from probes.errors import InputError
from regularize.critics import Critic, Risks
from regularize.data import examples
from regularize.defences import Defence, Given, Need, Steps, Turn, Weights
from regularize.defences.none import SFT
from regularize.model import base_of
from regularize.trainer import STEPS, RegularizedTrainer
from tests.regularize.training import (
    ORDER,
    OTHER,
    ROWS,
    SAFE_ROWS,
    SAME,
    adapted,
    arguments,
    distance,
    equal,
    run,
    states,
    tiny,
    trained,
    trainer,
)

SAFE = examples(SAFE_ROWS)
PULL = 0.3


class Pull(Steps):
    """Adds PULL times the sum of what is trained: its gradient is PULL everywhere."""

    def __init__(self, policy: nn.Module, seen: list[Any]) -> None:
        self.policy, self.seen = policy, seen
        self.total = torch.zeros(())

    def begin(self, step: int, steps: int) -> None:
        self.seen.append((step, steps))
        self.total = self.total + step

    def penalty(self) -> Tensor:
        return PULL * sum(  # type: ignore[return-value]
            (p.sum() for p in self.policy.parameters() if p.requires_grad), torch.zeros(())
        )

    def state(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.total = state["total"]


@dataclass(frozen=True)
class Pulled(SFT):
    seen: list[Any] = field(default_factory=list)

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        return Pull(policy, self.seen)


@dataclass(frozen=True)
class Doubled(Defence):
    """Doubles the first matrix before training, negates what was trained after it."""

    seen: list[str] = field(default_factory=list)
    found: int = 0
    needs = ("safe",)
    changes_start = True
    needs_reference = True

    def before(self, given: Given) -> Doubled:
        self.seen.append("before")
        with torch.no_grad():
            first(given.chat.model).mul_(2)
        return replace(self, found=len(given.safe))

    def weights(self, s: Tensor) -> Weights:
        return Weights(1 - s, s)

    def after(self, policy: nn.Module, given: Given) -> None:
        self.seen.append("after")
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter.neg_()


@dataclass(frozen=True)
class Alternating(SFT):
    learns_safe = True
    needs = ("safe",)

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        return EveryThird()


class EveryThird(Steps):
    def turn(self, step: int) -> Turn:
        return "safe" if step % 3 == 0 else "user"


class Reading(Critic):
    """The first weight of the model as the critic sees it."""

    seen: float = 0.0

    def assess(self, rows: Any, chat: Any) -> Risks:
        import numpy as np

        self.seen = float(first(chat.model)[0, 0])
        return Risks(np.linspace(0, 1, len(rows)), None)


def first(model: nn.Module) -> Tensor:
    return next(p for p in base_of(model).parameters() if p.ndim == 2)


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (2, 2), (1, 4)])
def test_a_penalty_enters_each_optimizer_step_once(
    tmp_path: Path, batch: int, accumulate: int
) -> None:
    lr, steps = 0.1, 3
    args = {
        **ORDER,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": lr,
        "max_steps": steps,
    }
    pulled = Pulled()
    # Nothing of the rows: their loss is none where nothing of them is learnt.
    nothing = [{**row, "risk": 1.0} for row in ROWS]

    @dataclass(frozen=True)
    class Only(Pulled):
        def weights(self, s: Tensor) -> Weights:
            return Weights(0 * s, 0 * s)

    found = run(tmp_path, rows=nothing, defence=Only(pulled.seen), args=args)
    start = trained(adapted())
    assert distance(found, {name: p - steps * lr * PULL for name, p in start.items()}) < SAME
    assert distance(found, start) > OTHER
    assert pulled.seen == [(0, 3), (1, 3), (2, 3)]


def test_the_penalty_is_beside_the_loss(tmp_path: Path) -> None:
    args = {**ORDER, "max_steps": 1, "learning_rate": 0.1}
    plain = run(tmp_path / "plain", defence=SFT(), args=args)
    pulled = run(tmp_path / "pulled", defence=Pulled(), args=args)
    wanted = {name: p - 0.1 * PULL for name, p in plain.items()}
    assert distance(pulled, wanted) < SAME < OTHER < distance(pulled, plain)


def test_before_changes_the_reference_not_the_risks_and_after_the_trained(tmp_path: Path) -> None:
    seen: list[str] = []
    model, critic = tiny(), Reading()
    untouched = float(first(model)[0, 0])
    one = trainer(tmp_path, model=model, defence=Doubled(seen), critic=critic, safe=SAFE)
    assert seen == ["before"] and one.defence.found == len(SAFE)  # type: ignore[attr-defined]
    assert critic.seen == pytest.approx(untouched)
    assert float(first(model)[0, 0]) == pytest.approx(2 * untouched)

    ready = tiny()
    with torch.no_grad():
        first(ready).mul_(2)

    @dataclass(frozen=True)
    class Same(Doubled):
        changes_start = False

        def before(self, given: Given) -> Same:
            return self

    # The same from a model that was changed by hand: so the reference is the changed one.
    other = trainer(tmp_path / "by-hand", model=ready, defence=Same(), critic=Reading(), safe=SAFE)
    one.train()
    other.train()
    assert seen == ["before", "after"]
    assert distance(trained(one.model), trained(other.model)) < SAME
    assert distance(trained(one.model), trained(adapted())) > OTHER


def test_after_comes_last(tmp_path: Path) -> None:
    class Silent(Doubled):
        def after(self, policy: nn.Module, given: Given) -> None:
            pass

    options: dict[str, Any] = {"critic": Reading(), "safe": SAFE, "args": ORDER}
    changed = run(tmp_path / "a", defence=Doubled(), **options)
    left = run(tmp_path / "b", defence=Silent(), **options)
    assert equal(changed, {name: -p for name, p in left.items()})


def test_steps_take_turns_between_the_two_data_sets(tmp_path: Path) -> None:
    n_safe: list[int] = []
    one = trainer(
        tmp_path,
        defence=Alternating(),
        safe=SAFE,
        args={"max_steps": 9, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    )
    assert isinstance(one, RegularizedTrainer)
    own = one.get_batch_samples

    def looked_at(*args: Any, **options: Any) -> Any:
        batches, n = own(*args, **options)
        rows = torch.cat([batch["row"] for batch in batches])
        safe = int((rows >= len(ROWS)).sum())
        assert safe in (0, len(rows))
        n_safe.append(safe)
        return batches, n

    one.get_batch_samples = looked_at  # type: ignore[method-assign]
    one.train()
    assert n_safe == [4, 0, 0] * 3
    assert one.state.num_train_epochs == 3  # of the users' 12 rows, 4 a step


def test_without_turns_the_safe_data_are_not_trained_on(tmp_path: Path) -> None:
    one = trainer(tmp_path, defence=SFT(), safe=SAFE)
    assert len(one.train_dataset) == len(ROWS)  # type: ignore[arg-type]


def test_the_steps_state_goes_through_a_checkpoint(tmp_path: Path) -> None:
    args = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = trainer(tmp_path / "whole", defence=Pulled(), args=args)
    whole.train()
    checkpoint = tmp_path / "whole" / "out" / "checkpoint-4"
    assert (checkpoint / STEPS).is_file()
    again = trainer(tmp_path / "again", defence=Pulled(), args=args)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert int(again._acts.state()["total"]) == sum(range(6)) == int(whole._acts.state()["total"])
    fresh = trainer(tmp_path / "fresh", defence=Pulled(), args=args)
    assert int(fresh._acts.state()["total"]) == 0
    assert not list((tmp_path / "fresh").rglob(STEPS))


@pytest.mark.parametrize("need", ["base", "safe", "harmful"])
def test_what_is_missing_is_said_before_anything_is_loaded(tmp_path: Path, need: Need) -> None:
    class Needy(SFT):
        needs = (need,)

    with pytest.raises(InputError, match=rf"Needy needs .* give --{need}"):
        RegularizedTrainer(
            str(tmp_path / "no-such-model"), arguments(tmp_path), ROWS, defence=Needy()
        )


def test_weights_under_an_adapter_are_not_changed(tmp_path: Path) -> None:
    model = adapted()
    before = states(model)
    with pytest.raises(InputError, match="merge the adapter into the model first"):
        trainer(tmp_path, model=model, full=True, defence=Doubled(), safe=SAFE, critic=Reading())
    assert equal(before, states(model))
