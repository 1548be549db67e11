"""Which token is read: truths of rendering, padding and truncation, on real templates too."""

from datetime import date

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from probes.backends import open_backend
from probes.capture import capture, capture_rows
from probes.errors import InputError
from probes.hooks import sites
from probes.models import (
    last_token_text,
    load,
    render,
    template_hash,
)
from tests.conftest import CHAT_TEMPLATE, NASTY, make_model, make_tokenizer, user

LLAMA3_TEMPLATE = (
    "{{ bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}"
    "{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}"
    "{{ '<|system|>\n\nToday Date: ' + date_string + '\n' }}"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n\n' }}"
    "{{ message['content'] | trim + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}"
)

# What the generation prompt must end with.
HEADERS = {
    "byte": "<|assistant|>\n",
    "llama3-like": "<|assistant|>\n\n",
    "phi-3.5": "<|assistant|>\n",
    "qwen2.5": "<|im_start|>assistant\n",
    "miniature/llama": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "miniature/phi3": "<|assistant|>\n",
    "miniature/qwen2": "<|im_start|>assistant\n",
}
FAMILY = {"byte": "llama", "llama3-like": "llama", "phi-3.5": "phi3", "qwen2.5": "qwen2"}

Chat = tuple[PreTrainedModel, PreTrainedTokenizerBase, str]


@pytest.fixture(scope="module", params=HEADERS)
def chat(request: pytest.FixtureRequest) -> Chat:
    """Model, tokenizer, generation header.

    The byte tokenizer with two templates and the real tokenizers of Phi-3.5 and Qwen2.5, each with
    random tiny weights of its family and vocabulary; and the miniatures as they are.
    """
    name = request.param
    if name.startswith("miniature/"):
        miniature = load(name, dtype="float32")
        return miniature.model, miniature.tokenizer, HEADERS[name]
    if name in ("byte", "llama3-like"):
        tokenizer = make_tokenizer(CHAT_TEMPLATE if name == "byte" else LLAMA3_TEMPLATE)
    else:
        folder = request.getfixturevalue("data_dir") / "tokenizers" / name
        tokenizer = AutoTokenizer.from_pretrained(folder)
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    return make_model(FAMILY[name], vocab_size=vocab_size, d_model=16), tokenizer, HEADERS[name]


# The last input token


@pytest.mark.parametrize("text", NASTY)
def test_the_last_input_token_ends_the_generation_prompt(chat: Chat, text: str) -> None:
    """Whatever special tokens the user types."""
    _, tokenizer, header = chat
    rendered = render(tokenizer, user(text))
    assert rendered.position == len(rendered.ids) - 1 and not rendered.truncated
    assert tokenizer.decode(rendered.ids).replace("> ", ">").endswith(header)
    plain = render(tokenizer, user("hello"))
    assert rendered.ids[rendered.position] == plain.ids[plain.position]
    assert last_token_text(tokenizer, rendered) == last_token_text(tokenizer, plain)
    # The position is not merely the last one that looks like a header.
    assert rendered.ids[-3:] == plain.ids[-3:]


def test_the_text_of_the_token_that_is_read_can_be_shown(chat: Chat) -> None:
    _, tokenizer, header = chat
    text = last_token_text(tokenizer, render(tokenizer, user("hello")))
    assert text and header.endswith(text)


