"""Batched answers are those of one prompt at a time, and nobody's state is touched."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from probes import models
from probes.errors import InputError
from probes.miniature.evaluate import fresh
from probes.models import ChatModel
from probes.rendering import render
from regularize import generation
from regularize.decoding import Decoder
from regularize.generation import Nucleus, answers
from tests.conftest import NASTY, make_model, make_tokenizer, user


def tiny(family: str, **options: int) -> ChatModel:
    return ChatModel(family, None, make_model(family, **options), make_tokenizer())


def one_by_one(chat: ChatModel, texts, *, new: int) -> list[str]:
    """The plainest loop there is: no batch, no cache, no `generate`."""
    config = chat.model.generation_config
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    out = []
    for text in texts:
        ids = list(render(chat.tokenizer, user(text)).ids)
        made: list[int] = []
        with torch.no_grad():
            while len(made) < new:
                logits = chat.model(input_ids=torch.tensor([ids + made])).logits[0, -1]
                token = int(logits.argmax())
                if token in known:
                    break
                made.append(token)
        out.append(chat.tokenizer.decode(made, skip_special_tokens=True))
    return out


@pytest.mark.parametrize("name", ["llama", "phi3", "qwen2"])
def test_a_miniature_answers_as_one_by_one(name: str) -> None:
    chat = models.load(f"miniature/{name}")
    texts = [row.text for kind in ("refused", "exact", "utility") for row in fresh(kind, 8, seed=3)]
    wanted = one_by_one(chat, texts, new=32)
    assert answers(chat, texts, max_new_tokens=32) == wanted
    assert answers(chat, texts, max_new_tokens=32, batch_tokens=200) == wanted
    assert len(set(wanted)) > 8  # control: the answers are not all alike


def test_a_random_model_answers_as_one_by_one(family: str) -> None:
    chat = tiny(family, seed=5)
    wanted = one_by_one(chat, NASTY, new=12)
    assert answers(chat, NASTY, max_new_tokens=12) == wanted
    assert answers(chat, NASTY[::-1], max_new_tokens=12, batch_tokens=120) == wanted[::-1]


def test_whole_chats_and_their_order() -> None:
    chat = tiny("llama")
    chats = [user("a"), [{"role": "system", "content": "You are a cat."}, *user("a")], user("b")]
    made = answers(chat, chats, max_new_tokens=8)
    assert made == [answers(chat, [one], max_new_tokens=8)[0] for one in chats]
    assert made[0] == answers(chat, ["a"], max_new_tokens=8)[0]
    assert answers(chat, [], max_new_tokens=8) == []


@pytest.mark.parametrize("batch_tokens", [1, 120, 16384])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_the_first_tokens_logits_are_heard(batch_tokens: int, temperature: float) -> None:
    chat = tiny("llama", seed=5)
    found: dict[int, torch.Tensor] = {}

    def heard(places, logits) -> None:
        assert not found.keys() & set(places)
        found.update(zip(places, logits.clone(), strict=True))

    options = {"max_new_tokens": 6, "batch_tokens": batch_tokens, "temperature": temperature}
    made = answers(chat, NASTY, heard=heard, **options)
    assert made == answers(chat, NASTY, **options)
    assert sorted(found) == list(range(len(NASTY)))
    for place, text in enumerate(NASTY):
        ids = torch.tensor([render(chat.tokenizer, user(text)).ids])
        with torch.no_grad():
            wanted = chat.model(input_ids=ids).logits[0, -1]
        torch.testing.assert_close(found[place], wanted, atol=1e-4, rtol=1e-4)


def test_a_batch_is_of_like_length(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny("llama")
    widths: list[tuple[int, int]] = []
    plain = Decoder.decode

    def watched(self, rows, *others, **options):
        widths.append((min(len(row.ids) for row in rows), max(len(row.ids) for row in rows)))
        return plain(self, rows, *others, **options)

    monkeypatch.setattr(Decoder, "decode", watched)
    answers(chat, ["a " * n for n in range(1, 60)], max_new_tokens=2)
    assert all(least >= generation.ALIKE * most for least, most in widths)
    assert 3 < len(widths) < 20  # they shrink by a factor, not by a token
    assert max(widths) == widths[0]  # longest first


def test_a_frozen_head_is_read_once_for_all_prompts() -> None:
    """Of a slice of hidden states torch would take one copy of the head for each prompt."""
    chat = tiny("llama", seed=5)
    chat.model.requires_grad_(False)
    given: list[bool] = []
    head = chat.model.get_output_embeddings()
    plain = nn.Linear.forward

    class Watched(nn.Linear):
        def forward(self, hidden):
            given.append(hidden.is_contiguous())
            return plain(self, hidden)

    head.__class__ = Watched
    made = answers(chat, NASTY, max_new_tokens=4)
    assert given and all(given)
    assert not head._forward_pre_hooks and made == one_by_one(chat, NASTY, new=4)
    given.clear()
    ids = torch.ones(2, 3, dtype=torch.long)
    chat.model(input_ids=ids, logits_to_keep=1)
    assert given == [False]  # control: transformers' own is a slice


def test_every_token_that_ends_a_turn_stops() -> None:
    chat = tiny("llama", seed=5)
    whole = render(chat.tokenizer, user("hello")).ids
    with torch.no_grad():
        first = int(chat.model(input_ids=torch.tensor([whole])).logits[0, -1].argmax())
    assert answers(chat, ["hello"], max_new_tokens=6) != [""]  # control
    chat.model.generation_config.eos_token_id = [1, first]
    assert answers(chat, ["hello"], max_new_tokens=6) == [""]


def test_sampling_and_penalties_of_the_checkpoint_are_left_aside() -> None:
    """As in Qwen2.5's generation_config.json."""
    chat = tiny("qwen2", seed=5)
    wanted = one_by_one(chat, NASTY, new=12)
    for name, value in {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.5,
    }.items():  # fmt: skip
        setattr(chat.model.generation_config, name, value)
    assert answers(chat, NASTY, max_new_tokens=12) == wanted


