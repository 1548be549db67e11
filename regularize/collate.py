"""Encoded examples -> one padded batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from regularize.data import IGNORE


def collate(
    rows: Sequence[Mapping[str, Any]], *, pad: int, side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """Pad `input_ids` and `labels` to the longest, [batch, token]; keep the other numbers, [batch].

    Args:
        rows: Examples with at least `input_ids` and `labels`.
        pad: Id of the padding token; it is masked, so that any will do.
        side: Where the padding goes.
    """
    width = max(len(row["input_ids"]) for row in rows)
    batch = {
        "input_ids": torch.full((len(rows), width), pad),
        "labels": torch.full((len(rows), width), IGNORE),
        "attention_mask": torch.zeros(len(rows), width, dtype=torch.long),
    }
    for i, row in enumerate(rows):
        n = len(row["input_ids"])
        place = slice(0, n) if side == "right" else slice(width - n, width)
        batch["input_ids"][i, place] = torch.tensor(row["input_ids"])
        batch["labels"][i, place] = torch.tensor(row["labels"])
        batch["attention_mask"][i, place] = 1
    for name in rows[0].keys() - {"input_ids", "labels", "shortened"}:
        batch[name] = torch.tensor([row[name] for row in rows])
    return batch
