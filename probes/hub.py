"""Rows of a data set on the hub, or of a local folder laid out like one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from probes.errors import InputError
from probes.files import Row

T = TypeVar("T")


def read(path: str, config: str = "", split: str = "", **options: object) -> Iterator[Row]:
    """The rows of one split, or of all where none is named.

    Args:
        path: "org/name" on the hub, or a folder.
        config: The configuration, where the set has several.
        split: The split; "" for all of them, in order.
        options: More for `datasets.load_dataset`.

    Raises:
        InputError: The set cannot be found or reached, or has no such configuration or split.
    """
    import datasets

    named = f"hub:{path}" + (f":{config}" if config else "") + (f":{split}" if split else "")
    loaded = _ask(
        named,
        path,
        lambda: datasets.load_dataset(path, config or None, split=split or None, **options),
    )
    tables = loaded.values() if isinstance(loaded, dict) else (loaded,)
    index = 0
    for table in tables:
        for cells in table:
            yield Row(named, f"row {index + 1}", index, cells)
            index += 1


def resolve(path: str, pieces: list[str]) -> tuple[str, str]:
    """Configuration and split from what was written after the name.

    One piece is the configuration where the set has one of that name, else the split. A split may
    be left out where there is only one.

    Raises:
        InputError: The set cannot be reached, or it takes a choice that was not made.
    """
    import datasets

    named = ":".join([f"hub:{path}", *pieces])
    configs = _ask(named, path, lambda: datasets.get_dataset_config_names(path))
    if len(pieces) == 1:
        pieces = [pieces[0], ""] if pieces[0] in configs else ["", pieces[0]]
    config, split = pieces or ("", "")
    if config not in configs and (config or (len(configs) > 1 and "default" not in configs)):
        raise InputError(f"{named}: name a configuration of: {', '.join(configs)}.")
    splits = _ask(named, path, lambda: datasets.get_dataset_split_names(path, config or None))
    if split not in splits and (split or len(splits) > 1):
        raise InputError(f"{named}: name a split of: {', '.join(splits)}.")
    return config, split or splits[0]


def _ask(named: str, path: str, question: Callable[[], T]) -> T:
    """The answer of the hub, or an InputError that says what it lacked."""
    import datasets

    try:
        return question()
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        generating = isinstance(error, datasets.exceptions.DatasetGenerationError)
        reason = " ".join(str((generating and error.__cause__) or error).split())[:300].rstrip(".")
        gated = (
            f" Accept its terms at https://huggingface.co/datasets/{path} and run `hf auth login`."
            if "gated" in str(error).lower()
            else ""
        )
        raise InputError(f"{named} cannot be loaded: {reason}.{gated}") from error
