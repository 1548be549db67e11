"""Where a number was measured, in words."""

from __future__ import annotations

import os

import torch


def of(device: str) -> str:
    """Such as `2 x CPU cores, 1 thread, torch 2.13`, or the GPU's name in the cores' place."""
    version = ".".join(torch.__version__.split(".")[:2])
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {version}"
    threads = torch.get_num_threads()
    told = "1 thread" if threads == 1 else f"{threads} threads"
    return f"{_cores()} x CPU cores, {told}, torch {version}"


def _cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
