"""A padded batch holds each row, on either side, and nothing else."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regularize.collate import collate
from regularize.data import IGNORE

ROWS = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=5)


@pytest.mark.parametrize("side", ["left", "right"])
@given(rows=ROWS)
def test_every_row_is_under_its_mask(rows: list[list[int]], side: Literal["left", "right"]) -> None:
    given_ = [
        {"input_ids": ids, "labels": [IGNORE, *ids[1:]], "risk": i / 9, "anchor": i % 2 == 0}
        for i, ids in enumerate(rows)
    ]
    batch = collate(given_, pad=7, side=side)
    width = max(map(len, rows))
    assert batch["input_ids"].shape == (len(rows), width)
    for i, ids in enumerate(rows):
        mask = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i, mask].tolist() == ids
        assert batch["labels"][i, mask].tolist() == [IGNORE, *ids[1:]]
        assert set(batch["labels"][i, ~mask].tolist()) <= {IGNORE}
        assert bool(mask[-1 if side == "left" else 0]) and mask.sum() == len(ids)
    assert batch["risk"].tolist() == torch.tensor([i / 9 for i in range(len(rows))]).tolist()
    assert batch["anchor"].dtype == torch.bool
