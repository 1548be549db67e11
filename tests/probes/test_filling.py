"""Rendering ahead and writing behind, in a thread beside the model: the same files."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from probes import filling
from probes.hooks import LAST, Site
from probes.shards import CacheError, Shards
from tests.probes.cache_builder import FakeBackend, build_small, files, make_chat, make_prompts


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the model runs on an accelerator."""
    monkeypatch.setattr(filling, "runs_elsewhere", lambda chat: True)


@pytest.mark.usefixtures("beside")
def test_a_thread_leaves_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers: list[str] = []
    write = Shards.write

    def told(self: Shards, *arguments: Any) -> None:
        writers.append(threading.current_thread().name)
        write(self, *arguments)

    monkeypatch.setattr(Shards, "write", told)
    build_small(tmp_path / "beside")
    assert "MainThread" not in writers
    monkeypatch.undo()  # now as on a CPU
    monkeypatch.setattr(Shards, "write", told)
    build_small(tmp_path / "at-once")
    assert writers[-1] == "MainThread"
    assert files(tmp_path / "beside") == files(tmp_path / "at-once")
    assert len(files(tmp_path / "beside")) == 3 + 2


@pytest.mark.usefixtures("beside")
def test_what_goes_wrong_in_the_thread_is_raised_and_what_was_written_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Shards.write

    def full(self: Shards, shard: int, activations: Tensor) -> None:
        if shard == 1:
            raise CacheError("no room")
        write(self, shard, activations)

    monkeypatch.setattr(Shards, "write", full)
    with pytest.raises(CacheError, match="no room"):
        build_small(tmp_path)
    assert (tmp_path / "shard-00000.safetensors").exists()
    assert not (tmp_path / "shard-00001.safetensors").exists()

    def unreadable(*arguments: Any, **options: Any) -> None:
        raise KeyError("a template's")

    monkeypatch.undo()
    monkeypatch.setattr(filling, "runs_elsewhere", lambda chat: True)
    monkeypatch.setattr(filling, "render", unreadable)
    with pytest.raises(KeyError, match="a template's"):
        build_small(tmp_path)


@pytest.mark.usefixtures("beside")
def test_no_more_than_one_shard_waits_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, written, waiting = 0, 0, []

    class Counting(FakeBackend):
        def capture(
            self, ids: Tensor, mask: Tensor, positions: Tensor, sites: Sequence[Site]
        ) -> Tensor:
            nonlocal captured
            captured += len(ids)
            waiting.append(captured - written)
            return super().capture(ids, mask, positions, sites)

    write = Shards.write

    def slow(self: Shards, shard: int, activations: Tensor) -> None:
        nonlocal written
        n = len(activations)
        threading.Event().wait(0.05)
        write(self, shard, activations)
        written += n

    monkeypatch.setattr(Shards, "write", slow)
    chat, prompts = make_chat(), make_prompts(24)
    backend = Counting(n_layers=3, d_model=32)
    build_small(tmp_path, chat, prompts, backend=backend, shard_size=4, position=LAST)
    assert captured == written == 24
    assert max(waiting) == 2 * 4  # one as it is captured, and the one before as it is written
