"""Real processes against the cache: killed at any moment, two at once, short of disk or memory."""

import multiprocessing
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from probes.cache import ActivationCache
from tests.probes import cache_builder
from tests.probes.cache_builder import files

# The server imports torch and transformers once; each process of a test is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.probes.cache_builder"])

N_SHARDS = 12


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a build that nobody disturbed, in a process of its own."""
    directory = tmp_path_factory.mktemp("undisturbed") / "cache"
    assert run(cache_builder.build, directory) == 0
    return files(directory)


def start(target: Callable[..., object], *arguments: object) -> multiprocessing.Process:
    process = PROCESSES.Process(target=target, args=arguments)
    process.start()
    return process


def run(target: Callable[..., object], *arguments: object) -> int | None:
    process = start(target, *arguments)
    process.join(60)
    return process.exitcode


def ask(target: Callable[..., object], *arguments: object) -> object:
    """Run a function that sends one result."""
    receiver, sender = PROCESSES.Pipe(duplex=False)
    with receiver:
        process = start(target, *arguments, sender)
        sender.close()
        assert receiver.poll(60)
        answer = receiver.recv()
        process.join(60)
    return answer


def shards(directory: Path) -> int:
    return len(list(directory.glob("shard-*.safetensors")))


def test_a_build_is_deterministic_and_the_comparison_can_fail(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    assert len(undisturbed) == N_SHARDS + 2
    run(cache_builder.build, tmp_path / "again")
    assert files(tmp_path / "again") == undisturbed

    # Positive control: one prompt among 48 is another one.
    prompts = cache_builder.make_prompts(48)
    other = cache_builder.make_prompts(49).prompts[-1]
    changed = type(prompts)(prompts.name, (*prompts.prompts[:-1], other))
    chat = cache_builder.make_chat()
    ActivationCache.build(
        tmp_path / "changed",
        chat,
        changed,
        backend=cache_builder.open_backend(chat.model),
        shard_size=4,
        token_budget=256,
    )
    assert files(tmp_path / "changed") != undisturbed


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_it_ends_byte_identical(
    seed: int, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    chance, directory, kills = random.Random(seed), tmp_path / "cache", 0
    done = [-1]
    while done[-1] < N_SHARDS:
        process = start(cache_builder.build_slowly, directory)
        goal = max(done[-1], 0) + chance.randint(0, 1)
        while process.is_alive() and shards(directory) < goal:
            time.sleep(0.0005)
        time.sleep(chance.random() * 0.015)
        process.kill()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
        assert shards(directory) >= done[-1]  # what was there is kept
        done.append(shards(directory))
        for name, data in files(directory).items():  # and what has a name is whole
            assert name.endswith(".tmp") or data == undisturbed[name]
    assert kills >= 3
    assert run(cache_builder.build, directory) == 0
    assert files(directory) == undisturbed


def test_killed_at_each_touch_of_the_folder_in_turn(tmp_path: Path) -> None:
    sizes = {"n_prompts": 6, "shard_size": 3}
    whole = tmp_path / "whole"
    cache_builder.build(whole, **sizes)
    left_behind: set[str] = set()
    event, exitcode = 0, -signal.SIGKILL
    while exitcode == -signal.SIGKILL:
        directory = tmp_path / f"killed-{event}"
        process = PROCESSES.Process(
            target=cache_builder.build_until, args=(directory, event), kwargs=sizes
        )
        process.start()
        process.join(60)
        exitcode = process.exitcode
        if directory.exists():
            left_behind.update(p.name.split(".")[1] for p in directory.glob(".*.tmp"))
        cache_builder.build(directory, **sizes)
        assert files(directory) == files(whole), event
        event += 1
    assert exitcode == 0
    assert event > 12  # four files: each opened, synced, renamed
    # Some were killed between writing a file and naming it, and that was tidied up.
    assert left_behind == {"manifest", "index", "shard-00000", "shard-00001"}


def test_two_processes_at_once_do_not_spoil_each_other(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    for attempt in range(3):
        directory = tmp_path / str(attempt)
        both = [start(cache_builder.build_slowly, directory, 0.001 * i) for i in (1, 2)]
        for process in both:
            process.join(60)
        assert [process.exitcode for process in both] == [0, 0]
        assert files(directory) == undisturbed


def test_a_file_too_large_for_the_disk_is_a_clear_error(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    largest_other = max(len(undisturbed[name]) for name in ("manifest.json", "index.parquet"))
    one_shard = len(undisturbed["shard-00000.safetensors"])
    if largest_other < one_shard:  # the limit falls on a shard
        directory = tmp_path / "cache"
        kind, text = ask(cache_builder.build_below, largest_other, directory)
        assert kind == "CacheError"
        assert "shard-00000.safetensors" in text
        assert f"needs {one_shard / 1e6:.3f} MB" in text
        assert set(files(directory)) == {"manifest.json", "index.parquet"}
    directory = tmp_path / "smaller"
    kind, text = ask(cache_builder.build_below, 100, directory)
    assert kind == "CacheError"
    assert "no room for" in text
    assert "manifest.json" in text
    assert files(directory) == {}
    assert run(cache_builder.build, directory) == 0
    assert files(directory) == undisturbed


@contextmanager
def mounted(directory: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; skips where this user may not mount one."""
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a file system, which a full disk is tested with")
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_keeps_the_shards_that_fitted(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    room = sum(map(len, undisturbed.values())) * 2 // 3
    with mounted(tmp_path / "disk", f"size={room}") as disk:
        kind, text = ask(cache_builder.build_and_tell, disk / "cache")
        assert kind == "CacheError"
        assert "no room for" in text
        assert "No space left" in text
        kept = files(disk / "cache")
        assert 0 < shards(disk / "cache") < N_SHARDS
        assert all(undisturbed[name] == data for name, data in kept.items())
        subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
        assert ask(cache_builder.build_and_tell, disk / "cache") == ("", "")
        assert files(disk / "cache") == undisturbed


def test_a_read_only_folder_is_a_clear_error_but_a_whole_cache_in_it_is_read(
    undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "size=100m") as disk:
        assert ask(cache_builder.build_and_tell, disk / "whole") == ("", "")
        assert ask(cache_builder.build_and_tell, disk / "part") == ("", "")
        (disk / "part" / "shard-00003.safetensors").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)

        kind, text = ask(cache_builder.build_and_tell, disk / "part")
        assert kind == "CacheError"
        assert "cannot be written" in text
        assert "another folder" in text
        kind, text = ask(cache_builder.build_and_tell, disk / "new")
        assert kind == "CacheError"
        assert "another folder" in text
        assert set(undisturbed) - set(files(disk / "part")) == {"shard-00003.safetensors"}

        assert ask(cache_builder.build_and_tell, disk / "whole") == ("", "")


def test_peak_memory_does_not_grow_with_the_number_of_prompts(tmp_path: Path) -> None:
    shard_size = 128
    one_shard = shard_size * 17 * 4096 * 4  # bytes

    def peak(n_shards: int, keep: bool = False) -> float:
        """In shards, over what the process took before."""
        grown = ask(cache_builder.peak_of_sweep, tmp_path, n_shards * shard_size, shard_size, keep)
        shutil.rmtree(tmp_path / "measured")
        assert isinstance(grown, int)
        return grown / one_shard

    few, many, kept = peak(2), peak(8), peak(8, keep=True)
    assert many < 4  # as computed, by layer, and encoded
    assert many - few < 0.5
    assert kept - many > 3  # positive control: the measure sees what is kept
