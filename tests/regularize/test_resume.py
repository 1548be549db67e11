"""A run that was killed and resumed ends where an undisturbed one does."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path

import pytest
from torch import Tensor

from regularize.trainer import STATE
from tests.regularize import resumable
from tests.regularize.resumable import EVERY, STEPS, make
from tests.regularize.training import distance, trained

# The server imports torch and transformers once; each process of a test is a fork of it.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["tests.regularize.resumable"])


def whole(folder: Path) -> list[Path]:
    """The checkpoints that were written to their end, the oldest first."""
    found = (folder / "out").glob("checkpoint-*/trainer_state.json")
    written = [path.parent for path in found if _is_json(path.read_text())]
    return sorted(written, key=lambda path: int(path.name[11:]))


def _is_json(text: str) -> bool:
    """The state is written last: whether a kill has caught it in the middle."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def resumed(folder: Path, checkpoint: Path, *, full: bool = False) -> dict[str, Tensor]:
    one = make(folder, full=full)
    one.train(resume_from_checkpoint=str(checkpoint))
    assert one.state.global_step == STEPS
    return trained(one.model)


@pytest.mark.parametrize("full", [False, True], ids=["adapter", "full"])
def test_killed_and_resumed_it_ends_at_the_same_place(full: bool, tmp_path: Path) -> None:
    undisturbed = make(tmp_path / "undisturbed", full=full)
    undisturbed.train()
    wanted = trained(undisturbed.model)

    folder = tmp_path / "killed"
    process = PROCESSES.Process(target=resumable.train_slowly, args=(folder, full))
    process.start()
    deadline = time.monotonic() + 60
    while len(whole(folder)) < 2:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    last = whole(folder)[-1]
    assert int(last.name[11:]) in (2 * EVERY, 3 * EVERY)
    assert distance(resumed(folder, last, full=full), wanted) < 1e-7

    # From an earlier checkpoint too.
    assert distance(resumed(folder, whole(folder)[0], full=full), wanted) < 1e-7


def test_the_smoothed_risk_comes_back(tmp_path: Path) -> None:
    one = make(tmp_path)
    one.train()
    wanted = trained(one.model)
    by_hand: list[float] = []
    for entry in one.state.log_history[:STEPS]:
        s_t = entry["risk"]
        by_hand.append(0.9 * by_hand[-1] + 0.1 * s_t if by_hand else s_t)
    for path in whole(tmp_path):
        kept = json.loads((path / STATE).read_text())["smoothed_risk"]
        assert kept == pytest.approx(by_hand[int(path.name[11:]) - 1], abs=1e-6)
    checkpoint = whole(tmp_path)[1]
    assert distance(resumed(tmp_path, checkpoint), wanted) < 1e-7
    (checkpoint / STATE).unlink()  # positive control
    assert distance(resumed(tmp_path, checkpoint), wanted) > 1e-4
