"""What judges have said, on disk, so that nothing is paid for twice.

One SQLite file. A reply is written as soon as it has come, so that a run that is killed goes on
where it was; several processes may read and write, and of those that ask the same judge one asks at
a time, so that the others find what it has been told. No key to any server is in it.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock

from probes.errors import InputError
from regularize.judging import Judge, Question, Reply

LAYOUT = 1
"""Raised when an equal key begins to mean another question."""
FILE = "replies.sqlite"
CREATE = """CREATE TABLE IF NOT EXISTS replies (
    key TEXT PRIMARY KEY, judge TEXT NOT NULL, place TEXT NOT NULL, attempt INTEGER NOT NULL,
    text TEXT NOT NULL, ending TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP)"""
PATIENCE = 60.0
"""Seconds that a write waits for another process's."""


class Cache:
    """Replies by what was asked of whom."""

    def __init__(self, folder: Path) -> None:
        """Open the folder's file, or begin one.

        Raises:
            InputError: It cannot be read or written.
        """
        self.path = folder / FILE
        with self._plainly():
            folder.mkdir(parents=True, exist_ok=True)
            with self._open() as database:
                database.execute(CREATE)

    @contextmanager
    def alone(self, judge: Judge) -> Iterator[None]:
        """Nobody else asks this judge meanwhile; waits until that is so."""
        name = f"{_hash(judge.made_of)[:16]}.lock"
        with FileLock(self.path.with_name(name)):
            yield

    def find(self, keys: Iterable[str]) -> dict[str, Reply]:
        """The replies that are known, by key."""
        query = "SELECT text, ending, prompt_tokens, completion_tokens FROM replies WHERE key = ?"
        with self._plainly(), self._open() as database:
            rows = {key: database.execute(query, (key,)).fetchone() for key in keys}
        return {key: Reply(*row) for key, row in rows.items() if row is not None}

    def keep(self, key: str, judge: Judge, question: Question, reply: Reply) -> None:
        """Write a reply; it is on the disk when this returns."""
        row = (key, judge.name, question.exchange.where, question.attempt, *reply)
        names = "key, judge, place, attempt, text, ending, prompt_tokens, completion_tokens"
        with self._plainly(), self._open() as database:
            database.execute(
                f"INSERT OR IGNORE INTO replies ({names}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # Closed each time: replies come from whatever thread the judge is asked in.
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as database, database:
            yield database

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise InputError(
                f"{self.path}: what judges have said cannot be kept there ({error}); give another "
                "--critic.cache, or mend or remove that file"
            ) from error


def key(judge: Judge, question: Question) -> str:
    """Of a question to a judge: equal where the reply would do for both."""
    exchange = question.exchange
    return _hash([LAYOUT, judge.made_of, list(exchange.prompt), exchange.answer, question.attempt])


def _hash(values: object) -> str:
    # As `probes.manifest.json_hash`, which imports torch: a judge behind a server needs none.
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
