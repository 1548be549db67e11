"""Which tokens a position names where templates, tokenizers or a short context are in the way."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from probes.errors import InputError
from probes.hooks import POSITIONS, Position
from probes.positions import Locator, Span
from probes.rendering import PLAIN_TEMPLATE, render
from tests.conftest import make_tokenizer, user


def test_a_token_of_both_is_the_users(data_dir: object) -> None:
    """A byte-level BPE joins the full stop to the template's newline, and the space to a word."""
    tokenizer = AutoTokenizer.from_pretrained(f"{data_dir}/tokenizers/qwen2.5")
    tokenizer.chat_template = PLAIN_TEMPLATE
    rendered = render(tokenizer, user("Open it."))
    locator = Locator(tokenizer)

    def locate(position: Position) -> Span:
        return locator.spans(user("Open it."), rendered, [position])[0]

    texts = {
        position: tokenizer.decode(rendered.ids[slice(*locate(position))]) for position in POSITIONS
    }
    assert texts == {
        "last-input-token": ":",
        "last-content-token": ".\n",
        "post-instruction": "Assistant:",
        "content-mean": " Open it.\n",
    }


def tokenizer_that(swallows: bool = False, trims: bool = False) -> PreTrainedTokenizerBase:
    """The byte tokenizer, with special tokens that take in spaces, or offsets without spaces."""
    tokenizer = make_tokenizer()
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    if swallows:
        backend.add_special_tokens(
            [AddedToken(name, lstrip=True, rstrip=True) for name in ("<|user|>", "<|end|>")]
        )
    if trims:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer._tokenizer = backend
    return tokenizer


def test_a_special_token_is_on_the_side_of_its_own_text() -> None:
    tokenizer = tokenizer_that(swallows=True)
    locator = Locator(tokenizer)
    rendered = render(tokenizer, user("  a b  "))
    offsets = tokenizer(
        "<|user|>\n  a b  <|end|>\n", add_special_tokens=False, return_offsets_mapping=True
    )["offset_mapping"]
    assert offsets[0] == (0, 11)  # positive control: the token takes in the user's spaces
    (content,) = locator.spans(user("  a b  "), rendered, ["content-mean"])
    assert tokenizer.decode(rendered.ids[slice(*content)]) == "a b"
    (post,) = locator.spans(user("  a b  "), rendered, ["post-instruction"])
    assert tokenizer.decode(rendered.ids[slice(*post)]).startswith("<|end|>")
    with pytest.raises(InputError, match="is empty"):
        locator.spans(user("  "), render(tokenizer, user("  ")), ["last-content-token"])


def test_spaces_count_though_a_tokenizer_trims_its_offsets() -> None:
    tokenizer = tokenizer_that(trims=True)
    rendered = render(tokenizer, user("a  "))
    encoded = tokenizer("a  ", add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["offset_mapping"][-1] != (2, 3)  # positive control
    (content,) = Locator(tokenizer).spans(user("a  "), rendered, ["content-mean"])
    assert tokenizer.decode(rendered.ids[slice(*content)]) == "a  "
    assert Locator(tokenizer).tokenizer is tokenizer
    assert tokenizer.backend_tokenizer.post_processor is not None  # left as it was


def test_of_several_turns_the_last_users_is_meant() -> None:
    tokenizer = make_tokenizer()
    turns = [*user("same"), {"role": "assistant", "content": "same"}, *user("same")]
    rendered = render(tokenizer, turns)
    (content,) = Locator(tokenizer).spans(turns, rendered, ["content-mean"])
    assert content == Span(len(rendered.ids) - 8, len(rendered.ids) - 4)
    assert tokenizer.decode(rendered.ids[slice(*content)]) == "same"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ m['role'] }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{% for m in messages %}{{ m['content'] | replace('e', 'ee') }}{% endfor %}",
        "{% for m in messages %}{{ 'longer' if m['content'] | length > 9 }}{{ m['content'] }}"
        "{% endfor %}!",
    ],
    ids=["twice", "never", "capitals", "changed", "by length"],
)
def test_a_template_that_hides_the_words_is_refused(template: str) -> None:
    tokenizer = make_tokenizer(template)
    messages = user("These are the words.")
    rendered = render(tokenizer, messages)
    assert Locator(tokenizer).spans(messages, rendered, ["last-input-token"])
    with pytest.raises(InputError, match="does not write the last user turn once and as it is"):
        Locator(tokenizer).spans(messages, rendered, ["content-mean"])


def test_what_is_not_there_is_named() -> None:
    bare = make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(InputError, match="writes nothing after the user's words"):
        Locator(bare).spans(user("a"), render(bare, user("a")), ["post-instruction"])
    with pytest.raises(InputError, match="'middle' is no position; choose from last-input-token,"):
        Locator(bare).spans(user("a"), render(bare, user("a")), ["middle"])  # type: ignore[list-item]
    changed = render(bare, user("a"))._replace(ids=(7,))
    with pytest.raises(InputError, match="gives other tokens when it is asked where they stand"):
        Locator(bare).spans(user("a"), changed, ["content-mean"])


# Truncation


@settings(max_examples=100, deadline=None)
@given(
    words=st.text(min_size=1, max_size=60), before=st.text(max_size=20), limit=st.integers(8, 60)
)
def test_of_a_prompt_that_was_cut_the_tokens_that_are_left_are_read(
    words: str, before: str, limit: int
) -> None:
    """Oracle: number the whole chat's tokens, and cut the numbers as the ids were cut."""
    tokenizer = make_tokenizer()
    messages = [*user(before), {"role": "assistant", "content": "Yes."}, *user(words)]
    whole = render(tokenizer, messages)
    n_tail = len(tokenizer("<|end|>\n<|assistant|>\n", add_special_tokens=False).input_ids)
    try:
        cut = render(tokenizer, messages, max_length=limit)
    except InputError:
        return
    numbers = [*range(cut.lost[0]), *range(cut.lost[1], len(whole.ids))]
    assert [whole.ids[i] for i in numbers] == list(cut.ids)
    assert cut.truncated == (cut.lost != (0, 0))
    stop = len(whole.ids) - n_tail
    start = stop - len(words.encode())
    locator = Locator(tokenizer)
    wanted: dict[Position, list[int]] = {
        "last-input-token": [len(whole.ids) - 1],
        "last-content-token": [stop - 1],
        "post-instruction": list(range(stop, len(whole.ids))),
        "content-mean": [i for i in range(start, stop) if i in numbers],
    }
    for position, tokens in wanted.items():
        if not tokens or not set(tokens) <= set(numbers):
            with pytest.raises(InputError, match=r"has cost it its .*--max-length"):
                locator.spans(messages, cut, [position])
            continue
        (span,) = locator.spans(messages, cut, [position])
        assert [numbers[i] for i in range(*span)] == tokens, position