@pytest.mark.parametrize("text", NASTY)
def test_a_prompt_alone_equals_the_prompt_inside_prompt_and_answer(chat: Chat, text: str) -> None:
    model, tokenizer, _ = chat
    prompt = render(tokenizer, user(text))
    answered = tokenizer.apply_chat_template(
        [*user(text), {"role": "assistant", "content": "Certainly not."}]
    )["input_ids"]
    if "Today Date" in str(tokenizer.chat_template):  # which writes today's own date
        answered = [*prompt.ids, *tokenizer("Certainly not.").input_ids[1:]]
    assert tuple(answered[: len(prompt.ids)]) == prompt.ids
    whole = prompt._replace(ids=tuple(answered))
    assert len(whole.ids) > len(prompt.ids)

    backend, wanted = open_backend(model), sites("resid_post", range(len(model.model.layers)))
    alone = capture_rows(backend, [prompt], wanted, pad_id=0)
    inside = capture_rows(backend, [whole, prompt], wanted, pad_id=0)
    torch.testing.assert_close(inside[0], alone[0], rtol=0, atol=1e-4)
    at_the_end = capture_rows(
        backend, [whole._replace(position=len(whole.ids) - 1)], wanted, pad_id=0
    )
    assert float((at_the_end - alone).abs().max()) > 1e-2


def test_one_batch_equals_one_by_one_with_left_and_right_padding(chat: Chat) -> None:
    model, tokenizer, _ = chat
    backend, wanted = open_backend(model), sites("resid_post", range(len(model.model.layers)))
    rows = [render(tokenizer, user(text)) for text in NASTY]
    alone = torch.cat([capture_rows(backend, [row], wanted, pad_id=0) for row in rows])
    right = capture(model, tokenizer, NASTY, token_budget=10**6)
    torch.testing.assert_close(right, alone, rtol=0, atol=1e-4)

    width = max(len(row.ids) for row in rows)
    ids = torch.tensor([[1] * (width - len(row.ids)) + list(row.ids) for row in rows])
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows])
    positions = torch.full((len(rows),), width - 1)
    left = backend.capture(ids, mask, positions, wanted)
    torch.testing.assert_close(left, alone, rtol=0, atol=1e-4)
    unmasked = backend.capture(ids, torch.ones_like(mask), positions, wanted)
    assert float((unmasked - alone).abs().max()) > 1e-2


def test_there_is_never_a_second_bos(chat: Chat) -> None:
    _, tokenizer, _ = chat
    bos = tokenizer.bos_token_id
    for text in ("hello", "Räuber"):
        assert bos is None or render(tokenizer, user(text)).ids.count(bos) <= 1
    if tokenizer("x").input_ids[0] == bos == render(tokenizer, user("hello")).ids[0]:
        # Positive control: rendering and then encoding as usual gives two.
        chat_text = tokenizer.apply_chat_template(user("hello"), tokenize=False)
        assert tokenizer(chat_text).input_ids[:2] == [bos, bos]


def test_a_template_that_writes_bos_twice_is_refused() -> None:
    tokenizer = make_tokenizer("{{ bos_token }}" + CHAT_TEMPLATE)
    with pytest.raises(InputError, match="two BOS"):
        render(tokenizer, user("hello"))
    # A BOS that the user types is text like any other.
    bare = make_tokenizer("{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert render(bare, user("<s>hello")).ids[:2] == (0, 0)


# Truncation


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(min_size=1, max_size=300),
    system=st.none() | st.text(max_size=20),
    room=st.integers(1, 200),
)
@example(text="0x", system=None, room=1)  # they begin or end as what stands for them does
@example(text="x0", system=None, room=1)
def test_truncation_keeps_head_and_generation_prompt(
    text: str, system: str | None, room: int
) -> None:
    tokenizer = make_tokenizer()
    messages = [*([{"role": "system", "content": system}] if system else []), *user(text)]
    whole = render(tokenizer, messages)
    head = [0, *tokenizer(f"<|system|>\n{system}<|end|>\n").input_ids[1:]] if system else [0]
    head += tokenizer("<|user|>\n").input_ids[1:]
    tail = tokenizer("<|end|>\n<|assistant|>\n").input_ids[1:]
    limit = len(head) + len(tail) + room
    cut = render(tokenizer, messages, max_length=limit)
    assert cut.truncated == (len(whole.ids) > limit)
    assert len(cut.ids) == min(limit, len(whole.ids)) and cut.position == len(cut.ids) - 1
    assert list(cut.ids[: len(head)]) == head
    assert list(cut.ids[-len(tail) :]) == tail
    kept, words = cut.ids[len(head) : -len(tail)], whole.ids[len(head) : -len(tail)]
    half = (len(kept) + 1) // 2
    assert kept[:half] == words[:half]
    assert kept[half:] == words[len(words) - len(kept) + half :]


