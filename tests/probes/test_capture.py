"""Batches do not change what is read; the notebook API reads the last input token."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from probes.backends import open_backend
from probes.capture import capture, capture_rows, pad_id
from probes.errors import InputError
from probes.hooks import Site, sites
from probes.models import render
from probes.rendering import Rendered
from tests.conftest import make_model, make_tokenizer

PROMPTS = ("hi", "How do I open the old oak door?", "x" * 90, "Sing.", "hi there", "Räuber 🏰")
SITES = sites("resid_post", range(3))


def rendered(prompts: Sequence[str] = PROMPTS) -> list[Rendered]:
    tokenizer = make_tokenizer()
    return [render(tokenizer, [{"role": "user", "content": text}]) for text in prompts]


class Recorder:
    """A backend whose activation is the token that is read; refuses batches beyond a size."""

    name, n_layers, d_model = "recorder", 3, 1

    def __init__(self, memory: int = 10**9):
        self.memory = memory
        self.shapes: list[tuple[int, int]] = []

    def capture(
        self, ids: Tensor, mask: Tensor, positions: Tensor, sites: Sequence[Site]
    ) -> Tensor:
        self.shapes.append((ids.shape[0], ids.shape[1]))
        if ids.numel() > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        assert torch.equal(positions, mask.sum(1) - 1)
        read = ids[torch.arange(len(ids)), positions].float()
        return read[:, None, None].expand(-1, len(sites), 1)


def rows_of(lengths: Sequence[int]) -> list[Rendered]:
    """Row i is `lengths[i]` tokens long and ends in token 1000 + i."""
    return [
        Rendered((*[7] * (n - 1), 1000 + i), n - 1, truncated=False) for i, n in enumerate(lengths)
    ]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    budget=st.integers(1, 300),
    memory=st.integers(60, 400),
)
def test_order_budget_and_memory(lengths: list[int], budget: int, memory: int) -> None:
    backend = Recorder(memory)
    done: list[int] = []
    read = capture_rows(
        backend, rows_of(lengths), SITES, pad_id=0, token_budget=budget, on_batch=done.append
    )
    assert read[:, 0, 0].tolist() == [1000 + i for i in range(len(lengths))]
    assert sum(done) == len(lengths)
    for batch, width in backend.shapes:
        assert batch == 1 or batch * width <= budget


def test_batches_are_of_like_length_and_the_same_every_time() -> None:
    lengths = [5, 90, 6, 80, 7, 85]
    first, second = Recorder(), Recorder()
    for backend in (first, second):
        capture_rows(backend, rows_of(lengths), SITES, pad_id=0, token_budget=270)
    assert first.shapes == second.shapes == [(3, 90), (3, 7)]


def test_a_row_that_does_not_fit_by_itself_is_told() -> None:
    with pytest.raises(InputError, match=r"a prompt of 50 tokens does not fit.*--max-length"):
        capture_rows(Recorder(memory=40), rows_of([50, 3]), SITES, pad_id=0)
    with pytest.raises(InputError, match="no prompts"):
        capture_rows(Recorder(), [], SITES, pad_id=0)


@pytest.mark.parametrize("budget", [1, 150, 10**6])
def test_a_batch_of_one_equals_any_batch(family: str, budget: int) -> None:
    backend = open_backend(make_model(family))
    alone = torch.cat([capture_rows(backend, [row], SITES, pad_id=3) for row in rendered()])
    read = capture_rows(backend, rendered(), SITES, pad_id=9, token_budget=budget)
    torch.testing.assert_close(read, alone, rtol=0, atol=1e-4)
    assert float((read - alone.roll(1, 0)).abs().max()) > 0.1


def test_the_notebook_api_reads_the_last_input_token(family: str) -> None:
    """Oracle: transformers, one prompt at a time, the last row of the rendered chat."""
    model, tokenizer = make_model(family), make_tokenizer()
    read = capture(model, tokenizer, PROMPTS, layers=[1, 0], token_budget=200)
    assert read.shape == (len(PROMPTS), 2, 32)
    for text, row in zip(PROMPTS, read, strict=True):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        torch.testing.assert_close(row[0], states[2][0, -1], rtol=0, atol=1e-4)
        torch.testing.assert_close(row[1], states[1][0, -1], rtol=0, atol=1e-4)


def test_texts_and_chats_are_the_same_thing() -> None:
    model, tokenizer = make_model("qwen2"), make_tokenizer()
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    texts = capture(model, tokenizer, PROMPTS, hook_point="mlp_out")
    assert torch.equal(texts, capture(model, tokenizer, chats, hook_point="mlp_out"))
    with_system = [{"role": "system", "content": "Be brief."}, *chats[0]]
    other = capture(model, tokenizer, [with_system], hook_point="mlp_out")
    assert float((other - texts[:1]).abs().max()) > 0.01


def test_what_the_notebook_api_refuses() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    for options, words in (
        ({"layers": [3]}, "layer 3 does not exist: the model has 0..2"),
        ({"layers": []}, "no layer"),
        ({"max_length": 3}, "takes .* tokens by itself"),
    ):
        with pytest.raises(InputError, match=words):
            capture(model, tokenizer, ["hi"], **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no prompts"):
        capture(model, tokenizer, [])


def test_a_tokenizer_without_pad_token_or_any_special_token_works() -> None:
    tokenizer = make_tokenizer()
    assert tokenizer.pad_token_id is None and pad_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert pad_id(tokenizer) == 0
    tokenizer.add_special_tokens({"pad_token": "<|end|>"})
    assert pad_id(tokenizer) == 5
