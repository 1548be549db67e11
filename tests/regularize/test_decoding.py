"""What is read once and whom the batch keeps, held to transformers' own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

from probes.capture import pad_id
from probes.greedy import stops_of
from probes.models import ChatModel
from probes.rendering import Rendered, render
from regularize import generation
from regularize.decoding import Decoder, Ending, common, likeliest, suits
from regularize.generation import answers
from tests.conftest import NASTY, make_model, make_tokenizer, user

SMALL = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip


def made(kind: Any, config: Any) -> ChatModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = kind(config).eval()
    return ChatModel("x", None, model, make_tokenizer())


def windowed(window: int | None) -> ChatModel:
    """No block sees further than `window` tokens."""
    return made(MistralForCausalLM, MistralConfig(**SMALL, sliding_window=window))


def both(monkeypatch: pytest.MonkeyPatch, chat: ChatModel, **options: Any) -> list[list[str]]:
    """The answers by our loop, and by transformers'."""
    found = []
    for ours in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(generation, "suits", lambda *_, ours=ours: ours)
            found.append(answers(chat, NASTY, max_new_tokens=24, **options))
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("batch_tokens", [100, 400, 16384])
def test_the_tokens_are_those_of_transformers(
    monkeypatch: pytest.MonkeyPatch, family: str, batch_tokens: int, temperature: float
) -> None:
    chat = ChatModel(family, None, make_model(family, seed=5), make_tokenizer())
    # Some answers end, after different numbers of tokens: in this alphabet letters are tokens.
    chat.model.generation_config.eos_token_id = [1, *range(20, 40)]
    ours, theirs = both(monkeypatch, chat, batch_tokens=batch_tokens, temperature=temperature)
    assert ours == theirs
    assert len(set(map(len, ours))) > 2  # control: they do end at different places


def test_a_window_that_is_long_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = windowed(400)
    assert suits(chat.model, 400) and not suits(chat.model, 401)
    ours, theirs = both(monkeypatch, chat)
    assert ours == theirs and len(set(ours)) > 3


def test_a_short_window_is_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = windowed(12)
    assert not suits(chat.model, 60)
    ours, theirs = both(monkeypatch, chat)
    assert answers(chat, NASTY, max_new_tokens=24) == theirs
    assert ours != theirs  # control: the padding would stand in the window


def test_models_that_need_more_than_keys_and_values() -> None:
    assert suits(make_model("llama"), 10**6)
    assert suits(windowed(None).model, 10**6)
    rotary = make_model("llama")
    rotary.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert not suits(rotary, 60)
    few = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers")}
    recurrent = made(FalconMambaForCausalLM, FalconMambaConfig(**few))
    assert not suits(recurrent.model, 60)
    assert len(answers(recurrent, NASTY[:3], max_new_tokens=4)) == 3


def test_what_all_prompts_begin_with_is_read_once_and_who_has_ended_leaves() -> None:
    chat = ChatModel("x", None, make_model("llama", seed=5), make_tokenizer())
    chat.model.generation_config.eos_token_id = [1, *range(20, 40)]
    rows = [render(chat.tokenizer, user(text)) for text in NASTY]
    ending = Ending(24, frozenset(stops_of(chat)))
    read: list[tuple[int, ...]] = []
    chat.model.model.register_forward_pre_hook(
        lambda _, __, given: (
            read.append(tuple(given["inputs_embeds"].shape[:2]))
            if given.get("inputs_embeds") is not None
            else read.append(tuple(given["input_ids"].shape))
        ),
        with_kwargs=True,
    )
    with torch.inference_mode():
        decoder = Decoder.of(chat.model, rows, pad=pad_id(chat.tokenizer))
        found = decoder.decode(rows, ending, choose=likeliest)
    n = len(decoder.prefix)
    assert n == len(common([row.ids for row in rows])) == 3
    longest = max(len(row.ids) for row in rows)
    assert read[:2] == [(1, n), (len(rows), longest - n)]
    # One pass more for a token that ends the turn, but none for the first, which the prompt gives.
    wanted = [sum(len(one) >= step for one in found if len(one) < 24 or step < 24)
              for step in range(1, 25)]  # fmt: skip
    assert read[2:] == [(n, 1) for n in wanted if n]
    assert wanted[-2] < len(rows)  # control: somebody has left


def test_one_prompt_alone_shares_nothing() -> None:
    row = render(make_tokenizer(), user("a"))
    with torch.inference_mode():
        assert Decoder.of(make_model("llama"), [row], pad=0).prefix == ()
        assert len(Decoder.of(make_model("llama"), [row, row], pad=0).prefix) == len(row.ids) - 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=5))
def test_a_common_beginning(prompts: list[list[int]]) -> None:
    found = common([tuple(one) for one in prompts])
    assert all(len(one) > len(found) and one[: len(found)] == list(found) for one in prompts)
    longer = [tuple(one[: len(found) + 1]) for one in prompts]
    assert len(set(longer)) > 1 or min(map(len, prompts)) == len(found) + 1  # none is longer


@pytest.mark.parametrize("route", ["decoder", "generate"])
def test_an_answer_is_cut_where_it_is_decided(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    chat = ChatModel("x", None, make_model("llama", seed=5), make_tokenizer())
    chat.model.generation_config.eos_token_id = [1, *range(20, 40)]
    monkeypatch.setattr(generation, "suits", lambda *_: route == "decoder")
    whole = answers(chat, NASTY, max_new_tokens=24)
    most = {place: 3 + place % 4 for place in range(len(NASTY))}
    asked: dict[int, list[str]] = {place: [] for place in most}

    def decided(place: int, text: str) -> bool:
        asked[place].append(text)
        return len(text) >= most[place]

    cut = answers(chat, NASTY, max_new_tokens=24, decided=decided)
    for place, (found, text) in enumerate(zip(cut, whole, strict=True)):
        stopped = [one for one in asked[place] if len(one) >= most[place]]
        assert found == (stopped[0] if stopped else text)  # asked no more once it has said yes
        assert len(stopped) <= 1 and text.startswith(found)
        assert not any(one.endswith(generation.UNFINISHED) for one in asked[place])
    assert cut != whole
    assert any(generation.UNFINISHED in text for text in whole)  # control: bytes came one by one


def test_prompts_are_rendered_rows() -> None:
    """The cache of the prefix serves several batches, and is the same after each."""
    chat = ChatModel("x", None, make_model("qwen2", seed=5), make_tokenizer())
    rows: list[Rendered] = [render(chat.tokenizer, user(text)) for text in NASTY]
    ending = Ending(6, frozenset({1}))
    with torch.inference_mode():
        decoder = Decoder.of(chat.model, rows, pad=0)
        once = decoder.decode(rows[:3], ending, choose=likeliest)
        decoder.decode(rows[3:], ending, choose=likeliest)
        assert decoder.decode(rows[:3], ending, choose=likeliest) == once
        assert decoder.cache.get_seq_length() == len(decoder.prefix)
