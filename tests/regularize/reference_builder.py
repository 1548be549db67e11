"""Builds a cached reference in a process of its own, which the tests kill."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from regularize import reference
from regularize.reference import Cached
from tests.regularize.training import encoded, tiny

SHARD = 2


def build(cache: Path, **options: Any) -> Cached:
    """A cache of the twelve rows."""
    return Cached.build(cache, **{"model": tiny(), "rows": encoded(), **options})


def build_slowly(cache: Path) -> None:
    """In small shards, with time to be killed in after each."""
    write = reference.write_atomically

    def slowly(path: Path, data: bytes) -> None:
        write(path, data)
        time.sleep(0.2)

    reference.SHARD = SHARD
    reference.write_atomically = slowly
    build(cache)
