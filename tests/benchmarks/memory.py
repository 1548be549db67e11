"""Peak memory of a job, of ours over the baseline's.

The peak of the process's resident memory over the job, above what was resident before it: so that
models and data that both have beforehand do not count, and what numpy, MKL or scikit-learn take
does (torch's profiler sees torch's allocations alone). Each job runs in a process of its own,
twice, and the second time is measured: the first loads libraries and fills caches. The allocator is
told to give freed blocks back at once, so that what the first run freed is not resident any more.

Linux alone tells the peak (/proc/self/clear_refs sets it back); elsewhere the ratio is NaN.

Run as:
    python -m tests.benchmarks.memory BENCH NUMBER ours|theirs
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
"""glibc: blocks of 64 kB and more are the system's own, and go back to it when freed."""

Job = Literal["ours", "theirs"]


def ratio(bench: str, number: int) -> float:
    """Peak of ours over the baseline's.

    Args:
        bench: A module of this package with `cases()`.
        number: Of the case in it, from 0.
    """
    if not RESET.exists():
        return float("nan")
    return _measured(bench, number, "ours") / _measured(bench, number, "theirs")


def peak(job: Callable[[], object]) -> int:
    """Bytes resident at most during a job, above those before it; the job has run before."""
    RESET.write_text("5")
    before = _status("VmRSS")
    job()
    return _status("VmHWM") - before


def _measured(bench: str, number: int, job: Job) -> int:
    command = [sys.executable, "-m", "tests.benchmarks.memory", bench, str(number), job]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | RETURNED, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def _status(name: str) -> int:
    lines = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(lines[name].split()[0]) * 1024


def main(bench: str, number: str, job: str) -> None:
    """Print the peak of one job, bytes."""
    cases = import_module(f"tests.benchmarks.{bench}").cases()
    chosen = getattr(next(islice(cases, int(number), None)), job)
    chosen()
    print(peak(chosen))


if __name__ == "__main__":
    main(*sys.argv[1:])
