"""What a defence needs beside the training data, loaded: the base model, safe and harmful data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probes import models
from probes.models import ChatModel
from regularize import data
from regularize.defences import Defence, Need, check_given


def given(
    defence: Defence, sources: Mapping[Need, str | None], chat: ChatModel, *, seed: int = 0
) -> dict[str, Any]:
    """The arguments `base`, `safe` and `harmful` of the trainer, those that the defence needs.

    Args:
        defence: Any.
        sources: A model for base, and training data for the others, as `data.load` knows them.
        chat: The aligned model: the base model goes where it is, in its number format.
        seed: Draws the rows of what is generated.

    Raises:
        InputError: One of them cannot be read, or is not there.
    """
    check_given(defence, sources)
    found: dict[str, Any] = {}
    for need in defence.needs:
        source = str(sources[need])
        if need == "base":
            placed = str(chat.model.device)
            dtype = str(chat.model.dtype).removeprefix("torch.")
            found[need] = models.load(source, dtype=dtype, device_map=placed).model
        else:
            found[need] = data.load(source, seed=seed)
    return found