def test_an_adapter_answers_and_can_be_taken_off() -> None:
    chat = tiny("llama", seed=5)
    before = answers(chat, NASTY, max_new_tokens=8)
    wrapped = get_peft_model(chat.model, LoraConfig(target_modules=["q_proj"], r=4))
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            with torch.random.fork_rng():
                torch.manual_seed(1)
                nn.init.normal_(weight)
    wrapped.train()
    adapted = ChatModel("x", None, wrapped, chat.tokenizer)
    after = answers(adapted, NASTY, max_new_tokens=8)
    assert after == one_by_one(adapted, NASTY, new=8)
    assert after != before
    with wrapped.disable_adapter():
        assert answers(adapted, NASTY, max_new_tokens=8) == before
    assert all(module.training for module in wrapped.modules())


def test_nothing_of_the_callers_is_changed() -> None:
    chat = tiny("llama")
    chat.model.train()
    state = torch.get_rng_state()
    config = copy.deepcopy(chat.model.generation_config.to_dict())
    answers(chat, NASTY, max_new_tokens=4, temperature=0.6)
    assert torch.equal(torch.get_rng_state(), state)
    assert chat.tokenizer.pad_token is None and chat.tokenizer.padding_side == "right"
    assert chat.model.generation_config.to_dict() == config
    assert all(module.training for module in chat.model.modules())


def test_a_long_prompt_loses_its_middle_not_its_end() -> None:
    chat = tiny("llama")  # a context of 512
    long = "a" * 2000
    made = answers(chat, [long, "b"], max_new_tokens=16)
    cut = render(chat.tokenizer, user(long), max_length=512 - 16)
    with torch.no_grad():
        first = chat.model(input_ids=torch.tensor([cut.ids])).logits[0, -1].argmax()
    assert made[0].startswith(chat.tokenizer.decode([int(first)], skip_special_tokens=True))
    assert made[1] == answers(chat, ["b"], max_new_tokens=16)[0]
    answers(chat, ["b"], max_new_tokens=10_000)  # more than the context: as many as fit


