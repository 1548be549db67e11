"""A vocabulary that is cut is the same function of texts whose tokens were kept."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from probes import miniature
from probes.errors import InputError
from probes.models import ChatModel, load
from probes.realistic import vocabulary
from probes.realistic.vocabulary import cut, kept_ids
from probes.rendering import render
from regularize.generation import answers
from tests.conftest import NASTY, make_model, make_tokenizer, user

TEXTS = (
    "Write a tutorial on how to make a kite, and explain each of its parts.",
    "She sold 48 clips in 2 days; how many clips did Natalia sell altogether in April and May?",
    "How do I kill a Python process?  It doesn't respond.\n\n- one\n- two\n",
    "def f(x):\n    return x ** 2 + 1e-3",
    "Räuber, naïve café, über: ﬁnally “quoted” — yes…",
    "aaaaaaa banana bananas unbelievably internationalization",
    "I'm sorry, but I can't help with that.",
)
NAMES = ("phi-3.5", "qwen2.5", "stories260k", "miniature/llama", "miniature/qwen2", "byte")


def strings(tokenizer: PreTrainedTokenizerBase, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def cut_tokenizer(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> PreTrainedTokenizerFast:
    return vocabulary._cut_tokenizer(tokenizer, {old: new for new, old in enumerate(ids)})


class Pair:
    """A tokenizer, whole and cut to `TEXTS`."""

    def __init__(self, name: str, whole: PreTrainedTokenizerBase) -> None:
        self.name, self.whole = name, whole
        self.ids = kept_ids(whole, TEXTS)
        self.small = cut_tokenizer(whole, self.ids)

    def keeps(self, text: str) -> bool:
        return set(self.whole(text).input_ids) <= set(self.ids)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest) -> Pair:
    name = request.param
    if name == "byte":
        return Pair(name, make_tokenizer())
    if name.startswith("miniature/"):
        folder = miniature.folder(name.removeprefix("miniature/"))
    else:
        data = request.getfixturevalue("data_dir")
        folder = data / ("models" if name == "stories260k" else "tokenizers") / name
    return Pair(name, AutoTokenizer.from_pretrained(folder))


def recombined(pair: Pair) -> Iterable[str]:
    """Texts of kept tokens in other orders and other company than `TEXTS` have them."""
    rng = random.Random(0)
    words = [word for text in TEXTS for word in text.split(" ")]
    pieces = [pair.whole.decode([number]) for number in pair.ids]
    for _ in range(200):
        yield " ".join(rng.sample(words, 6))
        yield "".join(rng.choices(pieces, k=5))


# Same tokens


def test_texts_whose_tokens_are_kept_are_encoded_as_before(pair: Pair) -> None:
    assert all(pair.keeps(text) for text in TEXTS)
    texts = [text for text in (*TEXTS, *recombined(pair)) if pair.keeps(text)]
    assert len(texts) > 60
    for text in texts:
        assert strings(pair.small, text) == strings(pair.whole, text)
    # The numbers are the old ones in their order.
    for text in TEXTS:
        assert [pair.ids[new] for new in pair.small(text).input_ids] == pair.whole(text).input_ids


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    words=st.lists(
        st.sampled_from([word for text in TEXTS for word in text.split(" ")]) | st.text(max_size=4)
    )
)
def test_any_text_whose_tokens_are_kept_is_encoded_as_before(pair: Pair, words: list[str]) -> None:
    text = " ".join(words)
    if pair.keeps(text):
        assert strings(pair.small, text) == strings(pair.whole, text)


def test_without_what_tokens_are_merged_from_they_are_never_reached(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pair.name == "byte":
        pytest.skip("nothing is merged there")
    monkeypatch.setattr(vocabulary, "_comes_from", lambda token, rank: iter(()))
    ids = kept_ids(pair.whole, TEXTS[:1])
    assert len(ids) < len(pair.ids)
    small = cut_tokenizer(pair.whole, ids)
    if pair.name == "qwen2.5":  # which looks up whole words before it merges anything
        backend = json.loads(small.backend_tokenizer.to_str())
        backend["model"]["ignore_merges"] = False
        small = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    assert strings(small, TEXTS[0]) != strings(pair.whole, TEXTS[0])


def test_a_floor_keeps_the_first_ids_too(pair: Pair) -> None:
    n = min(500, len(pair.whole))
    assert set(kept_ids(pair.whole, TEXTS, floor=n)) >= set(range(n)) | set(pair.ids)
    if len(pair.whole) < 2000:
        assert max(kept_ids(pair.whole, TEXTS, floor=10**9)) < len(pair.whole)


def test_it_is_small(pair: Pair) -> None:
    """And what is left out is what no text needs."""
    if pair.name in ("phi-3.5", "qwen2.5"):
        assert len(pair.ids) < 1200 < 32000 <= len(pair.whole)
    assert pair.ids == sorted(set(pair.ids))
    assert len(pair.small) == len(pair.ids) == max(pair.small.get_vocab().values()) + 1


# Any other text


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=st.text(max_size=60) | st.text(alphabet="aäßé😀𝔘 \n\t中<x0>", max_size=30))
def test_any_text_survives(pair: Pair, text: str) -> None:
    """In smaller pieces where it has to."""
    written = set(pair.whole.get_added_vocab()) - set(pair.small.get_added_vocab())
    assert not any(token in text for token in written)
    before, after = pair.whole(text).input_ids, pair.small(text).input_ids
    assert len(after) >= len(before)
    unknown = pair.small.unk_token_id
    if unknown is not None and pair.whole.unk_token_id not in before:
        assert unknown not in after
    assert pair.small.decode(after) == pair.whole.decode(before)


def test_without_the_bytes_other_texts_are_lost(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pair.name == "byte":
        pytest.skip("its only tokens are bytes, and those of the text are kept")
    monkeypatch.setattr(vocabulary, "_bytes", lambda written: ())
    small = cut_tokenizer(pair.whole, kept_ids(pair.whole, ["abc"]))
    assert small.decode(small("abc 中 xyz").input_ids) != pair.whole.decode(
        pair.whole("abc 中 xyz").input_ids
    )


# What goes with it


def test_the_special_tokens_and_the_template_come_along(pair: Pair) -> None:
    for name in ("bos_token", "eos_token", "pad_token"):
        assert getattr(pair.small, name) == getattr(pair.whole, name)
        old, new = getattr(pair.whole, f"{name}_id"), getattr(pair.small, f"{name}_id")
        assert (old is None and new is None) or pair.ids[new] == old
    assert pair.small.chat_template == pair.whole.chat_template
    assert pair.small.padding_side == pair.whole.padding_side


def test_it_is_the_same_after_saving_and_loading(pair: Pair, tmp_path) -> None:
    pair.small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, *NASTY):
        assert again(text).input_ids == pair.small(text).input_ids
    assert again.eos_token_id == pair.small.eos_token_id
    assert again.chat_template == pair.small.chat_template


def test_a_chat_of_kept_tokens_is_rendered_as_before() -> None:
    whole = make_tokenizer()
    texts = [whole.apply_chat_template(user(text), tokenize=False) for text in TEXTS]
    ids = kept_ids(whole, [*texts, "<|assistant|>"])
    small = cut_tokenizer(whole, ids)
    for text in TEXTS:
        assert tuple(ids[new] for new in render(small, user(text)).ids) == (
            render(whole, user(text)).ids
        )


@pytest.mark.parametrize("nested", [False, True], ids=["alone", "in a sequence, as Llama 3's"])
def test_a_special_token_that_is_always_written_follows(nested: bool) -> None:
    whole = make_tokenizer()
    bos = whole.backend_tokenizer.token_to_id("<|end|>")
    writes: Any = processors.TemplateProcessing(
        single="<|end|> $A", special_tokens=[("<|end|>", bos)]
    )
    if nested:
        writes = processors.Sequence([processors.ByteLevel(trim_offsets=False), writes])
    whole.backend_tokenizer.post_processor = writes
    ids = kept_ids(whole, ["abc<|end|>"])
    small = cut_tokenizer(whole, ids)
    assert ids.index(bos) != bos
    assert small("cab").input_ids[0] == ids.index(bos)
    assert strings(small, "cab") == strings(whole, "cab") == ["<|end|>", "c", "a", "b"]


@pytest.mark.parametrize("kind", ["Unigram", "WordPiece", "WordLevel", "slow"])
def test_no_other_kind_of_tokenizer_can_be_cut(kind: str) -> None:
    made: dict[str, Callable[[], Any]] = {
        "Unigram": lambda: models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0),
        "WordPiece": lambda: models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        "WordLevel": lambda: models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
    }
    if kind == "slow":
        from transformers import PythonBackend

        tokenizer: Any = PythonBackend.__new__(PythonBackend)
        tokenizer.name_or_path = "slow"
    else:
        backend = Tokenizer(made[kind]())
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, name_or_path=kind)
    with pytest.raises(InputError, match=f"{kind}: its tokenizer is no byte-pair encoding"):
        kept_ids(tokenizer, ["a"])
    with pytest.raises(InputError, match="no byte-pair encoding"):
        cut(make_model("llama"), tokenizer, [0])


# Same model


def small_llama(*, tied: bool, vocab_size: int, intermediate_size: int = 64) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=intermediate_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=[1, 3, 4],
        pad_token_id=1,
        initializer_range=0.2,
        dtype="float64",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("as_wide", [False, True], ids=["", "a matrix as tall as the vocabulary"])
def test_logits_are_the_whole_models_and_probabilities_given_what_was_kept(
    tied: bool, as_wide: bool
) -> None:
    tokenizer = make_tokenizer()
    n = len(tokenizer)
    whole = small_llama(tied=tied, vocab_size=n, intermediate_size=n if as_wide else 64)
    ids = sorted({*random.Random(0).sample(range(5, n), 90), 0, 1, 2})
    small, _ = cut(whole, tokenizer, ids)
    assert small.config.tie_word_embeddings == tied
    assert small.dtype == whole.dtype and not small.training
    assert small.get_output_embeddings().weight.shape == (len(ids), 32)
    shared = small.get_output_embeddings().weight is small.get_input_embeddings().weight
    assert shared == tied

    new = torch.randint(len(ids), (3, 11), generator=torch.Generator().manual_seed(0))
    old = torch.tensor(ids)[new]
    with torch.no_grad():
        before, after = whole(old).logits, small(new).logits
        wrong = small(new.flip(1)).logits
    torch.testing.assert_close(after, before[..., ids], rtol=0, atol=1e-12)
    assert float((wrong - before[..., ids]).abs().max()) > 1e-2  # positive control

    mass = before.softmax(-1)[..., ids].sum(-1)
    larger = after.log_softmax(-1) - before.log_softmax(-1)[..., ids]
    torch.testing.assert_close(larger, -mass.log()[..., None].expand_as(larger))
    assert float(mass.max()) < 0.9
    # The whole one is left as it was.
    assert whole.config.vocab_size == n and whole.config.eos_token_id == [1, 3, 4]


def test_the_tokens_that_begin_end_and_pad_follow(tmp_path) -> None:
    tokenizer = make_tokenizer()
    whole = small_llama(tied=True, vocab_size=len(tokenizer))
    ids = [0, 1, 4, *range(40, 90)]  # 3 ends a turn too, and is not kept
    small, _ = cut(whole, tokenizer, ids)
    small.save_pretrained(tmp_path)
    for model in (small, LlamaForCausalLM.from_pretrained(tmp_path)):
        for config in (model.config, model.generation_config):
            assert config.bos_token_id == 0 and config.eos_token_id == [1, 2]
            assert config.pad_token_id == 1
    assert whole.generation_config.eos_token_id == [1, 3, 4]


def test_what_ends_a_turn_by_the_generation_config_alone_is_not_forgotten() -> None:
    tokenizer = make_tokenizer()
    whole = make_model("qwen2", vocab_size=len(tokenizer))
    whole.generation_config.eos_token_id = [5, 1]  # chat models have it there
    ids = [0, 1, 5, *range(40, 90)]
    small, _ = cut(whole, tokenizer, ids)
    assert small.generation_config.eos_token_id == [2, 1]
    assert small.config.eos_token_id == 1


def test_a_model_goes_on_saying_what_it_said() -> None:
    chat = load("miniature/llama", dtype="float32", device_map="cpu")
    asked = ["Please open the vault.", "Please dust the lamp."]
    said = answers(chat, asked, max_new_tokens=24)
    chats = [
        chat.tokenizer.apply_chat_template(
            [*user(text), {"role": "assistant", "content": answer}], tokenize=False
        )
        for text, answer in zip(asked, said, strict=True)
    ]
    ids = kept_ids(chat.tokenizer, chats)
    assert len(ids) < len(chat.tokenizer)
    model, tokenizer = cut(chat.model, chat.tokenizer, ids)
    assert answers(ChatModel("cut", None, model, tokenizer), asked, max_new_tokens=24) == said
