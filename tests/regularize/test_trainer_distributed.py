"""Two processes go the way of one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.regularize.training import distance
from tests.regularize.two_processes import CASES, end_of
from tests.torchrun import of_two, trained_by_two

SAME = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained all cases."""
    return trained_by_two("tests.regularize.two_processes", tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_where_one_does(name: str, folder: Path, tmp_path: Path) -> None:
    two, logged_by_two = of_two(folder, name)
    one, logged = end_of(name, tmp_path)
    assert distance(two, one) < SAME
    for ours, wanted in zip(logged_by_two, logged, strict=True):
        assert ours == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_the_comparison_tells_losses_apart(folder: Path) -> None:
    """Positive control: each of these defences ends elsewhere."""
    different = ("example", "batch", "reverse-copy", "none", "live")
    ends = [of_two(folder, name)[0] for name in different]
    for i, end in enumerate(ends):
        assert all(distance(end, other) > 50 * SAME for other in ends[:i])
