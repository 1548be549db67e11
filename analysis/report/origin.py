"""Where the results are from: the command, the releases, the commit and the hashes."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from analysis.report.grids import Grid, Line
from analysis.results import TableError

COMMANDS = {"export": "probes.layer_sweep", "add_at": "probes.causal_check"}
"""Argument that only one command has -> the command; for a config.json that does not name it."""
BESIDE = ("versions", "command", "commit")
"""What config.json holds beside the arguments."""
SHOWN = 16
"""Digits of a hash."""


class Origin(NamedTuple):
    """What it takes to have the results again."""

    command: str
    """Empty where it is not known."""
    commit: str
    versions: tuple[tuple[str, str], ...]
    hashes: Grid | None
    fpr: float | None
    """The rate that the frozen thresholds were asked to keep."""
    searched: bool
    """Whether leaks were looked for, be it that none were found and there is no table of them."""


def origin(folder: Path) -> Origin:
    """Read config.json, and done.json and the probe's config.json of each model and train set.

    Raises:
        TableError: one of them is no JSON object.
    """
    config = _read(folder / "config.json") if (folder / "config.json").is_file() else {}
    versions, fpr = config.get("versions"), config.get("fpr")
    commit = config.get("commit")
    return Origin(
        command=command(config),
        commit=str(commit) if commit else "",
        versions=tuple((str(name), str(one)) for name, one in versions.items())
        if isinstance(versions, Mapping) else (),
        hashes=_hashes(folder),
        fpr=float(fpr) if isinstance(fpr, int | float) else None,
        searched="keep_leaks" in config,
    )  # fmt: skip


def command(config: Mapping[str, object]) -> str:
    """The line that gives these arguments again, quoted for a shell; None and () are defaults."""
    module = config.get("command") or next((COMMANDS[one] for one in COMMANDS if one in config), "")
    if not module:
        return ""
    words = ["python", "-m", str(module)]
    for name, value in config.items():
        if name not in BESIDE:
            words += _flag(name.replace("_", "-"), value)
    return shlex.join(words)


def _flag(name: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from _flag(f"{name}.{inner.replace('_', '-')}", one)
    elif isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    elif isinstance(value, list):
        if value:
            yield from (f"--{name}", *map(str, value))
    elif value is not None:
        yield from (f"--{name}", str(value))


def _hashes(folder: Path) -> Grid | None:
    """The weights, the template, the prompts and the caches, under each model and train set."""
    lines: list[Line] = []
    for done in sorted(folder.glob("*/*/done.json")):
        lines.append(Line((str(done.parent.relative_to(folder)),), heading=True))
        found = dict(_of_probe(done.parent / "probe" / "config.json"))
        caches = _read(done).get("caches")
        if isinstance(caches, Mapping):
            found |= {f"activations of {name}": str(value) for name, value in caches.items()}
        lines += [Line((what, value[:SHOWN])) for what, value in found.items()]
    if not lines:
        return None
    return Grid("Hashes of what went in", ("of", "SHA-256"), tuple(lines),
                f"The first {SHOWN} digits; the whole stand in each done.json and "
                "probe/config.json.", texts=2)  # fmt: skip


def _of_probe(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        return
    probe = _read(path)
    for field, what in {"weights": "the model's weights", "template": "the chat template",
                        "train_hash": "the train set"}.items():  # fmt: skip
        if isinstance(probe.get(field), str):
            yield what, str(probe[field])


def _read(path: Path) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TableError(f"{path}: no JSON: {error}") from error
    if not isinstance(found, dict):
        raise TableError(f"{path}: holds no JSON object; was it written by a command of this kind?")
    return found
