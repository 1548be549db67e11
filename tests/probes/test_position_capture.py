"""Positions as the backends read them, against transformers' own states averaged by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from probes.backends import open_backend
from probes.backends.transformers import columns, read
from probes.capture import capture, capture_spans
from probes.errors import InputError
from probes.hooks import POSITIONS, Position, Site, sites
from probes.models import render
from probes.positions import Locator
from tests.conftest import make_model, make_tokenizer, user
from tests.probes.cache_builder import FakeBackend
from tests.probes.test_backends import BACKENDS, LENGTHS, gap, make_batch

TEXTS = ("hi", "How do I open the old oak door?", "x" * 60, "Sing.", "Räuber 🏰")
# Of the rows of `make_batch`, from each row's first token.
SPANS = (((0, 3), (0, 11), (2, 5), (0, 1)), ((2, 3), (9, 10), (0, 1), (0, 1)),
         ((1, 2), (3, 9), (0, 7), (0, 1)))  # fmt: skip


def spans_of(positions: Tensor) -> Tensor:
    """`SPANS` as columns of a padded batch: [batch, position, 2]."""
    first = positions - torch.tensor(LENGTHS) + 1
    return torch.tensor(SPANS).transpose(0, 1) + first[:, None, None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_reads_the_means_of_transformers_own_states(name: str, side: str) -> None:
    """Oracle: each row alone and unpadded, its hidden states averaged in a loop."""
    model = make_model("llama")
    ids, mask, positions = make_batch(side)
    wanted = [Site("resid_post", 1), Site("resid_pre", 0), Site("resid_pre", 2)]
    found = open_backend(model, name).capture(ids, mask, spans_of(positions), wanted)
    assert found.shape == (4, 3, 3, 32)
    for row in range(4):
        alone = ids[row][mask[row] == 1][None]
        with torch.no_grad():
            states = model(alone, output_hidden_states=True).hidden_states
        for i, entry in enumerate((2, 0, 2)):
            for p, of_rows in enumerate(SPANS):
                tokens = [states[entry][0, t] for t in range(*of_rows[row])]
                mean = sum(tokens[1:], tokens[0]) / len(tokens)
                assert gap(found[row, i, p], mean) < 1e-4
                if len(tokens) > 1:  # positive control: neither end of the span would do
                    assert gap(tokens[0], mean) > 1e-2 and gap(tokens[-1], mean) > 1e-2


@pytest.mark.parametrize("name", BACKENDS)
def test_one_token_is_read_as_ever_to_the_last_bit(name: str) -> None:
    backend = open_backend(make_model("qwen2"), name)
    ids, mask, positions = make_batch()
    wanted = sites("resid_post", [0, 2])
    alone = backend.capture(ids, mask, positions, wanted)
    last = torch.stack([positions, positions + 1], dim=1)
    beside = torch.stack([spans_of(positions)[:, 0], last], dim=1)
    assert torch.equal(backend.capture(ids, mask, beside, wanted)[:, :, 1], alone)
    assert torch.equal(backend.capture(ids, mask, last[:, None], wanted)[:, :, 0], alone)


def test_means_are_what_a_server_would_send_back(tmp_path: Path) -> None:
    make_model("phi3").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids, mask, positions = make_batch()
    batch = ids, mask, spans_of(positions), sites("resid_post", [2, 0])
    remote = open_backend(model, "nnsight", remote="local").capture(*batch)
    assert gap(remote, open_backend(model).capture(*batch)) < 1e-4


def test_padding_and_dtype_and_memory_of_a_mean() -> None:
    hidden = torch.randn(2, 50, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    hidden[1, 3:] = torch.nan  # as padding may be
    spans = torch.tensor([[[0, 50]], [[0, 3]]])
    found = read(hidden, spans)
    assert found.dtype == torch.bfloat16 and found.shape == (2, 1, 8)
    exact = torch.stack([hidden[0].double().mean(0), hidden[1, :3].double().mean(0)])
    torch.testing.assert_close(found[:, 0].double(), exact, rtol=2**-8, atol=1e-6)
    rounded = sum(hidden[0, 1:], hidden[0, 0]) / 50  # positive control: summed in bfloat16
    assert gap(rounded.double(), exact[0]) > 4 * gap(found[0, 0].double(), exact[0])
    assert found.untyped_storage().nbytes() == 2 * 8 * 2
    at, beyond = columns(spans[:, 0])
    assert at.max(1).values.tolist() == [49, 2] and beyond.sum(1).tolist() == [0, 47]


# The notebook API


def by_hand(model: Any, tokenizer: Any, text: str, position: Position) -> list[Tensor]:
    """Oracle: what the template writes is known, one token a byte; an entry a layer."""
    head = 1 + len(tokenizer("<|user|>\n", add_special_tokens=False).input_ids)
    n = len(text.encode())
    ids = tokenizer.apply_chat_template(
        user(text), add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    last: list[Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(lambda *a: last.append(a[-1]))
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    hook.remove()
    where = {
        "last-input-token": slice(-1, None),
        "last-content-token": slice(head + n - 1, head + n),
        "post-instruction": slice(head + n, None),
        "content-mean": slice(head, head + n),
    }[position]
    return [state[0, where].mean(0) for state in (*states[1:-1], *last)]


@pytest.mark.parametrize("position", POSITIONS)
def test_the_notebook_api_reads_any_position(position: Position, family: str) -> None:
    model, tokenizer = make_model(family), make_tokenizer()
    found = capture(model, tokenizer, TEXTS, position=position, token_budget=150)
    for text, row in zip(TEXTS, found, strict=True):
        for layer, wanted in enumerate(by_hand(model, tokenizer, text, position)):
            assert gap(row[layer], wanted) < 1e-4
    other = capture(model, tokenizer, TEXTS, position=POSITIONS[POSITIONS.index(position) - 1])
    assert gap(found, other) > 0.1


def test_batches_are_the_same_for_any_positions() -> None:
    class Counting(FakeBackend):
        shapes: list[tuple[int, ...]]

        def capture(
            self, ids: Tensor, mask: Tensor, positions: Tensor, sites: Sequence[Site]
        ) -> Tensor:
            self.shapes.append(tuple(ids.shape))
            if ids.numel() > 150:
                raise torch.OutOfMemoryError("out of memory")
            read = positions.float().mean(-1)[:, None, :, None]
            return read.expand(-1, len(sites), -1, self.d_model)

    tokenizer = make_tokenizer()
    rows = [render(tokenizer, user(text)) for text in TEXTS]
    shapes = []
    for positions in (["content-mean"], list(POSITIONS)):
        spans = [
            Locator(tokenizer).spans(user(text), row, positions)
            for text, row in zip(TEXTS, rows, strict=True)
        ]
        backend = Counting(2, 4)
        backend.shapes = []
        found = capture_spans(
            backend, rows, spans, sites("resid_post", [0, 1]), pad_id=0, token_budget=300
        )
        assert len(found) == len(positions)
        for p, of_position in enumerate(found):
            middles = [sum(of_row[p]) / 2 for of_row in spans]
            assert of_position[:, 1, 2].tolist() == middles
        shapes.append(backend.shapes)
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) > 2
    with pytest.raises(InputError, match="no prompts"):
        capture_spans(FakeBackend(2, 4), [], [], sites("resid_post", [0]), pad_id=0)
