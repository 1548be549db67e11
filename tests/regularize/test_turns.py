"""The order of rows where optimizer steps take turns between two data sets."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from regularize.data import examples
from regularize.defences import Turn
from regularize.defences.lisa import Lisa
from regularize.turns import Turns
from tests.regularize.training import ROWS, trainer

SAFE = examples([{"prompt": f"say no {i}", "completion": "no" + " no" * i} for i in range(5)])


@dataclass(frozen=True)
class Case:
    """Two data sets, and how a step is cut into micro-batches."""

    n_user: int
    n_safe: int
    k1: int = 1
    k2: int = 2
    batch: int = 2
    accumulate: int = 1
    processes: int = 1
    seed: int = 0
    filled: bool = True

    @property
    def step(self) -> int:
        return self.batch * self.accumulate * self.processes

    @property
    def rows(self) -> int:
        """Of an epoch: as many as the users', or whole batches for all processes."""
        whole = self.batch * self.processes if self.processes > 1 and self.filled else 1
        return -(-self.n_user // whole) * whole

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return -(-self.n_user // self.step)

    def turn(self, step: int) -> Turn:
        return "safe" if step % (self.k1 + self.k2) < self.k1 else "user"

    def turns(self, done: int = 0) -> Turns:
        return Turns(
            self.n_user,
            self.n_safe,
            rows=self.rows,
            step=self.step,
            turn=self.turn,
            done=lambda: done,
            seed=self.seed,
        )

    def epoch(self, number: int) -> list[list[int]]:
        """The rows of each of its steps."""
        rows = list(self.turns(number * self.steps))
        return [rows[start : start + self.step] for start in range(0, len(rows), self.step)]

    def kinds(self, rows: list[int]) -> set[Turn]:
        return {"user" if row < self.n_user else "safe" for row in rows}

    def loader(self, process: int, done: int = 0) -> Any:
        """What one of the processes trains on, as Trainer has it from accelerate."""
        numbers: Any = torch.arange(self.n_user + self.n_safe)
        return prepare_data_loader(
            DataLoader(numbers, batch_size=self.batch, sampler=self.turns(done)),
            num_processes=self.processes,
            process_index=process,
            put_on_device=False,
        )

    def seen(self, done: int = 0) -> list[list[int]]:
        """The rows of each step that is left of an epoch, over all processes."""
        skipped = done % self.steps * self.accumulate
        each = [
            list(skip_first_batches(self.loader(i, done), skipped)) for i in range(self.processes)
        ]
        assert len({len(batches) for batches in each}) == 1
        together = [torch.cat(micro) for micro in zip(*each, strict=True)]
        n = self.accumulate
        starts = range(0, len(together), n)
        return [torch.cat(together[start : start + n]).tolist() for start in starts]


CASES = st.builds(
    Case,
    n_user=st.integers(1, 40),
    n_safe=st.integers(1, 15),
    k1=st.integers(0, 4),
    k2=st.integers(1, 4),
    batch=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    processes=st.integers(1, 3),
    seed=st.integers(0, 9),
)


@given(case=CASES, epochs=st.integers(1, 4))
def test_each_step_is_of_the_kind_whose_turn_it_is(case: Case, epochs: int) -> None:
    number = 0
    for epoch in range(epochs):
        for rows in case.epoch(epoch):
            assert case.kinds(rows) == {case.turn(number)}
            number += 1
    assert number == epochs * case.steps


@given(case=CASES)
def test_an_epoch_is_as_long_as_without_turns(case: Case) -> None:
    *whole, last = case.epoch(1)
    assert all(len(rows) == case.step for rows in whole)
    assert len(whole) + 1 == case.steps
    n_rows = len(whole) * case.step + len(last)
    assert n_rows == len(case.turns()) == case.rows
    assert n_rows - case.n_user < (case.batch * case.processes if case.processes > 1 else 1)


@given(case=CASES, epochs=st.integers(1, 5))
def test_both_data_sets_are_gone_through_evenly(case: Case, epochs: int) -> None:
    drawn: dict[Turn, list[int]] = {"user": [], "safe": []}
    for epoch in range(epochs):
        for rows in case.epoch(epoch):
            drawn[case.kinds(rows).pop()].extend(rows)
    numbers: dict[Turn, range] = {
        "user": range(case.n_user),
        "safe": range(case.n_user, case.n_user + case.n_safe),
    }
    for kind, rows in drawn.items():
        n = len(numbers[kind])
        for start in range(0, len(rows), n):
            passage = rows[start : start + n]
            assert len(set(passage)) == len(passage) and set(passage) <= set(numbers[kind])


@given(case=CASES, epoch=st.integers(0, 3), within=st.floats(0, 0.999))
def test_the_order_follows_from_seed_and_epoch(case: Case, epoch: int, within: float) -> None:
    wanted = list(case.turns(epoch * case.steps))
    # An epoch that is gone on with is given from its start: what is done of it is skipped.
    assert list(case.turns(epoch * case.steps + int(within * case.steps))) == wanted


def test_seeds_and_passages_differ() -> None:
    orders = [
        tuple(rows)
        for seed in (0, 1)
        for epoch in (0, 1)
        for rows in Case(n_user=20, n_safe=20, k1=1, k2=1, batch=20, seed=seed).epoch(epoch)
    ]
    assert len(set(orders)) == len(orders) == 4
    many = [Case(n_user=20, n_safe=5, k1=0, batch=20).epoch(epoch)[0] for epoch in range(5)]
    assert all(sorted(a) == sorted(b) and a != b for a, b in pairwise(many))


@settings(deadline=None, max_examples=30)
@given(case=CASES, epoch=st.integers(0, 2))
def test_processes_share_each_step_and_resume_in_the_midst(case: Case, epoch: int) -> None:
    wanted = [sorted(rows) for rows in case.epoch(epoch)]
    for done in range(case.steps):
        found = case.seen(epoch * case.steps + done)
        assert [sorted(rows) for rows in found] == wanted[done:]


def test_what_accelerate_fills_an_epoch_with_is_of_another_turn() -> None:
    """The control: without whole batches for two processes."""
    for filled in (True, False):
        case = Case(n_user=9, n_safe=4, k1=1, k2=2, processes=2, filled=filled)
        kinds = [case.kinds(rows) for rows in case.seen()]
        assert kinds == [{"safe"}, {"user"}, {"user"} if filled else {"user", "safe"}]


@pytest.mark.parametrize(
    ("processes", "drop_last", "rows"),
    [(1, False, 11), (2, False, 12), (3, False, 12), (1, True, 10), (2, True, 8)],
)
def test_the_trainers_epoch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    processes: int,
    drop_last: bool,
    rows: int,
) -> None:
    args = {"per_device_train_batch_size": 2, "dataloader_drop_last": drop_last}
    one = trainer(tmp_path, rows=ROWS[:11], defence=Lisa(k1=1, k2=2), safe=SAFE, args=args)
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda _: processes))
    assert len(one._get_train_sampler()) == rows


@pytest.mark.parametrize("drop_last", [False, True])
def test_trained_on_in_turns_over_epochs_with_a_short_last_step(
    tmp_path: Path, drop_last: bool
) -> None:
    seen: list[tuple[int, set[bool]]] = []
    one = trainer(
        tmp_path,
        rows=ROWS[:11],
        defence=Lisa(k1=2, k2=2),
        safe=SAFE,
        args={
            "max_steps": 8,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "dataloader_drop_last": drop_last,
        },
    )
    own = one.get_batch_samples

    def looked_at(*args: Any, **options: Any) -> Any:
        batches, n = own(*args, **options)
        rows = torch.cat([batch["row"] for batch in batches])
        seen.append((len(rows), {bool(row >= 11) for row in rows}))
        return batches, n

    one.get_batch_samples = looked_at  # type: ignore[method-assign]
    one.train()
    assert [n for n, _ in seen] == ([4, 4, 2] if drop_last else [4, 4, 3]) * 2 + [4, 4]
    assert [safe for _, safe in seen] == [{True}, {True}, {False}, {False}] * 2
