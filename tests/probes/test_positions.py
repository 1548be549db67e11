"""Which tokens a position names, against a count of bytes that knows neither offsets nor marks."""

import unicodedata
from dataclasses import dataclass
from functools import cached_property

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from probes import miniature
from probes.errors import InputError
from probes.hooks import Position
from probes.positions import Locator, Span
from probes.prompts import Message
from probes.rendering import PLAIN_TEMPLATE, Rendered, render
from tests.conftest import NASTY, make_tokenizer

PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
# The byte-level alphabet: printable bytes stand for themselves, the others follow from 256 on.
BYTE_LEVEL = {
    *map(chr, PRINTABLE),
    *(chr(256 + n) for n in range(256 - len(PRINTABLE))),
}
ODD = [
    *NASTY, "", " ", "\n\n", "x", "xz", "zzz", "é", "e\u0301", "\u0301", "🏰", "assistant", "user",
    "<|user|>\n", "<|eot_id|>", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|im_end|>\n",
    "?", ".", "Be brief.",
]  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A tokenizer, and by hand what its template writes around the last user turn's words."""

    tokenizer: PreTrainedTokenizerBase
    before: str
    after: str
    byte_level: bool = True

    @cached_property
    def locator(self) -> Locator:
        return Locator(self.tokenizer)


def llama3_like(tokenizer: PreTrainedTokenizerBase) -> Known:
    return Known(
        tokenizer,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    )


TURNS = {
    "qwen": ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n",
             "<|im_end|>\n<|im_start|>assistant\n"),
    "phi": ("<|system|>\nBe brief.<|end|>\n<|user|>\n", "<|end|>\n<|assistant|>\n"),
    "plain": ("Be brief.\nUser: ", "\nAssistant:"),
}  # fmt: skip
NAMES = ("byte", "plain", "miniature/llama", "miniature/phi3", "miniature/qwen2", "phi-3.5",
         "qwen2.5", "qwen2.5, plain")  # fmt: skip


@pytest.fixture(scope="module", params=NAMES)
def known(request: pytest.FixtureRequest) -> Known:
    name = request.param
    if name == "byte":
        before = "<s><|system|>\nBe brief.<|end|>\n<|user|>\n"
        return Known(make_tokenizer(), before, "<|end|>\n<|assistant|>\n")
    if name == "plain":
        return Known(make_tokenizer(PLAIN_TEMPLATE), *TURNS["plain"])
    if name.startswith("miniature/"):
        tokenizer = AutoTokenizer.from_pretrained(miniature.folder(name.rpartition("/")[2]))
        if name.endswith("llama"):
            return llama3_like(tokenizer)
        return Known(tokenizer, *TURNS["phi" if name.endswith("phi3") else "qwen"])
    folder, _, template = name.partition(", ")
    tokenizer = AutoTokenizer.from_pretrained(
        request.getfixturevalue("data_dir") / "tokenizers" / folder
    )
    if template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    turns = TURNS[template or folder[: folder.index("-") if "-" in folder else 4]]
    return Known(tokenizer, *turns, byte_level=folder != "phi-3.5")


SYSTEM = Message(role="system", content="Be brief.")


def chat_of(words: str) -> list[Message]:
    return [SYSTEM, Message(role="user", content=words)]


def n_bytes(known: Known, token: str, special: bool, first: bool) -> int:
    """How many bytes of text a token stands for; `first` after a special token or at the start."""
    if special:
        return len(token.encode())
    if known.byte_level:
        assert set(token) <= BYTE_LEVEL
        return len(token)
    if token.startswith("<0x") and len(token) == 6:
        return 1
    # SentencePiece writes a space before each stretch of text, which the text does not have.
    return len(token.replace("▁", " ").encode()) - (first and token.startswith("▁"))


def oracle(known: Known, ids: tuple[int, ...]) -> Span:
    """Tokens that hold a byte beyond what is written before the words and ahead of what follows."""
    tokens = known.tokenizer.convert_ids_to_tokens(list(ids))
    added = set(known.tokenizer.added_tokens_decoder)
    ends, total = [], 0
    for i, (token, id_) in enumerate(zip(tokens, ids, strict=True)):
        first = i == 0 or ids[i - 1] in added
        total += n_bytes(known, token, id_ in added, first)
        ends.append(total)
    start, stop = len(known.before.encode()), total - len(known.after.encode())
    starts = [0, *ends[:-1]]
    inside = [
        i for i, (a, b) in enumerate(zip(starts, ends, strict=True))
        if min(b, stop) > max(a, start)
    ]  # fmt: skip
    if not inside:
        at = next(i for i, a in enumerate(starts) if a >= stop and ends[i] > a)
        return Span(at, at)
    return Span(inside[0], inside[-1] + 1)


def located(known: Known, messages: list[Message], rendered: Rendered, position: Position) -> Span:
    (span,) = known.locator.spans(messages, rendered, [position])
    return span


WORDS = st.lists(st.sampled_from(ODD) | st.text(max_size=8), max_size=5).map("".join)


def check(known: Known, words: str) -> None:
    messages = chat_of(words)
    rendered = render(known.tokenizer, messages)
    content = oracle(known, rendered.ids)
    n = len(rendered.ids)
    assert located(known, messages, rendered, "last-input-token") == Span(n - 1, n)
    assert located(known, messages, rendered, "post-instruction") == Span(content.stop, n)
    for position in ("last-content-token", "content-mean"):
        if content.start == content.stop:
            with pytest.raises(InputError, match="last user turn is empty"):
                located(known, messages, rendered, position)
            continue
        first = content.start if position == "content-mean" else content.stop - 1
        assert located(known, messages, rendered, position) == Span(first, content.stop)


def composes(words: str) -> bool:
    """Words that begin with a mark on the character before them, which NFC makes one of the two."""
    return bool(words) and unicodedata.combining(words[0]) > 0


@pytest.mark.parametrize("words", [word for word in ODD if not composes(word)])
def test_the_words_are_where_the_bytes_are(known: Known, words: str) -> None:
    check(known, words)


@settings(max_examples=30, deadline=None)
@given(words=WORDS.filter(lambda words: not composes(words)))
@example(words="zz top x xz")
def test_any_words_are_found(known: Known, words: str) -> None:
    check(known, words)


def test_the_oracle_could_contradict(known: Known) -> None:
    """Positive control: looking for the words by what they say gives other tokens."""
    words = "Be brief."  # which the system prompt says too
    rendered = render(known.tokenizer, chat_of(words))
    content = located(known, chat_of(words), rendered, "content-mean")
    assert content == oracle(known, rendered.ids)
    assert content.stop - content.start > 1
    encoded = known.tokenizer(known.before + words + known.after, add_special_tokens=False)
    naive = encoded.char_to_token((known.before + words).index(words))
    assert naive < content.start
    assert known.tokenizer.decode(rendered.ids[slice(*content)]).strip() == words
