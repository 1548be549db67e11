"""The benchmarks' machinery: what a row says, and when it must not say a number."""

import os
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import pytest
import torch

from probes.errors import InputError
from regularize import memory
from tests.benchmarks import measure, place
from tests.benchmarks.cases import Against, Baseline, Group, Mismatch, difference, lacking


def sleeps(seconds: float, value: float = 0.0) -> np.ndarray:
    time.sleep(seconds)
    return np.array([value, 1.0])


def group(ours, *baselines: Baseline, **options) -> Group:
    """A job that builds nothing, beside some baselines."""
    return Group("bench", "case", lambda: None, lambda _: ours, baselines, **options)


def beside(name: str, *of, **options) -> Baseline:
    return Baseline(name, lambda _: Against(*of), **options)


def rows(one: Group, *, rounds: int = 3, chosen=None, memory_of=None) -> dict:
    names = [b.name for b in one.baselines] if chosen is None else chosen
    found = measure.rows(one, names, rounds=rounds, memory_of=memory_of)
    return {row.baseline: row for row in found}


def test_the_ratio_is_ours_over_the_baselines() -> None:
    slower = beside("slower", partial(sleeps, 0.04, 0.25))
    row = rows(group(partial(sleeps, 0.01), slower, tolerance=0.5))["slower"]
    assert 0.1 < row.time_ratio_lo <= row.time_ratio <= row.time_ratio_hi < 0.6
    assert (row.parity, row.rounds, row.failed) == (0.25, 3, "")
    assert row.where == place.of("cpu")


def test_jobs_that_differ_by_intent_are_compared_in_what_they_share() -> None:
    other = partial(sleeps, 0.001, 9.0)
    both = group(partial(sleeps, 0.001), beside("alike", other, other), beside("not", other))
    found = rows(both, rounds=1)
    assert (found["alike"].parity, found["alike"].failed) == (0, "")
    assert found["not"].failed.startswith("Mismatch: results differ by 9.0e+00")


def test_a_baseline_that_does_a_part_is_given_the_time_of_the_whole() -> None:
    part = Baseline("part", lambda _: Against(partial(sleeps, 0.01), share=0.1))
    assert 0.1 < rows(group(partial(sleeps, 0.02), part))["part"].time_ratio < 0.4


def test_a_bound_has_no_result_to_compare() -> None:
    bound = Baseline("bound", lambda _: Against(lambda: None, compared=False), goal=0.6)
    row = rows(group(partial(sleeps, 0.001), bound), rounds=1, memory_of=lambda *_: 1.0)["bound"]
    assert np.isnan(row.parity) and np.isnan(row.memory_ratio)
    assert (row.goal, row.failed) == (0.6, "")


@pytest.mark.parametrize(
    ("theirs", "says"),
    [
        (np.array([1.0, 2.0 + 3e-4]), "differ by 3.0e-04"),
        (np.array([1.0, np.nan]), "differ by nan"),
        (np.array([[1.0, 2.0]]), r"shape \(2,\)"),
    ],
)
def test_too_large_a_difference_raises(theirs: np.ndarray, says: str) -> None:
    ours = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert difference(ours, np.array([1.0, 2.0 + 1e-4]), 1e-4) == pytest.approx(1e-4)
    with pytest.raises(Mismatch, match=says):
        difference(ours, theirs, 1e-4)


def test_where_ours_gives_no_number_nothing_is_timed() -> None:
    broken = group(lambda: np.array([np.nan, 1.0]), beside("b", partial(sleeps, 0.0)))
    assert "differ by nan" in rows(broken)["b"].failed


def fails() -> None:
    raise InputError("no such thing\nand more")


def test_a_baseline_that_raises_says_so_and_the_others_go_on() -> None:
    good = beside("good", partial(sleeps, 0.001))
    unmade = Baseline("unmade", lambda _: fails())
    found = rows(group(partial(sleeps, 0.001), beside("raises", fails), unmade, good), rounds=1)
    for name in ("raises", "unmade"):
        assert found[name].failed == "InputError: no such thing"
        assert np.isnan(found[name].time_ratio) and found[name].rounds == 0
    assert found["good"].failed == "" and found["good"].time_ratio > 0


