"""Packed rows hold each prompt, each common beginning once, and no more than the budget."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes import packing
from probes.capture import capture_rows
from probes.errors import InputError
from probes.hooks import Site, sites
from probes.packing import MIN_SHARED, Pack, in_order, pack, packs, size
from probes.rendering import Rendered

SITES = sites("resid_post", [0])
# Two letters, so that beginnings meet often and at every depth.
WORDS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=24), min_size=1, max_size=20)


def rows_of(texts: Sequence[Sequence[int]]) -> list[Rendered]:
    return [Rendered(tuple(ids), len(ids) - 1, truncated=False) for ids in texts]


def sorted_rows(texts: Sequence[Sequence[int]]) -> list[Rendered]:
    rows = rows_of(texts)
    return [rows[i] for i in in_order(rows)]


def check(rows: list[Rendered], packed: Pack) -> None:
    for row, path in zip(rows, packed.paths, strict=True):
        assert tuple(packed.ids[path].tolist()) == row.ids
        assert packed.positions[path].tolist() == list(range(len(row.ids)))
        assert bool((path.diff() > 0).all())
    # The segments are the row, and each ends its own prompt.
    starts = [segment.start for segment in packed.segments]
    ends = [segment.start + segment.length for segment in packed.segments]
    assert [0, *ends] == [*starts, len(packed.ids)]
    for segment in packed.segments:
        own = torch.arange(segment.start, segment.start + segment.length)
        assert segment.length > 0 and torch.equal(segment.path[segment.shared :], own)


@settings(max_examples=100, deadline=None)
@given(texts=WORDS)
def test_no_beginning_stands_twice(texts: list[list[int]]) -> None:
    """Oracle: the tokens needed are the distinct beginnings of the prompts, counted in a set."""
    rows = sorted_rows(texts)
    beginnings = {row.ids[:n] for row in rows for n in range(1, len(row.ids) + 1)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "MIN_SHARED", 1)
        packed = pack(rows)
        assert len(packed.ids) == size(rows) == len(beginnings)
    check(rows, packed)


@settings(max_examples=100, deadline=None)
@given(texts=WORDS)
def test_what_is_too_short_to_share_is_computed_again(texts: list[list[int]]) -> None:
    for rows in (sorted_rows(texts), rows_of(texts)):
        packed = pack(rows)
        check(rows, packed)
        assert len(packed.ids) == size(rows) <= sum(len(row.ids) for row in rows)
        assert all(one.shared == 0 or one.shared >= MIN_SHARED for one in packed.segments)


@settings(max_examples=100, deadline=None)
@given(texts=WORDS, budget=st.integers(1, 120), enough=st.integers(1, 120))
def test_passes_hold_every_prompt_once_within_the_budget(
    texts: list[list[int]], budget: int, enough: int
) -> None:
    rows = rows_of(texts)
    found = packs(rows, in_order(rows), token_budget=budget, enough=enough)
    assert [i for batch in found for i in batch] == in_order(rows)
    for batch in found:
        assert len(batch) == 1 or size([rows[i] for i in batch]) <= budget


def test_a_pass_goes_on_where_its_successor_would_begin_anew() -> None:
    """A header of 400 tokens is computed once; one of 10 is not worth a longer pass."""
    for header, n_passes in ((400, 1), (10, 5)):
        texts = [[*range(header), 1000 + i, *range(98)] for i in range(10)]
        rows = rows_of(texts)
        found = packs(rows, in_order(rows), token_budget=10**6, enough=250)
        assert len(found) == n_passes
    # Thousands of prompts that differ in a word end somewhere all the same.
    rows = rows_of([[*range(100), 1000 + i] for i in range(50)])
    assert len(packs(rows, in_order(rows), token_budget=150, enough=150)) == 3


class PackedRecorder:
    """Its activation is the token that is read; refuses rows beyond a size."""

    name, n_layers, d_model, enough = "recorder", 3, 1, 10**9

    def __init__(self, memory: int = 10**9):
        self.memory = memory
        self.sizes: list[tuple[int, int]] = []

    def packable(self, longest: int) -> int:
        return longest

    def capture(self, *_: object) -> Tensor:
        raise AssertionError("read without packing")

    def capture_packed(self, pack: Pack, positions: Tensor, sites: Sequence[Site]) -> Tensor:
        self.sizes.append((len(pack.paths), len(pack.ids)))
        if len(pack.ids) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        read = [pack.ids[path[at]] for path, at in zip(pack.paths, positions, strict=True)]
        return torch.stack(read).float()[:, None, None].expand(-1, len(sites), 1)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(1, 300),
    memory=st.integers(60, 400),
)
def test_order_budget_and_memory(lengths: list[int], budget: int, memory: int) -> None:
    texts = [[*range(n - 1), 1000 + i] for i, n in enumerate(lengths)]
    backend = PackedRecorder(memory)
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("probes.capture.WORTH_PACKING", 0)
        read = capture_rows(
            backend, rows_of(texts), SITES, pad_id=0, token_budget=budget, on_batch=done.append
        )
    assert read[:, 0, 0].tolist() == [1000 + i for i in range(len(lengths))]
    assert sum(done) == len(lengths)
    for n, tokens in backend.sizes:
        assert n == 1 or tokens <= budget


def test_a_prompt_that_does_not_fit_by_itself_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.capture.WORTH_PACKING", 0)
    with pytest.raises(InputError, match=r"a prompt of 50 tokens does not fit.*--max-length"):
        capture_rows(PackedRecorder(memory=40), rows_of([[1] * 50, [2] * 3]), SITES, pad_id=0)


def test_a_few_tokens_are_read_without_a_trial() -> None:
    with pytest.raises(AssertionError, match="without packing"):
        capture_rows(PackedRecorder(), rows_of([[1] * 50]), SITES, pad_id=0)
    capture_rows(PackedRecorder(), rows_of([[1] * 50] * 20), SITES, pad_id=0)
