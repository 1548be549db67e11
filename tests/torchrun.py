"""Several processes that share a command's work, on the CPU of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

ROOT = Path(__file__).parents[1]
RUN = ("torch.distributed.run", "--standalone")


def started(
    *module: str, launcher: tuple[str, ...] = RUN, processes: int = 2, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """A module with its arguments, under torchrun or another launcher; its end, whatever that is.

    Args:
        module: Its name, and its arguments.
        launcher: Module that starts it, and that module's own arguments.
        processes: How many torchrun starts.
        timeout: Most seconds.
    """
    several = [f"--nproc-per-node={processes}"] if launcher == RUN else []
    return subprocess.run(
        [sys.executable, "-m", *launcher, *several, "-m", *module],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def trained_by_two(module: str, folder: Path) -> Path:
    """The folder, in which two processes of a module have left their ends."""
    done = started(module, str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "rank-1").exists()
    return folder


def of_two(folder: Path, name: str) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """What they have left of a case: the trained parameters, and what was logged."""
    with safe_open(folder / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["log"])
