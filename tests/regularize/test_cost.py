"""The cost of defences: the arithmetic, trainings that take turns, and one small contest."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from probes.errors import InputError
from regularize import contest, entrants, interleave, memory, packed
from regularize.arms import Arm
from regularize.contest import contestants
from regularize.cost import CostConfig, main
from regularize.defences import Given, Steps
from regularize.defences.antidote import Antidote
from regularize.defences.constant_kl import ConstantKL
from regularize.defences.lisa import Lisa
from regularize.defences.none import SFT
from regularize.segments import Segments
from regularize.testbeds.miniature import Miniature
from tests.regularize.training import OTHER, adapted, distance, run, trained, trainer

NAP = 0.05
"""Seconds."""


@given(st.integers(1, 6), st.integers(0, 40))
def test_each_round_has_everybody_and_nobody_has_a_place_of_his_own(n: int, first: int) -> None:
    names = [str(i) for i in range(n)]
    rounds = [interleave.order(names, turn) for turn in range(first, first + 2 * n)]
    assert all(sorted(one) == names for one in rounds)
    for place in range(n):
        assert set(Counter(one[place] for one in rounds).values()) == {2}


TIMES = st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=12)


@given(TIMES, st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_what_disturbs_a_round_for_all_leaves_no_doubt(times: list[float], factor: float) -> None:
    found = interleave.ratio([factor * t for t in times], times)
    assert found == pytest.approx((factor, factor, factor))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Of lognormal times with rounds of a common disturbance."""
    rng = np.random.default_rng(0)
    inside = narrow = 0
    for _ in range(200):
        common = np.exp(rng.normal(0, 1, 21))
        ours, theirs = (a * common * np.exp(rng.normal(0, 0.1, 21)) for a in (1.5, 1.0))
        found = interleave.ratio(list(ours), list(theirs))
        inside += found.lo <= 1.5 <= found.hi
        # The control: rounds drawn apart know far less.
        apart = interleave.ratio(list(ours), list(rng.permutation(theirs)))
        narrow += found.hi - found.lo < apart.hi - apart.lo
    assert inside / 200 > 0.9
    assert narrow / 200 > 0.8
    a, b = [1.0, 2.0, 9.0], [1.0, 4.0, 5.0]
    assert interleave.ratio(a, b).median == 0.5


def test_seconds_are_each_jobs_own() -> None:
    seen: list[str] = []
    jobs = {"a": lambda: seen.append("a"), "b": lambda: (seen.append("b"), time.sleep(NAP))}
    found = interleave.seconds(jobs, rounds=3)
    assert Counter(seen) == {"a": 3, "b": 3}
    assert min(found["b"]) >= NAP > max(found["a"])
    ticks = iter(range(100))
    assert interleave.seconds(jobs, rounds=2, clock=lambda: next(ticks))["a"] == [1, 1]


def test_segments_make_the_very_training(tmp_path: Path) -> None:
    want = run(tmp_path / "whole", defence=SFT())
    torch.manual_seed(0)
    # Two of them, turn by turn: neither feels the other.
    ours = [Segments(trainer(tmp_path / name, defence=SFT())) for name in "ab"]
    other = Segments(trainer(tmp_path / "c", defence=ConstantKL(0.5)))
    for steps in (2, 1, 2):
        for one in (*ours, other):
            before = one.trainer.state.global_step
            one.go(steps)
            assert one.trainer.state.global_step == before + steps
    for one in (*ours, other):
        one.finish()
        assert one.trainer.state.global_step == 6
    for one in ours:
        assert distance(trained(one.trainer.model), want) == 0
    assert distance(trained(other.trainer.model), want) > OTHER


def test_an_abandoned_training_ends_at_once_and_a_failed_one_says_why(tmp_path: Path) -> None:
    one = Segments(trainer(tmp_path / "a", defence=SFT(), args={"max_steps": 1000}))
    one.go(2)
    one.abandon()
    assert one.trainer.state.global_step == 2
    broken = Segments(trainer(tmp_path / "b", defence=Broken("begin")))
    broken.go(1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="begin"):
            broken.go(1)