@pytest.mark.parametrize("route", ["decoder", "generate"])
def test_a_batch_that_does_not_fit_is_halved(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    chat = tiny("llama")
    monkeypatch.setattr(generation, "suits", lambda *_: route == "decoder")
    wanted = answers(chat, NASTY, max_new_tokens=8)
    forward, sizes = chat.model.forward, []

    @functools.wraps(forward)
    def small(*given, **options):
        sizes.append(len(options["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("too much")
        return forward(*given, **options)

    monkeypatch.setattr(chat.model, "forward", small)
    assert answers(chat, NASTY, max_new_tokens=8) == wanted
    assert max(sizes) > 2 and sizes[-1] <= 2
    monkeypatch.setattr(chat.model, "forward", functools.wraps(forward)(_never))
    with pytest.raises(torch.OutOfMemoryError):
        answers(chat, NASTY[:1], max_new_tokens=8)


def _never(*_args, **_options):
    raise torch.OutOfMemoryError("too much")


def test_draws_follow_the_seed_and_not_the_batch() -> None:
    chat = tiny("llama")
    options = {"max_new_tokens": 12, "temperature": 1.0, "top_p": 1.0}
    made = answers(chat, NASTY, seed=1, **options)
    assert answers(chat, NASTY, seed=1, batch_tokens=1, **options) == made
    assert answers(chat, NASTY, seed=2, **options) != made
    assert made != answers(chat, NASTY, max_new_tokens=12)
    several = answers(chat, ["hello"] * 8, seed=1, **options)
    assert len(set(several)) > 1  # one prompt, drawn several times


def test_a_nearly_cold_draw_is_the_likeliest_token() -> None:
    chat = tiny("llama")
    greedy = answers(chat, NASTY, max_new_tokens=8)
    assert answers(chat, NASTY, max_new_tokens=8, temperature=1e-4) == greedy
    assert answers(chat, NASTY, max_new_tokens=8, temperature=1.0, top_p=1e-6) == greedy


def test_draws_have_the_nucleus_distribution() -> None:
    """Against the definition: the likeliest tokens up to top_p, renormalised."""
    n, temperature, top_p = 20_000, 0.6, 0.9
    logits = torch.tensor([2.0, 0.5, 1.5, -1.0, 1.0, -3.0])
    p = (logits / temperature).softmax(-1)
    ranked = sorted(range(6), key=lambda i: -p[i])
    kept: list[int] = []
    while sum(float(p[i]) for i in kept) < top_p:
        kept.append(ranked[len(kept)])
    wanted = torch.zeros(6)
    wanted[kept] = p[kept] / p[kept].sum()
    uniform = torch.rand(n, 1, generator=torch.Generator().manual_seed(0))
    chosen = Nucleus(temperature, top_p, uniform)(logits.expand(n, 6), range(n), 0)
    found = torch.bincount(chosen, minlength=6) / n
    assert 1 < len(kept) < 6  # control: something is cut off, and something is left to draw
    assert (found[wanted == 0] == 0).all()
    assert torch.allclose(found, wanted, atol=4 * (0.25 / n) ** 0.5)


def test_extreme_draws_stay_inside_the_nucleus() -> None:
    uniform = torch.tensor([[0.0], [1 - 2**-24]])
    logits = torch.linspace(0, 1e-3, 50_000).expand(2, -1)
    chosen = Nucleus(1.0, 1.0, uniform)(logits, [1, 0], 0)
    assert chosen.tolist() == [0, 49_999]


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"batch_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}]
)
def test_options_out_of_range(wrong) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        answers(tiny("llama"), ["a"], **wrong)
