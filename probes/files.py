"""CSV, TSV, JSONL and Parquet files as rows that know their place.

Every cell of a CSV file is text, as written: a prompt "NA" stays a text and "007" keeps its zeros.
Rows are numbered as a person sees them: by line in a text file (the line where the row begins), by
row, counted from 1, in a Parquet file.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from probes.errors import InputError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table, and where it stands."""

    file: str
    """The table's name, as the person gave it."""
    number: str
    """Its number as a person sees it: "line 12" or "row 3"."""
    index: int
    """Its place among the table's rows, from 0."""
    cells: Mapping[str, object]

    def at(self, field: str) -> str:
        """Where a field of this row stands, for messages."""
        return f"{self.file}, {self.number}, field '{field}'"

    def __contains__(self, field: str) -> bool:
        return field in self.cells

    def __getitem__(self, field: str) -> object:
        if field not in self.cells:
            raise InputError(
                f"{self.at(field)}: there is no such field. The row has: "
                f"{', '.join(map(repr, self.cells)) or 'none'}.{_separator_hint(self.cells)}"
            )
        return self.cells[field]


def read(path: Path, *, columns: Sequence[str] = ()) -> list[Row]:
    """The rows of a file, told by its suffix.

    Args:
        path: A .csv, .tsv, .jsonl or .parquet file; text in UTF-8, with or without a BOM.
        columns: The columns of a CSV file that has no header.

    Raises:
        InputError: The file is missing, a folder, of another kind, broken or without rows.
    """
    _check_path(path)
    if path.suffix.lower() == ".parquet":
        rows = list(_parquet(path))
    elif path.suffix.lower() == ".jsonl":
        rows = list(_jsonl(path))
    else:
        rows = list(_csv(path, columns))
    if not rows:
        raise InputError(f"{path}: the file has no rows.")
    return rows


def _check_path(path: Path) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give one of the files in it ({_kinds()}).")
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            f"{path}: files ending in '{path.suffix}' cannot be read, only {_kinds()}."
        )
    if not path.exists():
        folder = path.parent
        present = [p.name for p in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, present, n=2)
        hint = f" Did you mean {' or '.join(str(folder / name) for name in near)}?" if near else ""
        raise InputError(f"{path}: there is no such file.{hint}")


def _kinds() -> str:
    return ", ".join(SUFFIXES)


def _text(path: Path) -> str:
    """The file's text. An error gives the byte and line where it stops being UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}).") from error
    if not data.strip():
        raise InputError(f"{path}: the file is empty.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        kind = " It looks like UTF-16." if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise InputError(
            f"{path}, line {line}, byte {error.start + 1} of the file (0x{data[error.start]:02x}) "
            f"is not UTF-8.{kind} Save the file as UTF-8."
        ) from error


def _csv(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    text = io.StringIO(_text(path), newline="")
    reader = csv.reader(text, delimiter=DELIMITERS[path.suffix.lower()], strict=True)
    header, begins, index = list(columns), 1, 0
    try:
        for cells in reader:
            line, begins = begins, reader.line_num + 1
            if not cells:  # a blank line
                continue
            if not header:
                header = cells
                if repeated := {name for name in header if header.count(name) > 1}:
                    names = ", ".join(map(repr, sorted(repeated)))
                    raise InputError(f"{path}, line {line}: the header names {names} twice.")
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"{path}, line {line}: the row has {len(cells)} fields, the header "
                    f"{len(header)}. A text with a comma, a quote or a line break needs quotes."
                    f"{_separator_hint(header)}"
                )
            yield Row(str(path), f"line {line}", index, dict(zip(header, cells, strict=True)))
            index += 1
    except csv.Error as error:
        raise InputError(
            f"{path}, line {begins}: the row that begins here is not CSV ({error})."
        ) from error


def _separator_hint(header: Sequence[str] | Mapping[str, object]) -> str:
    """A CSV file with one column whose name holds a semicolon or a tab is written otherwise."""
    only = next(iter(header), "") if len(header) == 1 else ""
    wrong = next((mark for mark in (";", "\t", ",") if mark in only), None)
    return f" Fields seem to be separated by {wrong!r} here." if wrong else ""


def _jsonl(path: Path) -> Iterator[Row]:
    lines = _text(path).split("\n")  # not splitlines: a JSON text may hold U+2028
    filled = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for index, (number, line) in enumerate(filled):
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}, line {number}, column {error.colno}: not JSON ({error.msg}). "
                "Each line must be one JSON object."
            ) from error
        if not isinstance(cells, dict):
            raise InputError(
                f"{path}, line {number}: a JSON object is needed, this is {_name(cells)}."
            )
        yield Row(str(path), f"line {number}", index, cells)


def _name(value: object) -> str:
    return {list: "a list", str: "a text", type(None): "null", bool: "true or false"}.get(
        type(value), "a number"
    )


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}).") from error
    for index, cells in enumerate(table.to_pylist()):
        yield Row(str(path), f"row {index + 1}", index, cells)