@dataclass(frozen=True)
class Broken(SFT):
    where: str = "begin"

    def before(self, given: Given) -> Self:
        self.fail("before")
        return self

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        self.fail("steps")
        broken = self

        class Fails(Steps):
            def begin(self, step: int, steps: int) -> None:
                if step > 0:
                    broken.fail("begin")

        return Fails()

    def after(self, policy: nn.Module, given: Given) -> None:
        self.fail("after")

    def fail(self, where: str) -> None:
        if where == self.where:
            raise RuntimeError(f"in {where}")


@dataclass(frozen=True)
class Slow(SFT):
    """Naps everywhere; goes over its own rows before, at each step, and after."""

    def before(self, given: Given) -> Self:
        time.sleep(NAP)
        look(given.chat.model, 3)
        return self

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        class Naps(Steps):
            def begin(self, step: int, steps: int) -> None:
                time.sleep(NAP)
                look(given.chat.model, 1)

        return Naps()

    def after(self, policy: nn.Module, given: Given) -> None:
        time.sleep(10 * NAP)
        look(given.chat.model, 2)


LOOK = 10
"""Tokens."""


@torch.no_grad()
def look(model: Any, times: int) -> None:
    """A forward pass over some tokens, beside padding that does not count."""
    for _ in range(times):
        ids = torch.ones(1, LOOK + 5, dtype=torch.long)
        mask = (torch.arange(LOOK + 5) < LOOK).long()[None]
        model(input_ids=ids, attention_mask=mask)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CostConfig:
    """48 rows, 12 steps."""
    training = Miniature.training
    monkeypatch.setattr(Miniature, "training", lambda *args, **o: training(*args, **o)[:48])
    return CostConfig(rounds=5, memory=False, out=tmp_path)


