"""The processes that share one command's work, as `torchrun` starts them; usually there is one.

    torchrun --nproc-per-node 4 -m probes.layer_sweep ...

They meet to agree on who does what, and to wait until it is done: a few numbers, for which gloo
serves on every machine. What they compute goes through the disk.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from probes.errors import InputError

PATIENCE = timedelta(hours=12)
"""How long one waits for another that neither answers nor hangs up. One that dies hangs up."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that do the work."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this one prints, and does alone what is not shared out."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here.

        Raises:
            InputError: Another one is gone.
        """
        if self.size > 1:
            from torch import distributed

            with _together():
                distributed.barrier()

    def agreed(self, numbers: Sequence[int]) -> list[int]:
        """The first one's numbers, in all; the others give as many of their own.

        Raises:
            InputError: Another one is gone.
        """
        if self.size == 1:
            return list(numbers)
        import torch
        from torch import distributed

        found = torch.tensor(numbers, dtype=torch.long)
        with _together():
            distributed.broadcast(found, src=0)
        return [int(one) for one in found]

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The others begin when the first is through, and find what it has left on the disk.

        They begin too where it fails: the same is about to be wrong with them.
        """
        if not self.first:
            self.wait()
        try:
            yield
        finally:
            if self.first:
                self.wait()


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes of this command, if there are any."""
    size = started()
    if size == 1:
        yield ALONE
        return
    from torch import distributed

    distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), size)
    finally:
        distributed.destroy_process_group()


def leave(code: int) -> None:
    """End this process, if it is one of several, as `multiprocessing` ends its own.

    What is to be done at exit is done, but the interpreter is not torn down: gloo's threads, which
    live for as long as torch's caches know of their group, may let go of a tensor meanwhile, and
    before Python 3.14 that aborts the process (SIGABRT) with its work done.

    Args:
        code: Exit code. Only after 0 the others are waited for: one that fails might wait in vain.
    """
    if started() == 1:
        return
    if code == 0:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def started() -> int:
    """How many processes `torchrun` or `accelerate launch` has started for this command."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def launched_with(what: str) -> bool:
    """Whether `accelerate launch` asks for FSDP, or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{what}", "false").lower() in ("true", "1", "yes")


def own_device() -> str | None:
    """The accelerator of this process where several share a machine, as `cuda:1`; else None.

    Raises:
        InputError: There are more processes than accelerators.
    """
    import torch

    if started() == 1 or (kind := torch.accelerator.current_accelerator()) is None:
        return None
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.accelerator.device_count()
    if local >= there:
        raise InputError(
            f"this machine runs more processes than it has accelerators ({there}), and each takes "
            f"one of its own: start with --nproc-per-node {there}"
        )
    return f"{kind.type}:{local}"


def deal(costs: Sequence[int], size: int) -> list[int]:
    """Who takes each piece of work: the dearest first, to whoever has least to do so far.

    At worst 4/3 of the time that the best division takes (Graham 1969).

    Args:
        costs: Of each piece, in any unit; those of 0 are done already.
        size: How many there are to share them.
    """
    owner, load = [0] * len(costs), [0] * size
    for piece in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        owner[piece] = load.index(min(load))
        load[owner[piece]] += costs[piece]
    return owner


def uneven(costs: Sequence[int], owner: Sequence[int], size: int) -> bool:
    """Whether somebody has more than half as much again as an even share."""
    load = [0] * size
    for cost, who in zip(costs, owner, strict=True):
        load[who] += cost
    return max(load) * size > 1.5 * sum(load)


@contextmanager
def _together() -> Iterator[None]:
    """Say in plain words that another process is gone."""
    try:
        yield
    except RuntimeError as error:
        raise InputError(
            "another process of this run has ended before its work was done; what it said stands "
            "above. What was finished is kept: the same command goes on"
        ) from error
