"""From a spec to a PromptSet: find the source, read and check its rows, pair and join."""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import probes.prompts
from probes import cells, files, hub
from probes.errors import InputError
from probes.files import Row
from probes.prompts import _check
from probes.prompts._check import Placed
from probes.prompts._spec import Term, parse
from probes.prompts.rows import Prompt, PromptSet


class Loaded(NamedTuple):
    """The rows of one term."""

    name: str
    rows: list[Placed]
    notes: tuple[str, ...]
    licence: str = ""
    citation: str = ""
    paired_with: str | None = None


def load(spec: str, *, seed: int = 0, both_classes: bool = True) -> PromptSet:
    """The labelled prompts that a spec names; the package's docstring has the grammar.

    Args:
        spec: A file, a set's name, `hub:org/name`, or several of them joined by `+`.
        seed: Draws the harmless rows that a set of harmful prompts is paired with, and seeds
            sets that are generated.
        both_classes: A probe needs harmful and harmless rows, so that a set of harmful ones alone
            is paired with a harmless set. False takes the rows as they are.

    Raises:
        InputError: Nothing of that name, an unreadable or malformed source, or one class only.
            The message names file, row and field.
    """
    parts = [_read(term, seed) for term in parse(spec)]
    harmful = sum(len(part.rows) for part in parts)
    if both_classes and all(row.prompt.label == 1 for part in parts for row in part.rows):
        pair = parts[0].paired_with
        if pair and all(part.paired_with for part in parts):
            parts.append(_pair(spec, pair, harmful, seed))
    rows, notes = _check.distinct(row for part in parts for row in part.rows)
    name = "+".join(part.name for part in parts)
    _check_classes(spec, rows, 2 if both_classes else 1)
    return PromptSet(
        name,
        tuple(row.prompt for row in rows),
        licence=_by_name(parts, [part.licence for part in parts]),
        citation=_by_name(parts, [part.citation for part in parts]),
        notes=(
            *(f"{part.name}: {note}" for part in parts for note in part.notes),
            *(f"{name}: {note}" for note in notes),
        ),
    )


def names() -> tuple[str, ...]:
    """The names of the sets, in alphabetical order."""
    return tuple(sorted(_sets()))


def describe() -> str:
    """A line for each set, for help texts: its name and the first line of its file."""
    sets = _sets()
    width = max(map(len, sets))
    return "\n".join(
        f"{name:{width}}  {(sets[name].__doc__ or '').partition(chr(10))[0]}"
        for name in sorted(sets)
    )


def _sets() -> dict[str, ModuleType]:
    """The modules beside this one that hold a set: a `SET`, or `SPLITS` and `rows` to make one."""
    found = pkgutil.iter_modules(probes.prompts.__path__)
    modules = (
        importlib.import_module(f"probes.prompts.{module.name}")
        for module in found
        if not module.name.startswith("_")
    )
    return {
        module.__name__.rpartition(".")[2].replace("_", "-"): module
        for module in modules
        if hasattr(module, "SET") or hasattr(module, "SPLITS")
    }


def _read(term: Term, seed: int) -> Loaded:
    source, _, copy = term.source.partition("=")
    name, _, split = source.partition(":")
    if name == "hub":
        return _read_hub(term)
    if module := _sets().get(name):
        chosen = {"group", "category"} if hasattr(module, "SET") else set()
        if term.columns.keys() - chosen:
            raise InputError(
                f"{term.source}: the set knows its own columns"
                + (": only 'group' and 'category' can be chosen." if chosen else ".")
            )
        if hasattr(module, "SET"):
            return _read_named(name, module, split or None, Path(copy) if copy else None, term)
        return _generate(name, module, split, seed)
    path = Path(term.source)
    if path.suffix or os.path.exists(path) or len(path.parts) > 1:
        return _read_file(path, term)
    present = [path.name for path in Path().iterdir() if path.suffix in files.SUFFIXES]
    near = difflib.get_close_matches(name, [*names(), *present])
    raise InputError(
        f"prompts '{term.source}': neither a set nor a file of that name."
        + (f" Did you mean {' or '.join(near)}?" if near else "")
        + f" The sets: {', '.join(names())}."
    )


def _read_file(path: Path, term: Term) -> Loaded:
    rows = files.read(path)
    placed = [
        Placed(_mapped(row, term, path.stem), f"{row.file}, {row.number}", published=False)
        for row in rows
    ]
    return _loaded(path.stem, placed, [str(path)])


def _read_hub(term: Term) -> Loaded:
    path, *pieces = term.source.removeprefix("hub:").split(":")
    if not path or len(pieces) > 2:
        raise InputError(f"{term.source}: write hub:org/name, hub:org/name:split or with :config.")
    config, split = hub.resolve(path, pieces)
    placed = [
        Placed(_mapped(row, term, path), f"{row.file}, {row.number}", published=True)
        for row in hub.read(path, config, split)
    ]
    return _loaded(":".join([path, *pieces]), placed, [f"hub:{path}"])


