"""Caches for tests: small ones, and those that child processes build, slowly or until killed."""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from probes.backends import open_backend
from probes.cache import ActivationCache
from probes.hooks import Site
from probes.models import ChatModel
from probes.prompts import Prompt, PromptSet
from tests.conftest import make_model, make_tokenizer

tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process cannot give back


N_SMALL = 10


def make_chat(**options: Any) -> ChatModel:
    return ChatModel("tiny/llama", None, make_model("llama", **options), make_tokenizer())


def make_prompts(n: int) -> PromptSet:
    """Of mixed lengths, so that batches are padded and sorted."""
    rows = [
        Prompt.of(f"Prompt {i}: " + "very " * (i * 7 % 11) + "short.", label=i % 2, source="made")
        for i in range(n)
    ]
    return PromptSet("made", tuple(rows))


class FakeBackend:
    """Rows without a model: prompt i of a batch is filled with its token count."""

    name = "fake"

    def __init__(self, n_layers: int, d_model: int, dtype: torch.dtype = torch.float32) -> None:
        self.n_layers, self.d_model, self.dtype = n_layers, d_model, dtype

    def capture(
        self, ids: Tensor, mask: Tensor, positions: Tensor, sites: Sequence[Site]
    ) -> Tensor:
        columns = [positions.to(self.dtype) + site.layer for site in sites]
        rows = torch.stack(columns, dim=1)[..., None]
        return rows.expand(len(ids), len(sites), self.d_model).contiguous()


def build_small(
    directory: Path, chat: ChatModel | None = None, prompts: PromptSet | None = None, **options: Any
) -> ActivationCache:
    """A cache of ten prompts in shards of four, with what a test changes."""
    chat = make_chat() if chat is None else chat
    options = {"backend": open_backend(chat.model), "shard_size": 4} | options
    return ActivationCache.build(
        directory, chat, make_prompts(N_SMALL) if prompts is None else prompts, **options
    )


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*"))}


class Refuses(FakeBackend):
    """Stands in for a model that must not be run."""

    name = "transformers"

    def __init__(self) -> None:
        super().__init__(n_layers=3, d_model=32)

    def capture(self, *arguments: object) -> Tensor:
        raise AssertionError("the model was run")


def build(directory: Path, n_prompts: int = 48, shard_size: int = 4) -> ActivationCache:
    """The one cache that all processes build: of a real, if tiny and random, Llama."""
    torch.set_num_threads(1)
    chat = make_chat()
    return ActivationCache.build(
        directory,
        chat,
        make_prompts(n_prompts),
        backend=open_backend(chat.model),
        shard_size=shard_size,
        token_budget=256,
    )


def build_slowly(directory: Path, seconds: float = 0.004) -> None:
    """Linger where a file is half-way to its name, so that a kill often finds it there."""
    os.fsync = _after(seconds, os.fsync)
    os.replace = _after(seconds, os.replace)
    build(directory)


def build_until(directory: Path, event: int, **sizes: int) -> None:
    """Die by SIGKILL just before the process touches the folder for the n-th time, from 0."""
    left = event

    def count(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if name not in ("open", "os.rename", "os.remove", "os.mkdir"):
            return
        if not str(arguments[0]).startswith(str(directory)):
            return
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.addaudithook(count)
    build(directory, **sizes)


def build_below(limit: int, directory: Path, result: Connection) -> None:
    """Build where no file may be larger than `limit` bytes; send the error's text."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    build_and_tell(directory, result)


def build_and_tell(directory: Path, result: Connection) -> None:
    """Build and send the error's type and text, or two empty strings."""
    try:
        build(directory)
        result.send(("", ""))
    except Exception as error:
        result.send((type(error).__name__, str(error)))


def peak_of_sweep(
    directory: Path, n_prompts: int, shard_size: int, keep: bool, result: Connection
) -> None:
    """Build, then stream; send by how many bytes the process grew at its peak."""
    _give_memory_back_at_once()
    backend, chat = FakeBackend(n_layers=16, d_model=4096), make_chat()
    prompts = make_prompts(n_prompts)

    def sweep(directory: Path, prompts: PromptSet) -> None:
        cache = ActivationCache.build(
            directory, chat, prompts, backend=backend, shard_size=shard_size
        )
        kept = []
        for block in cache.blocks(range(cache.n_layers)):
            kept.append(block if keep else block.rows)

    sweep(directory / "warm", make_prompts(2))  # what libraries take once
    before = _peak()
    sweep(directory / "measured", prompts)
    result.send(_peak() - before)


def _give_memory_back_at_once() -> None:
    """Keep glibc from holding on to freed memory, up to tens of MB as it pleases."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-3, 2**18)  # M_MMAP_THRESHOLD, bytes


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _after(seconds: float, call: Callable[..., None]) -> Callable[..., None]:
    def slow(*arguments: Any) -> None:
        time.sleep(seconds)
        call(*arguments)

    return slow