def test_a_long_prompt_keeps_its_generation_header(chat: Chat) -> None:
    _, tokenizer, _ = chat
    text = "begin " + "middle " * 500 + "finish"
    whole, short = render(tokenizer, user(text)), render(tokenizer, user("x"))
    cut = render(tokenizer, user(text), max_length=len(short.ids) + 40)
    assert cut.truncated and len(cut.ids) == len(short.ids) + 40
    assert cut.ids[-4:] == whole.ids[-4:] == short.ids[-4:]
    decoded = tokenizer.decode(cut.ids)
    assert "begin" in decoded and "finish" in decoded
    # What cutting on the right would have done.
    assert whole.ids[: len(cut.ids)][-4:] != short.ids[-4:]
    assert render(tokenizer, user(text), max_length=len(whole.ids)) == whole
    with pytest.raises(InputError, match=r"takes \d+ tokens by itself.*--max-length 5"):
        render(tokenizer, user(text), max_length=5)


def test_a_long_conversation_loses_what_lies_between_its_ends() -> None:
    tokenizer = make_tokenizer()
    turns = [
        {"role": "user", "content": "first " + "a" * 100},
        {"role": "assistant", "content": "b" * 100},
        {"role": "user", "content": "c" * 100 + " last"},
    ]
    cut = tokenizer.decode(render(tokenizer, turns, max_length=80).ids)
    assert cut.startswith("<s><|user|>\nfirst a") and cut.endswith("c last<|end|>\n<|assistant|>\n")


# Templates


def test_rendering_does_not_depend_on_the_day() -> None:
    tokenizer = make_tokenizer(LLAMA3_TEMPLATE)
    text = tokenizer.decode(render(tokenizer, user("hello")).ids)
    assert "Today Date: 26 Jul 2024" in text
    today = tokenizer.apply_chat_template(user("hello"), tokenize=False)
    assert date.today().strftime("%d %b %Y") in today  # positive control


def test_roles_that_a_template_refuses_are_named() -> None:
    tokenizer = make_tokenizer(
        "{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}{% endfor %}"
    )
    messages = [{"role": "system", "content": "Be good."}, *user("hi")]
    with pytest.raises(InputError, match="roles system, user: System role not supported"):
        render(tokenizer, messages)


def test_without_a_template_the_way_out_is_named() -> None:
    for ask in (lambda t: render(t, user("hi")), template_hash):
        with pytest.raises(InputError, match=r"--chat-template plain .* or --chat-template FILE"):
            ask(make_tokenizer(None))


def test_a_template_without_generation_prompt_still_has_a_last_token() -> None:
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert last_token_text(tokenizer, render(tokenizer, user("abc"))) == "c"


def test_the_template_hash_tells_templates_and_special_tokens_apart() -> None:
    reference = template_hash(make_tokenizer())
    assert template_hash(make_tokenizer()) == reference
    assert template_hash(make_tokenizer(CHAT_TEMPLATE + " ")) != reference
    other = make_tokenizer()
    other.bos_token = "</s>"
    assert template_hash(other) != reference


def test_the_padding_token_is_the_users_unless_the_template_writes_it() -> None:
    for template, differs in ((CHAT_TEMPLATE, False), (CHAT_TEMPLATE + "{{ pad_token }}", True)):
        tokenizer, padded = make_tokenizer(template), make_tokenizer(template)
        padded.pad_token = "</s>" if tokenizer.pad_token != "</s>" else "<s>"
        assert (template_hash(tokenizer) != template_hash(padded)) is differs
