"""The cache goes on where it was stopped, and names what is damaged."""

import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from probes.cache import ActivationCache, CacheError
from probes.errors import InputError
from probes.prompts import PromptSet
from probes.shards import Shards, write_atomically
from tests.probes.cache_builder import (
    FakeBackend,
    Refuses,
    build_small,
    files,
    make_chat,
)


def test_goes_on_with_what_is_missing_and_ends_byte_identical(
    copy: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = copy / "shard-00000.safetensors"
    (copy / "shard-00001.safetensors").unlink()
    (copy / "index.parquet").unlink()
    litter = copy / f".shard-00001.safetensors.{'0' * 32}.tmp"
    litter.write_bytes(b"half")
    before = kept.stat().st_mtime_ns
    with pytest.raises(CacheError, match="1 of 3 shards are missing"):
        ActivationCache.open(copy)

    written: list[int] = []
    honest = Shards.write
    monkeypatch.setattr(
        Shards, "write", lambda self, shard, a: (written.append(shard), honest(self, shard, a))[1]
    )
    build_small(copy, progress=True)
    assert written == [1]
    assert files(copy) == files(whole)
    assert kept.stat().st_mtime_ns == before
    bar = capsys.readouterr().err  # begins at the six prompts that were there
    assert re.search(r" 6/10 ", bar)
    assert re.search(r"10/10", bar)


def test_only_its_own_litter_is_removed(copy: Path) -> None:
    own = [
        copy / f".{name}.{'a' * 32}.tmp"
        for name in ("manifest.json", "index.parquet", "shard-00002.safetensors")
    ]
    others = [copy / name for name in (".notes.tmp", "mine.tmp", ".shard-1.tmp", "notes.txt")]
    for path in (*own, *others):
        path.write_text("x")
    build_small(copy)
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("times", [1, 2, 99])
def test_a_temporary_file_that_another_build_tidied_away_is_written_again(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, honest = times, os.replace

    def late(source: Path, target: Path) -> None:
        nonlocal left
        if left:
            left -= 1
            source.unlink()
        honest(source, target)

    monkeypatch.setattr(os, "replace", late)
    if times < 3:
        write_atomically(tmp_path / "file", b"whole")
        assert files(tmp_path) == {"file": b"whole"}
    else:
        with pytest.raises(CacheError, match="was removed while"):
            write_atomically(tmp_path / "file", b"whole")
        assert files(tmp_path) == {}


def flip(path: Path, byte: int) -> None:
    data = bytearray(path.read_bytes())
    data[byte] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def other_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def under_another_name(path: Path) -> None:
    shutil.copy(path.with_name("shard-00000.safetensors"), path)


def of_another_cache(path: Path) -> None:
    build_small(path.parent.parent / "other", make_chat(seed=1))
    shutil.copy(path.parent.parent / "other" / path.name, path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "damage", [truncate, other_header, under_another_name, of_another_cache, empty]
)
def test_a_damaged_shard_is_named_and_the_rest_kept(
    damage: Callable[[Path], None], copy: Path, whole: Path
) -> None:
    shard = copy / "shard-00001.safetensors"
    damage(shard)
    damaged = files(copy)
    for read in (lambda: ActivationCache.open(copy), lambda: build_small(copy, backend=Refuses())):
        with pytest.raises(CacheError, match=r"shard-00001\.safetensors.*Delete this file"):
            read()
    assert files(copy) == damaged
    shard.unlink()
    build_small(copy)
    assert files(copy) == files(whole)


def test_a_flipped_bit_in_a_layer_is_found_when_it_is_read(copy: Path) -> None:
    flip(copy / "shard-00002.safetensors", -1)
    cache = ActivationCache.open(copy)
    damaged = []
    for layer in range(3):
        try:
            assert torch.isfinite(cache.layer(layer)).all()
        except CacheError as error:
            assert f"shard-00002.safetensors: blocks.{layer}.hook_resid_post" in str(error)
            damaged.append(layer)
    assert len(damaged) == 1  # the other layers are still good
    with pytest.raises(CacheError, match="shard-00002"):
        list(cache.blocks(range(3)))


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "index.parquet", "manifest.json"])
def test_no_flipped_bit_passes_unseen(name: str, copy: Path, whole: Path) -> None:
    """Any bit anywhere in a file: an error that names a file, or what was stored."""

    def contents(directory: Path) -> tuple[pd.DataFrame, Tensor]:
        cache = ActivationCache.open(directory)
        columns = [cache.embedding(), *(cache.layer(layer) for layer in range(3))]
        return cache.index, torch.stack(columns)

    index, activations = contents(whole)
    data = (whole / name).read_bytes()
    chance, found = random.Random(0), 0
    for _ in range(400):
        damaged = bytearray(data)
        damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (copy / name).write_bytes(damaged)
        try:
            read_index, read_activations = contents(copy)
        except CacheError as error:
            assert str(copy) in str(error)
            found += 1
        else:
            pd.testing.assert_frame_equal(read_index, index)
            assert torch.equal(read_activations, activations)
    assert found > 200


def test_a_damaged_index_is_named_and_the_shards_kept(copy: Path, whole: Path) -> None:
    truncate(copy / "index.parquet")
    with pytest.raises(CacheError, match=r"index\.parquet.*Delete this file"):
        build_small(copy, backend=Refuses())
    (copy / "index.parquet").unlink()
    build_small(copy, backend=Refuses())
    assert files(copy) == files(whole)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"model": 1}', "\x00"])
def test_a_manifest_that_is_none_is_named(text: str, copy: Path) -> None:
    (copy / "manifest.json").write_text(text)
    for read in (lambda: ActivationCache.open(copy), lambda: build_small(copy)):
        with pytest.raises(CacheError, match=r"manifest\.json is no manifest"):
            read()


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is it a cache"):
        ActivationCache.open(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(CacheError, match="another folder"):
            build_small(directory)
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_size": 0}, "shard_size is 0"),
        ({"token_budget": -1}, "token_budget is -1"),
        ({"prompts": PromptSet("none", ())}, "'none' is empty"),
    ],
)
def test_bad_values_leave_nothing_behind(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        build_small(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_backend_of_another_shape_is_not_stored(tmp_path: Path) -> None:
    class Short(FakeBackend):
        def capture(self, *arguments: Any) -> Tensor:
            return super().capture(*arguments)[:, :-1]

    with pytest.raises((ValueError, RuntimeError)):
        build_small(tmp_path, backend=Short(3, 32))
    assert not list(tmp_path.glob("*shard*"))