def test_a_contest_tells_what_each_takes_and_goes_on_without_those_that_fail(
    small: CostConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # Passes are counted in tokens that are run, of which a packed row shares some.
    monkeypatch.setattr(packed, "limit", lambda *_: 0)
    arms = {"none": Arm("none", "none", SFT()), "slow": Arm("slow", "none", Slow())}
    arms |= {f"broken-{w}": Arm("x", "none", Broken(w)) for w in ("before", "begin", "after")}
    arms["constant-kl"] = Arm("constant-kl-0.5", "none", ConstantKL(0.5))
    monkeypatch.setattr(contest, "contestants", lambda config: arms)
    rows = {row.defence: row for row in contest.measured(small)}
    gc.collect()
    assert list(rows) == list(arms)
    for where in ("before", "begin", "after"):
        row = rows[f"broken-{where}"]
        assert row.failed == f"RuntimeError: in {where}"
        assert np.isnan([row.time_ratio, row.before, row.after]).all()
        assert f"broken-{where}: RuntimeError" in capsys.readouterr().err or where != "before"
    assert not any(rows[name].failed for name in ("none", "slow", "constant-kl"))

    # The control is SFT itself, twice.
    same, slow, kl = rows["none"], rows["slow"], rows["constant-kl"]
    assert same.step_passes == same.steps == 1
    assert same.before_passes == same.after_passes == 0
    assert same.time_ratio_lo <= same.time_ratio <= same.time_ratio_hi

    examples = Miniature().training(f"mixed:{Miniature.share}", seed=0)
    whole = sum(len(row.input_ids) for row in encoded(examples))
    assert len(examples) == 48
    assert slow.before_passes == pytest.approx(3 * LOOK / whole)
    assert slow.after_passes == pytest.approx(2 * LOOK / whole)
    # 12 steps are 4 times all rows.
    assert slow.step_passes == pytest.approx(1 + 12 * LOOK / (4 * whole))
    assert slow.time_ratio > same.time_ratio and slow.time_ratio > 1.1
    assert slow.after > 0.1 > abs(same.after)
    # One pass for the cached reference, none at its steps.
    assert (kl.before_passes, kl.step_passes, kl.after_passes) == (1, 1, 0)


def encoded(examples: list[Any]) -> list[Any]:
    from probes import models
    from regularize.data import encode

    tokenizer = models.load("miniature/llama").tokenizer
    return [encode(one, tokenizer) for one in examples]


def test_the_command_writes_its_table_and_draws_it(
    small: CostConfig, capsys: pytest.CaptureFixture
) -> None:
    main(replace(small, defences=("none", "constant-kl"), steps=7))
    found = {path.name for path in small.out.rglob("*") if path.is_file()}
    assert found >= {"costs.csv", "costs.parquet", "config.json", "cost.png", "cost.pdf"}
    said = capsys.readouterr().out
    assert "constant-kl" in said and "cost.png" in said and "not measured" in said


@dataclass(frozen=True)
class Hoards(SFT):
    """Holds 64 MB from before training to its end, and twice as much for a moment before."""

    def before(self, given: Given) -> Self:
        torch.ones(32 * 2**20)
        return self

    def steps(self, policy: nn.Module, given: Given) -> Steps:
        held = Steps()
        held.hoard = torch.ones(16 * 2**20)  # type: ignore[attr-defined]
        return held


@pytest.mark.skipif(not memory.is_known(), reason="only Linux tells the peak")
def test_the_peak_is_that_of_the_steps_and_what_is_held_for_them(
    small: CostConfig, tmp_path: Path
) -> None:
    none, hoards = Arm("none", "none", SFT()), Arm("hoards", "none", Hoards())
    setting = entrants.setting_of(replace(small, steps=7), {"none": none}, tmp_path)
    plain, more = (memory.alone(contest.peak, arm, setting) for arm in (none, hoards))
    assert plain > 0
    assert more - plain == pytest.approx(64 * 2**20, abs=8 * 2**20)


def test_tokens_of_a_generation_count_once_each() -> None:
    model = adapted().get_base_model()
    tokens = entrants.counted(entrants.Loaded(_Chat(model), {}))  # type: ignore[arg-type]
    ids = torch.tensor([[5, 6, 7, 8]])
    model.generate(input_ids=ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert tokens() == 4 + 2  # the last one that is written is not read
    look(model, 1)
    assert tokens() == 6 + LOOK


@dataclass
class _Chat:
    model: Any


def test_every_defence_takes_part_with_the_settings_of_the_comparison() -> None:
    from regularize import defences, plugins

    found = contestants(CostConfig())
    assert set(found) == set(plugins.found(defences, defences.Defence))  # type: ignore[type-abstract]
    tried = {
        arm.method
        for experiment in Miniature().experiments.values()
        for arm in (one.arm for one in experiment(_start()))
    }
    assert found["antidote"].method == Antidote()  # and not its control
    assert found["lisa"].method in tried and found["lisa"].method != Lisa()
    assert found["constant-kl"].method in tried and found["adaptive-kl"].critic == "probe"
    assert list(contestants(CostConfig(defences=("none",)))) == ["none"]


def _start() -> Any:
    from regularize.arms import NONE, Run

    return Run("miniature/llama", "mixed", Miniature.share, 3e-3, 0, NONE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defences": ("vaccines",)}, "--defences vaccines: there is none, only .*none"),
        ({"model": "org/other"}, "testbeds only"),
        ({"rounds": 4}, "--rounds 4.*at least 5"),
        ({"steps": 6, "rounds": 5}, "--steps 6: too few for 5 rounds; give at least 7"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(replace(CostConfig(), **change))


def test_more_rounds_than_steps_are_refused(small: CostConfig) -> None:
    with pytest.raises(InputError, match="--rounds 11: the training has only 12 steps"):
        main(replace(small, rounds=11, defences=("none",)))


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['x', '--help']\nimport runpy\n"
    code += "try: runpy.run_module('regularize.cost', run_name='__main__', alter_sys=True)\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    for option in ("--model", "--defences", "--rounds", "--clock", "--out"):
        assert option in done.stdout
