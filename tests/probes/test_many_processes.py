"""The sweep by several processes: one cache, with the bytes that one process gives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from probes.errors import InputError
from probes.layer_sweep import main
from probes.ranks import ALONE, deal, uneven
from tests.probes import shared_sweep
from tests.probes.test_layer_sweep import contents
from tests.torchrun import started

ROOT = Path(__file__).parents[2]
SHARDS = 8 + 3
"""Of the two sets."""


def start(
    folder: Path, out: str, *, processes: int = 2, dies: str = "nobody"
) -> subprocess.CompletedProcess[str]:
    """The sweep under torchrun."""
    return started(shared_sweep.__name__, str(folder), out, dies, processes=processes, timeout=150)


def wrote(said: str) -> dict[int, set[str]]:
    """Which shards each process says that it has written."""
    # Not at a line's beginning alone: the first one's progress bar ends without a line's end.
    parts = re.split(r"rank (\d+) of \d+: (?=\d+ of)", said)[1:]
    return {
        int(rank): set(re.findall(r"^  (\S+\.safetensors)$", text, flags=re.M))
        for rank, text in zip(parts[::2], parts[1::2], strict=True)
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where one process has swept, with one thread, as each of several has."""
    found = tmp_path_factory.mktemp("shared")
    shared_sweep.write(found)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        main(shared_sweep.config(found, "one"))
    finally:
        torch.set_num_threads(threads)
    return found


def test_two_processes_leave_the_bytes_that_one_does(folder: Path) -> None:
    done = start(folder, "two")
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = contents(folder / "one"), contents(folder / "two")
    caches = {name for name in one if name.startswith("cache")}
    assert len([name for name in caches if name.endswith(".safetensors")]) == SHARDS
    assert {name: two[name] for name in two if name.startswith("cache")} == {
        name: one[name] for name in caches
    }
    for name in ("out/scores.csv", "out/risks.csv", "out/margins.csv"):
        assert two[name] == one[name]

    # Positive control: both have captured, about half of it, and nothing twice.
    by_rank = wrote(done.stderr)
    assert sorted(by_rank) == [0, 1]
    assert min(map(len, by_rank.values())) >= SHARDS // 2 - 1
    assert sum(map(len, by_rank.values())) == len(by_rank[0] | by_rank[1]) == SHARDS
    assert done.stdout.count("scores.csv") == 1  # the first alone goes on


@pytest.mark.parametrize("processes", [1, 2])
def test_one_that_dies_takes_the_others_along_and_the_rest_is_done_later(
    folder: Path, processes: int
) -> None:
    out = f"died-{processes}"
    done = start(folder, out, dies="1")
    assert done.returncode != 0
    left = list((folder / out / "cache").rglob("shard-*.safetensors"))
    assert 2 <= len(left) < SHARDS
    assert not (folder / out / "out" / "scores.csv").exists()

    if processes == 1:
        main(shared_sweep.config(folder, out))
    else:
        again = start(folder, out)
        assert again.returncode == 0, again.stderr[-3000:]
        assert all(wrote(again.stderr).values())  # what was left was shared out too
    assert contents(folder / out / "cache") == contents(folder / "one" / "cache")


def test_what_cannot_work_ends_all_processes_with_one_plain_message(tmp_path: Path) -> None:
    done = start(tmp_path, "out")  # nobody has written the model and the prompts
    assert done.returncode != 0
    assert "error: " in done.stderr
    assert "mine.jsonl" in done.stderr
    assert "Connection closed by peer" not in done.stderr


def python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process by itself, whatever it is told of others; its end."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_other_commands_refuse_to_be_several(tmp_path: Path) -> None:
    done = python("-m", "regularize.evaluate", "--out", str(tmp_path), RANK="1", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "one process, and 2 were started" in done.stderr


BUSY = """
import atexit, sys, threading, torch
from probes.commands import run
from probes.errors import InputError

def command(fails):
    atexit.register(print, "tidied up")
    def forever():
        while True:
            torch.ones(300, 300) @ torch.ones(300, 300)
    threading.Thread(target=forever, daemon=True).start()
    if fails:
        raise InputError("no")

sys.exit(run(command, sys.argv[1] == "fails", several=True))
"""
"""A command that leaves a thread behind, as gloo does."""


@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("fails", 2)])
def test_what_threads_do_meanwhile_does_not_spoil_the_end(how: str, code: int) -> None:
    done = python("-c", BUSY, how, RANK="0", WORLD_SIZE="2")
    assert done.returncode == code
    assert done.stdout == "tidied up\n"
    assert done.stderr == ("error: no\n" if code else "")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="Python 3.14 stops such threads")
def test_it_would_have_spoilt_it() -> None:
    """Positive control."""
    assert python("-c", BUSY, "ends").returncode == -signal.SIGABRT


def test_work_is_dealt_evenly_and_wholly() -> None:
    chance = Random(0)
    for size in (1, 2, 3, 8):
        costs = [chance.randint(1, 100) for _ in range(40)]
        owner = deal(costs, size)
        load = [
            sum(c for c, who in zip(costs, owner, strict=True) if who == k) for k in range(size)
        ]
        assert sum(load) == sum(costs)
        best = max(sum(costs) / size, max(costs))  # no division is faster than that
        assert max(load) <= 4 / 3 * best
        assert not uneven(costs, owner, size)
    assert uneven([5, 5, 5], deal([5, 5, 5], 8), 8)
    assert not uneven([0, 0], deal([0, 0], 8), 8)  # all is there already
    # Positive control: the first half and the second are far from even, where it is not.
    assert deal([9, 1, 1, 1, 1, 1, 1, 1, 1, 1], 2).count(0) == 1


def test_a_spread_model_is_refused_where_each_process_has_its_own_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from probes.models import load

    load("miniature/llama", device_map="auto")  # one process may
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--device-map auto spreads one model over all cards"):
        load("miniature/llama", device_map="auto")


def test_each_process_takes_its_own_card(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from probes import ranks

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert ranks.own_device() is None  # alone it may have all
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert ranks.own_device() == "cuda:1"
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(InputError, match="--nproc-per-node 2"):
        ranks.own_device()


def test_one_process_waits_for_nobody() -> None:
    ALONE.wait()
    assert ALONE.agreed([3, 1]) == [3, 1]
    with ALONE.first_goes_first():
        pass