def _read_named(
    name: str, module: ModuleType, split: str | None, copy: Path | None, term: Term
) -> Loaded:
    chosen = module.SET.pick(name, split)
    first = next(iter(module.SET.splits))
    placed, counts = [], Counter[str]()
    for row, part in module.SET.rows(name, chosen, copy):
        columns = term.columns
        prompt = module.SET.to_prompt(
            row, part, source=name, group=columns.get("group"), category=columns.get("category")
        )
        placed.append(Placed(prompt, f"{row.file}, {row.number}", published=True))
        counts[row.file] += 1
    return _loaded(name if chosen == first else f"{name}:{chosen}", placed, counts)._replace(
        licence=module.SET.licence,
        citation=module.SET.citation,
        paired_with=module.SET.paired_with,
    )


def _generate(name: str, module: ModuleType, split: str, seed: int) -> Loaded:
    chosen = split or next(iter(module.SPLITS))
    if chosen not in module.SPLITS:
        raise InputError(f"{name} has no split '{chosen}'; it has: {', '.join(module.SPLITS)}.")
    prompts = module.rows(chosen, seed)
    placed = [
        Placed(prompt, f"{name}:{chosen}, row {i}", published=True)
        for i, prompt in enumerate(prompts, 1)
    ]
    return _loaded(f"{name}:{split}" if split else name, placed, [f"seed {seed}"])


def _mapped(row: Row, term: Term, source: str) -> Prompt:
    """A person's own row as a prompt, by the columns that the term names or the usual ones."""
    columns = term.columns
    chat = columns.get("messages") or ("messages" if "messages" in row else None)
    text = columns.get("prompt") or ("prompt" if "prompt" in row or not chat else None)
    if chat and text and not columns.keys() & {"prompt", "messages"}:
        raise InputError(
            f"{row.file}, {row.number}: the row has both a 'prompt' and 'messages'; say which to "
            f"read: '{term.source}?prompt=prompt' or '{term.source}?messages=messages'."
        )
    content = (
        cells.text(row[text], row.at(text))
        if text and "messages" not in columns
        else cells.messages(row[chat or "messages"], row.at(chat or "messages"))
    )
    label = term.constant_label
    if label is None:
        field = columns.get("label", "label")
        label = cells.label(row[field], row.at(field))
    group = columns.get("group") or ("group" if "group" in row else None)
    kind = columns.get("category") or ("category" if "category" in row else None)
    origin = columns.get("source") or ("source" if row.cells.get("source") else None)
    return Prompt.of(
        content,
        label=label,
        source=cells.text(row[origin], row.at(origin)) if origin else source,
        group=cells.group(row, group) if group else None,
        categories=cells.names(row, kind) if kind else (),
    )


def _loaded(name: str, placed: list[Placed], origins: Iterable[str]) -> Loaded:
    rows, notes = _check.distinct(placed)
    return Loaded(name, rows, (f"{len(placed)} rows of {', '.join(origins)}", *notes))


def _pair(spec: str, pair: str, n: int, seed: int) -> Loaded:
    """As many harmless rows, drawn by the seed and left in their order, as there are harmful."""
    try:
        part = _read(parse(pair)[0], seed)
    except InputError as error:
        raise InputError(
            f"{spec} holds harmful prompts only and is paired with {pair}, which cannot be read: "
            f"{error} Join a set that can, as in '{spec}+dolly', or give a copy, as in "
            f"'{spec}+{pair}=FILE'."
        ) from error
    # By the spec too: of one seed, a smaller draw would be part of a larger one.
    rng = random.Random(f"{seed} {spec}")
    drawn = sorted(rng.sample(range(len(part.rows)), min(n, len(part.rows))))
    return part._replace(
        rows=[part.rows[i] for i in drawn],
        notes=(*part.notes, f"{len(drawn)} of them drawn with seed {seed}, to pair with {spec}"),
    )


def _check_classes(spec: str, rows: list[Placed], wanted: int) -> None:
    classes = {row.prompt.label for row in rows}
    if 0 < len(classes) < wanted:
        (label,) = classes
        missing, example = ("harmless", "alpaca") if label else ("harmful", "advbench")
        raise InputError(
            f"{spec}, field 'label': all {len(rows)} rows have {label}; a probe needs both "
            f"classes. Add {missing} rows, or join a set that has them, as in '{spec}+{example}'."
        )
    if not rows:
        raise InputError(f"{spec}: no rows are left after taking out those labelled both ways.")


def _by_name(parts: list[Loaded], values: list[str]) -> str:
    """One line for the set: the value, or each part's value under its name."""
    known = [(part.name, value) for part, value in zip(parts, values, strict=True) if value]
    if len(parts) == 1:
        return values[0]
    return "; ".join(f"{name}: {value}" for name, value in known)
