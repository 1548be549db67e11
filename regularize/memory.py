"""Peak memory of a job, above what was held before it.

On a GPU it is what torch's allocator held at most (torch.cuda.max_memory_allocated). On a CPU it is
the peak of the process's resident memory: what numpy, MKL or scikit-learn take is in it (torch's
profiler sees torch's allocations alone), and so are pages of files that are mapped and have been
read, which the system can take back. Models and data that were there before do not count.

For a peak that means something a job runs in a process of its own (`alone`), not for the first time
in it, since that loads libraries and fills caches. There the allocator gives freed blocks back at
once, so that what was freed before is not resident any more.

Of CPUs Linux alone tells the peak (/proc/self/clear_refs sets it back): see `is_known`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

T = TypeVar("T")
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""glibc: blocks of 64 kB and more are the system's own, and go back to it when freed."""


def is_known(device: str = "cpu") -> bool:
    """Whether this machine tells the peak."""
    return device == "cuda" or RESET.exists()


def held(device: str = "cpu") -> int:
    """Bytes that are held now."""
    if device == "cuda":
        import torch

        return torch.cuda.memory_allocated()
    return _status("VmRSS")


def highest(device: str = "cpu") -> int:
    """Bytes that were held at most since `forget`."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def forget(device: str = "cpu") -> None:
    """The peak is what is held now."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    else:
        RESET.write_text("5")


def peak(job: Callable[[], object], device: str = "cpu") -> int:
    """Bytes held at most during a job, above those before it; the job has run before."""
    forget(device)
    before = held(device)
    job()
    return highest(device) - before


def alone(function: Callable[..., T], *args: Any) -> T:
    """What a function returns in a process of its own.

    Raises:
        Exception: The function's own; BrokenProcessPool where the process was killed.
    """
    with (
        mock.patch.dict(os.environ, RETURNED),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
    ):
        return pool.submit(function, *args).result()


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024
