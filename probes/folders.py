"""Folders that a run which is killed leaves whole, or not at all."""

import json
import shutil
from pathlib import Path


def put(unfinished: Path, folder: Path) -> None:
    """Give a finished folder its name; what had the name before goes whole, and only then."""
    old = folder.with_name(f".{folder.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.replace(old)
    unfinished.replace(folder)
    shutil.rmtree(old, ignore_errors=True)


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole; what a killed run left half-written is removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.partition("-")[2]))
    while found:
        newest = found.pop()
        try:  # the state is written last
            json.loads((newest / "trainer_state.json").read_text())
            return str(newest)
        except (OSError, ValueError):
            shutil.rmtree(newest)
    return None