def test_where_ours_or_its_models_raise_every_row_says_so() -> None:
    good = beside("good", partial(sleeps, 0.0))
    unbuilt = Group("bench", "case", fails, lambda _: None, (good,))
    for one in (group(fails, good), unbuilt):
        assert rows(one)["good"].failed == "InputError: no such thing"


def test_a_row_that_this_machine_cannot_measure_is_not_left_out(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one = beside("one", partial(sleeps, 0.0))
    on_gpu = Group("bench", "case", fails, fails, (one,), device="cuda")  # nothing is built
    row = rows(on_gpu)["one"]
    assert (row.failed, row.where) == ("not measured: no GPU", "")
    assert np.isnan([row.time_ratio, row.memory_ratio, row.parity]).all()
    without = beside("without", partial(sleeps, 0.0), needs=("no_such_library", "torch"))
    found = rows(group(partial(sleeps, 0.0), without, one), rounds=1)
    assert found["without"].failed == "not measured: no no_such_library"
    assert found["one"].failed == ""
    assert lacking(group(None), one) == ""


def test_the_slow_ones_leave_after_their_rounds() -> None:
    runs = {"slow": 0, "quick": 0}

    def counted(name: str) -> np.ndarray:
        runs[name] += 1
        return np.array([0.0, 1.0])

    slow, quick = (partial(counted, name) for name in runs)
    one = group(partial(sleeps, 0.001), beside("slow", slow, rounds=2), beside("quick", quick))
    found = rows(one, rounds=5)
    assert runs == {"slow": 1 + 2, "quick": 1 + 5}  # the first is the one that is compared
    assert (found["slow"].rounds, found["quick"].rounds) == (2, 5)
    assert rows(one._replace(rounds=3), rounds=5)["quick"].rounds == 3


def test_only_what_is_chosen_is_measured() -> None:
    one = group(partial(sleeps, 0.0), beside("a", partial(sleeps, 0.0)), beside("b", fails))
    assert list(rows(one, chosen=["a"], rounds=1)) == ["a"]


def test_the_peaks_are_asked_of_those_that_want_them_and_a_failure_costs_no_times() -> None:
    jobs = (beside("a", partial(sleeps, 0.0)), beside("b", partial(sleeps, 0.0), memory=False))
    one = group(partial(sleeps, 0.0), *jobs)
    peaks = {"ours": 6.0, "a": 4.0}
    found = rows(one, rounds=1, memory_of=lambda job, name: peaks[name])
    assert found["a"].memory_ratio == 1.5
    assert np.isnan(found["b"].memory_ratio)
    with pytest.warns(UserWarning, match="no peaks: InputError: no such thing"):
        row = rows(one, rounds=1, memory_of=lambda *_: fails())["a"]
    assert np.isnan(row.memory_ratio) and row.time_ratio > 0 and row.failed == ""


MB = 2**20 // 4


def three_times() -> None:
    for _ in range(3):
        large = torch.ones(48 * MB)
        small = large[: 16 * MB].clone()
        del large, small


def peak_of_three() -> int:
    kept = torch.ones(8 * 2**20)
    three_times()
    found = memory.peak(three_times)
    del kept
    return found


@pytest.mark.skipif(not memory.is_known(), reason="only Linux tells the peak")
def test_the_peak_is_what_a_job_holds_at_once() -> None:
    """Neither what was there before it, nor what it holds one after the other."""
    assert memory.alone(peak_of_three) == pytest.approx(64 * 2**20, rel=0.05)


def dies() -> None:
    os._exit(1)


def test_what_a_process_of_its_own_ends_with_is_told() -> None:
    before = dict(os.environ)
    with pytest.raises(InputError, match="no such thing"):
        memory.alone(fails)
    with pytest.raises(BrokenProcessPool):
        memory.alone(dies)
    assert dict(os.environ) == before


def test_where_the_peak_is_not_told_it_is_not_measured(monkeypatch, tmp_path) -> None:
    one = group(partial(sleeps, 0.0))
    monkeypatch.setattr(memory, "RESET", tmp_path / "clear_refs")
    assert measure.memory_of(one, "step", 0) is None
    assert measure.memory_of(one._replace(device="cuda"), "gpu", 0) is measure.on_gpu
