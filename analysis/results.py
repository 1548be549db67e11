"""The tables that the commands write and read; their rows are in `analysis.rows`.

A table lies on disk twice, side by side: `.parquet` for programs and `.csv` for people.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pandas as pd

from analysis.attacker_rows import AttackerRow as AttackerRow
from analysis.bench_rows import BenchRow as BenchRow
from analysis.bench_rows import GrowthRow as GrowthRow
from analysis.beta_rows import BetaRow as BetaRow
from analysis.category_rows import CategoryRow as CategoryRow
from analysis.chain_rows import ChainRow as ChainRow
from analysis.evidence_rows import CalibrationRow as CalibrationRow
from analysis.evidence_rows import CausalRow as CausalRow
from analysis.evidence_rows import ControlRow as ControlRow
from analysis.evidence_rows import CosineRow as CosineRow
from analysis.evidence_rows import DriftRow as DriftRow
from analysis.evidence_rows import LayerRow as LayerRow
from analysis.evidence_rows import LeakRow as LeakRow
from analysis.evidence_rows import MarginRow as MarginRow
from analysis.evidence_rows import NestedRow as NestedRow
from analysis.evidence_rows import OperatingRow as OperatingRow
from analysis.evidence_rows import PromptRow as PromptRow
from analysis.evidence_rows import ReliabilityRow as ReliabilityRow
from analysis.judge_call_rows import JudgeCallRow as JudgeCallRow
from analysis.rows import TABLES as TABLES
from analysis.rows import CostRow as CostRow
from analysis.rows import EvaluationRow as EvaluationRow
from analysis.rows import RiskRow as RiskRow
from analysis.rows import ScoreRow as ScoreRow
from analysis.rows import StepRow as StepRow


class TableError(ValueError):
    """A table that cannot be read or drawn; the message names the file and the column."""


class NothingToDraw(TableError):
    """A sound table that lacks what one figure shows: that figure is passed over."""


VARIANTS = {
    "scores": ("train_set", "hook_point", "position", "seed"),
    "risks": ("train_set",),
    "margins": ("train_set", "hook_point", "position", "seed"),
    "operating": ("train_set",),
    "reliability": ("train_set",),
    "cosines": ("train_set", "hook_point"),
    "evaluations": ("prompts", "detector"),
    "categories": ("train_set", "hook_point", "position", "seed"),
    "judge_calls": ("model", "data", "judge"),
    "costs": ("model",),
    "attackers": ("model",),
    "chains": ("model",),
    "layers": ("train_set", "hook_point", "position", "seed"),
    "nested": ("train_set", "hook_point", "position", "seed"),
    "controls": ("train_set", "hook_point", "position", "seed"),
}
"""Table -> columns of which a picture shows one value: with several it is drawn several times.

Seeds of evaluations and steps are no variants but a sample, to be averaged. An evaluation's prompts
and detector may stand beside the columns of its row.
"""

PLAIN = {
    "str": "text",
    "int64": "a whole number",
    "float64": "a number",
    "bool": "True or False",
}
PARSE: dict[str, Callable[[str], Any]] = {
    "str": str,
    "int64": int,
    "float64": lambda text: float(text or "nan"),
    "bool": {"True": True, "False": False}.__getitem__,
}
FITS: dict[str, Callable[[pd.Series], bool]] = {
    "str": pd.api.types.is_string_dtype,
    "int64": pd.api.types.is_integer_dtype,
    "float64": pd.api.types.is_float_dtype,
    "bool": pd.api.types.is_bool_dtype,
}


Tables = dict[str, list[Any]]
"""Rows by the name of their table."""


class Slice(NamedTuple):
    """The part of a table that one picture shows."""

    suffix: str
    """What tells it apart in a file name: empty, or such as `-advbench`."""
    table: pd.DataFrame


def write(rows: Sequence[Any], stem: Path) -> None:
    """Write rows of one dataclass as `stem`.parquet and `stem`.csv; equal rows give equal bytes.

    Raises:
        TableError: there are no rows, or they are of several kinds.
    """
    if len({type(row) for row in rows}) != 1:
        raise TableError(f"{stem}: needs rows of one kind, and at least one")
    kinds = _columns(type(rows[0]))
    columns = {name: [getattr(row, name) for row in rows] for name in kinds}
    table = pd.DataFrame(columns).astype(dict(kinds))
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    # Both are ready before either is replaced, so that the pair does not come apart on a full disk.
    replace({stem.with_name(f"{stem.name}.parquet"): buffer.getvalue(),
             stem.with_name(f"{stem.name}.csv"): csv(table)})  # fmt: skip


def write_all(tables: Mapping[str, Sequence[Any]], folder: Path) -> None:
    """Write several tables; one without rows is not there afterwards."""
    for name, rows in tables.items():
        if rows:
            write(rows, folder / name)
        else:
            for kind in ("parquet", "csv"):
                (folder / f"{name}.{kind}").unlink(missing_ok=True)


def read_rows(folder: Path) -> Tables:
    """Every table that lies in a folder, as the rows that were written.

    Raises:
        TableError: there is none, or one is broken.
    """
    found: Tables = {}
    for name, table in read_all(folder).items():
        found[name] = _as_rows(table, TABLES[name])
    return found


def rows(folder: Path, name: str) -> list[Any]:
    """One table that lies in a folder, as the rows that were written; none if it is not there.

    Raises:
        TableError: It is broken.
    """
    path = find(folder, name)
    return [] if path is None else _as_rows(read(path, TABLES[name]), TABLES[name])


def csv(table: pd.DataFrame) -> bytes:
    """The table as CSV: UTF-8, shortest exact floats, NaN as an empty field."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def jsonl(rows: Iterable[Mapping[str, object]]) -> bytes:
    """Rows as JSON Lines: UTF-8, text as people wrote it."""
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()


