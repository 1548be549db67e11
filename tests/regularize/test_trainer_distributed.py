"""Two processes go the way of one."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor

from tests.regularize.training import distance
from tests.regularize.two_processes import CASES, end_of

SAME = 2e-5
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have trained all cases."""
    found = tmp_path_factory.mktemp("two")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "-m", "tests.regularize.two_processes", str(found)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (found / "rank-1").exists()
    return found


def of_two(folder: Path, name: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, ast.literal_eval(file.metadata()["log"])


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
