"""The benchmarks measure what they say, at small sizes."""

import os
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial

import numpy as np
import pytest
import torch

from probes.errors import InputError
from regularize import memory
from tests.benchmarks import fit, step
from tests.benchmarks import memory as of_cases
from tests.benchmarks.interleave import Case, measure


def sleeps(seconds: float, value: float = 0.0) -> np.ndarray:
    time.sleep(seconds)
    return np.array([value, 1.0])


def test_the_ratio_is_ours_over_the_baselines() -> None:
    case = Case("bench", "case", "baseline", partial(sleeps, 0.01), partial(sleeps, 0.04, 0.25))
    found = measure(case, rounds=3)
    assert 0.1 < found.lo <= found.median <= found.hi < 0.6
    assert found.parity == 0.25


def test_jobs_that_differ_by_intent_are_compared_in_what_they_share() -> None:
    jobs = (partial(sleeps, 0.001), partial(sleeps, 0.001, 9.0))
    assert measure(Case("bench", "case", "baseline", *jobs, lambda: 0.5), rounds=1).parity == 0.5


def test_a_baseline_that_does_a_part_is_given_the_time_of_the_whole() -> None:
    jobs = (partial(sleeps, 0.02), partial(sleeps, 0.01))
    case = Case("bench", "case", "baseline", *jobs, share=0.1)
    assert 0.1 < measure(case, rounds=3).median < 0.4


def test_the_fits_agree(monkeypatch) -> None:
    """With scikit-learn's, the shuffled ones too; and other shuffles are other fits."""
    monkeypatch.setattr(fit, "N", 200)
    monkeypatch.setattr(fit, "PERMUTATIONS", 4)
    data = fit._Data(20)
    for case in (fit._one(data), fit._shuffled(data)):
        assert np.abs(case.ours() - case.theirs()).max() < 1e-3
    assert np.abs(data.theirs(data.shuffled[:, 2:]) - case.ours()).max() > 0.1


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


def fails() -> None:
    raise InputError("no such thing")


def dies() -> None:
    os._exit(1)


def test_what_a_process_of_its_own_ends_with_is_told() -> None:
    before = dict(os.environ)
    with pytest.raises(InputError, match="no such thing"):
        memory.alone(fails)
    with pytest.raises(BrokenProcessPool):
        memory.alone(dies)
    assert dict(os.environ) == before


def test_where_the_peak_is_not_told_the_ratio_is_not_a_number(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "RESET", tmp_path / "clear_refs")
    assert np.isnan(of_cases.ratio("step", 0))


def test_the_steps_agree_and_again_after_a_step() -> None:
    """With the textbook's gradient, and without a KL with transformers' own."""
    cases = list(step.cases(d_model=32, vocabularies=(3000,)))
    assert len({case.baseline for case in cases}) == 4
    for case in cases:
        for _ in range(2):
            ours, theirs = case.ours(), case.theirs()
            largest = float(np.abs(ours).max())
            differs = float(np.abs(ours - theirs).max())
            if case.parity is not None:  # positive control: with a KL it is another gradient
                assert differs > 0.01 * largest
                differs = case.parity()
            assert differs < 1e-4 * largest, case.baseline
