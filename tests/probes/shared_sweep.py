"""The sweep as one of several processes, one of which may die: `torchrun ... -m ... CONFIG`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from probes.commands import run
from probes.layer_sweep import SweepConfig, by_all
from probes.shards import Shards
from tests.conftest import make_model, make_tokenizer


def config(folder: Path, out: str, **options: Any) -> SweepConfig:
    """A sweep of a tiny random model over two small sets of prompts of mixed lengths."""
    return SweepConfig(
        models=(str(folder / "model"),),
        train=(str(folder / "mine.jsonl"),),
        held_out=(str(folder / "theirs.jsonl"),),
        out=folder / out / "out",
        cache=folder / out / "cache",
        shard_size=8,
        token_budget=256,
        folds=2,
        C=(0.1,),
        **options,
    )


def write(folder: Path) -> None:
    """The model and the prompts."""
    make_model("llama").save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    for name, n in (("mine", 60), ("theirs", 20)):
        rows = [
            {"prompt": f"{name} {i} {'very ' * (i * 7 % 11)}{'abcdefgh'[i % 8]}", "label": i % 2}
            for i in range(n)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def dying(rank: int, after: int) -> None:
    """Let one process kill itself before it writes its n-th shard."""
    if os.environ.get("RANK", "0") != str(rank):
        return
    write, left = Shards.write, after

    def counted(self: Shards, *arguments: Any) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        write(self, *arguments)

    Shards.write = counted  # type: ignore[method-assign]


if __name__ == "__main__":
    folder, out, dies = sys.argv[1:]
    if dies != "nobody":
        dying(int(dies), after=2)
    sys.exit(run(by_all, config(Path(folder), out), several=True))