def replace(contents: dict[Path, bytes]) -> None:
    """Write files so that each is either the old one or the new one, never a part."""
    staged = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged[path].write_bytes(content)
        for path, temporary in staged.items():
            os.replace(temporary, path)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def find(folder: Path, name: str) -> Path | None:
    """The file of a table in a folder, parquet before CSV; None where there is neither."""
    candidates = (folder / f"{name}.parquet", folder / f"{name}.csv")
    return next((path for path in candidates if path.exists()), None)


def read(path: Path, row: type) -> pd.DataFrame:
    """Read a table and hold it to its row's columns and types; more columns may stand beside them.

    A column that came later has a default in its row, which an older table is given.

    Args:
        path: a .parquet or .csv file.
        row: the dataclass of one row, such as `ScoreRow`.

    Raises:
        TableError: names the file, the column and, where there is one, the row and its value.
    """
    kinds = _columns(row)
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
        else:  # The known columns come as text, so that a set named "NA" or "007" stays itself.
            table = pd.read_csv(path, dtype=dict.fromkeys(kinds, str), keep_default_na=False)
    except (OSError, ValueError) as error:
        raise TableError(f"{path}: cannot be read: {error}") from error
    came_later = {
        field.name: field.default
        for field in fields(row)
        if field.default is not MISSING and field.name not in table.columns
    }
    table = table.assign(**came_later).astype({name: kinds[name] for name in came_later})
    missing = [name for name in kinds if name not in table.columns]
    if missing:
        raise TableError(f"{path}: no column {', '.join(missing)}; a {row.__name__} needs it")
    if table.empty:
        raise TableError(f"{path}: holds no rows")
    from_text = path.suffix != ".parquet"
    for name, kind in kinds.items():
        as_text = from_text and name not in came_later
        column = _parsed(table[name], kind, path) if as_text else table[name]
        table[name] = _checked(column, kind, path)
    return table


def read_all(folder: Path) -> dict[str, pd.DataFrame]:
    """Every table that lies in a folder, by name.

    Raises:
        TableError: there is none, or one is broken.
    """
    found = {name: find(folder, name) for name in TABLES}
    tables = {name: read(path, TABLES[name]) for name, path in found.items() if path}
    if not tables:
        wanted = ", ".join(f"{name}.parquet or {name}.csv" for name in TABLES)
        raise TableError(f"{folder}: holds no table ({wanted}); give --results")
    return tables


def slices(
    table: pd.DataFrame, name: str = "scores", *, together: Sequence[str] = ()
) -> Iterator[Slice]:
    """Split the table of this name by those of its `VARIANTS` that it holds several of.

    Slices come in order of appearance. What a picture shows `together` is not split.
    """
    variants = [
        column for column in VARIANTS.get(name, ()) if column in table and column not in together
    ]
    several = [column for column in variants if table[column].nunique() > 1]
    if not several:
        yield Slice("", table)
        return
    for values, part in table.groupby(several, sort=False):
        labels = (
            value if isinstance(value, str) else f"{column}{value}"
            for column, value in zip(several, values, strict=True)
        )
        yield Slice("".join(f"-{_file_safe(label)}" for label in labels), part)


def unique(table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """The table itself, if no two rows agree in all these columns.

    Raises:
        TableError: two do, so that a curve would have two values at one place.
    """
    names = list(columns)
    repeated = table[table.duplicated(names)]
    if not repeated.empty:
        first = ", ".join(f"{name} {repeated.iloc[0][name]}" for name in names)
        raise TableError(f"two rows for {first}; draw one train set and one run at a time")
    return table


def _columns(row: type) -> dict[str, str]:
    """Column -> pandas type, in the order of the fields."""
    names = {str: "str", int: "int64", float: "float64", bool: "bool"}
    hints = get_type_hints(row)
    return {field.name: names[hints[field.name]] for field in fields(row)}


def _parsed(column: pd.Series, kind: str, path: Path) -> pd.Series:
    """Text of a CSV as values of its kind."""
    values = []
    for line, text in enumerate(column, start=2):
        try:
            values.append(PARSE[kind](text))
        except (KeyError, ValueError):
            raise TableError(
                f"{path}, line {line}: column {column.name} is {text!r}, not {PLAIN[kind]}"
            ) from None
    return pd.Series(values, index=column.index, name=column.name)


def _checked(column: pd.Series, kind: str, path: Path) -> pd.Series:
    """The column in its exact type, if it is of that kind and, floats apart, has no holes."""
    if kind != "float64" and column.isna().any():
        raise TableError(f"{path}: column {column.name} has an empty field")
    if not FITS[kind](column):
        raise TableError(f"{path}: column {column.name} is {column.dtype}, not {PLAIN[kind]}")
    return column.astype(pd.api.types.pandas_dtype(kind))


def _file_safe(label: str) -> str:
    return "".join(char if char.isalnum() or char in "._" else "-" for char in label).strip("-.")


def _as_rows(table: pd.DataFrame, row: type) -> list[Any]:
    columns = [table[column].tolist() for column in _columns(row)]
    return [row(*values) for values in zip(*columns, strict=True)]
