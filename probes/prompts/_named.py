"""A published set: where it lies, whose it is, and how a row of it becomes a labelled prompt."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from probes import cells, files, hub
from probes.errors import InputError
from probes.files import Row
from probes.prompts.rows import Prompt

DATA = "ACTIVATION_CRITIC_DATA"
"""Environment variable: a folder with local copies, read in place of the hub where it has them."""


class Part(NamedTuple):
    """One table of a set."""

    at: str
    """On the hub "[config:]split", or "" for all splits; on disk the file's name."""
    label: int | None = None
    """The label of all its rows, where the table decides it."""


class Split(NamedTuple):
    """One split of a set: tables on the hub, and the same or a stand-in on disk."""

    hub: tuple[Part, ...] = ()
    files: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """A published set. The first split is the one that is read when none is named."""

    hub: str
    """Its id on the hub."""
    licence: str
    citation: str
    splits: Mapping[str, Split]
    prompt: Callable[[Row], str]
    label: Callable[[Row], int] | int | None = None
    """The label rule; None where each table has its own label."""
    group: Callable[[Row], str | None] | None = None
    """What must not straddle train and test; None: each row stands alone."""
    paired_with: str | None = None
    """For sets that hold harmful prompts only: the harmless set that goes with them."""
    columns: tuple[str, ...] = ()
    """Names for the columns of files that come without a header."""
    options: Mapping[str, object] = field(default_factory=dict)
    """What `datasets.load_dataset` must be told besides."""

    def pick(self, name: str, split: str | None) -> str:
        """The split to read: the one named, or the first that has local copies, or the first.

        Raises:
            InputError: There is no such split.
        """
        if split is None:
            here = (key for key, value in self.splits.items() if _local(value))
            return next(here, next(iter(self.splits)))
        if split not in self.splits:
            raise InputError(f"{name} has no split '{split}'; it has: {', '.join(self.splits)}.")
        return split

    def rows(self, name: str, split: str, copy: Path | None) -> Iterator[tuple[Row, Part]]:
        """The rows of a split from a copy, from the folder of local copies, or from the hub.

        Raises:
            InputError: The copy is not what it should be, or the hub cannot be reached.
        """
        wanted = self.splits[split]
        paths = _copies(name, wanted, copy) if copy else _local(wanted)
        if paths:
            for part, path in zip(wanted.files, paths, strict=True):
                for row in files.read(path, columns=self.columns):
                    yield row, part
            return
        if not wanted.hub:
            raise InputError(
                f"{name}: this set is not on the hub; give a copy, as in '{name}=FOLDER', with "
                f"{' and '.join(Path(part.at).name for part in wanted.files)} in it."
            )
        for part in wanted.hub:
            config, _, hub_split = part.at.rpartition(":")
            for row in hub.read(self.hub, config, hub_split, **self.options):
                yield row, part

    def to_prompt(
        self, row: Row, part: Part, *, source: str, group: str | None, category: str | None = None
    ) -> Prompt:
        """The labelled prompt of a row, grouped by the set's rule or by the field `group`.

        Its categories are in the field `category`, if one is named.
        """
        if part.label is not None:
            label = part.label
        else:
            assert self.label is not None, f"{source} has a label neither for parts nor for rows"
            label = self.label if isinstance(self.label, int) else self.label(row)
        if group is not None:
            of = cells.group(row, group)
        else:
            of = self.group(row) if self.group else None
        kinds = cells.names(row, category) if category else ()
        return Prompt.of(self.prompt(row), label=label, source=source, group=of, categories=kinds)


def text_of(*fields: str) -> Callable[[Row], str]:
    """Rule: the prompt is the first of these fields that the row has (copies name it otherwise)."""

    def rule(row: Row) -> str:
        name = next((name for name in fields if name in row), fields[0])
        return cells.text(row[name], row.at(name))

    return rule


def joined(first: str, second: str) -> Callable[[Row], str]:
    """Rule: an instruction, and under it the text it is about where there is one."""
    instruction = text_of(first)

    def rule(row: Row) -> str:
        about = row[second]
        return f"{instruction(row)}\n\n{about}" if about else instruction(row)

    return rule


def one_of(name: str, values: Mapping[object, int]) -> Callable[[Row], int]:
    """Rule: the label that a field's value stands for."""

    def rule(row: Row) -> int:
        value = row[name]
        if value not in values:
            raise InputError(
                f"{row.at(name)}: {value!r} is none of {', '.join(map(repr, values))}."
            )
        return values[value]

    return rule


def _local(split: Split) -> list[Path]:
    """The split's files in the folder of local copies; none unless it holds them all."""
    folder = os.environ.get(DATA)
    if not folder:
        return []
    if not os.path.isdir(folder):
        raise InputError(f"{DATA} is set to {folder}, which is not a folder: mend or unset it.")
    paths = [Path(folder) / part.at for part in split.files]
    return paths if all(path.is_file() for path in paths) else []


def _copies(name: str, split: Split, copy: Path) -> list[Path]:
    names = [Path(part.at).name for part in split.files]
    if copy.is_dir():
        return [copy / name for name in names]
    if len(names) != 1:
        raise InputError(
            f"{name}={copy}: this set is read from {len(names)} files; give the folder that holds "
            f"{' and '.join(names)}."
        )
    return [copy]
