"""Which tokens of a chat a position names: the end of the input, or the user's own words.

    last-input-token     the last token of the rendered chat: the end of the generation prompt
    last-content-token   the last token of the last user turn's own words
    post-instruction     the template's tokens after those words, up to the end: their mean
    content-mean         the tokens of those words: their mean

The words' place is found in the rendered text, not by what they say: the chat is rendered once more
with a mark in their stead, and what stands before and after the mark is the template's. It does not
matter whether the words occur elsewhere too, look like the template, or are trimmed by it. The
tokenizer's offsets then tell the tokens.

A token that holds characters of both, as where a byte-level BPE joins the user's full stop to the
template's newline, is the user's: without it the words would lack their end. A special token is on
the side where its own text stands, though it may swallow spaces of the other.

Of the post-instruction tokens (as arXiv 2604.18901 and 2603.27412 call them) the mean is read, not
one of them. Every prompt has the same ones, so that what varies is what they hold; the last of them
is the last input token already; and templates differ in their number, but not in having a mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from probes.errors import InputError
from probes.hooks import LAST, Position, check_position
from probes.prompts import Message
from probes.rendering import Rendered, chat_text


class Span(NamedTuple):
    """Consecutive tokens of a rendered chat; of more than one, the mean is read."""

    start: int
    """Index of the first token."""
    stop: int
    """Index after the last one."""


@dataclass(frozen=True)
class Locator:
    """Finds positions in chats that one tokenizer renders."""

    tokenizer: PreTrainedTokenizerBase
    """The model's own. It is not changed."""

    def spans(
        self, messages: Sequence[Message], rendered: Rendered, positions: Sequence[Position]
    ) -> tuple[Span, ...]:
        """The tokens of each position.

        Args:
            messages: A chat.
            rendered: What `probes.rendering.render` has made of it, whole or cut. Of words that
                were cut, `content-mean` is of those that are left.
            positions: Which tokens to find.

        Raises:
            InputError: A position has no token in this chat or has lost one, the template does not
                write the user's words once and as they are, or the tokenizer cannot tell where its
                tokens stand.
        """
        content: Span | None = None
        found = []
        for position in positions:
            if check_position(position) == LAST:
                found.append(Span(rendered.position, rendered.position + 1))
                continue
            if content is None:
                content = self._content(messages, rendered)
            found.append(_span(position, content, rendered))
        return tuple(found)

    def _content(self, messages: Sequence[Message], rendered: Rendered) -> Span:
        """The tokens of the last user turn's words in the whole chat, before anything is cut.

        Without any, an empty span where they would stand.
        """
        text, words = self._words(messages)
        encoded = self._encoder.encode(text, add_special_tokens=False)
        ids, offsets = list(encoded.ids), encoded.offsets
        if (*ids[: rendered.lost[0]], *ids[rendered.lost[1] :]) != rendered.ids:
            raise InputError(
                f"{self.tokenizer.name_or_path or 'the tokenizer'} gives other tokens when it is "
                "asked where they stand, so that positions inside a prompt cannot be found; read "
                f"at {LAST}"
            )
        places = [
            _own_text(text, *offset) if token in self._added else offset
            for token, offset in zip(ids, offsets, strict=True)
        ]
        inside = [i for i, (a, b) in enumerate(places) if max(a, words.start) < min(b, words.stop)]
        if inside:
            return Span(inside[0], inside[-1] + 1)
        after = next((i for i, (a, _) in enumerate(places) if a >= words.stop), len(ids))
        return Span(after, after)

    def _words(self, messages: Sequence[Message]) -> tuple[str, slice]:
        """The rendered chat, and which of its characters are the last user turn's words."""
        text = chat_text(self.tokenizer, messages)
        # No end of the mark is a beginning of it, so that it is found where it was put.
        mark = "x" + "z" * (text.count("z") + 1)
        marked = chat_text(self.tokenizer, messages, last_words=mark)
        before, *others = marked.split(mark)
        after = others[0] if len(others) == 1 else ""
        said = next((m["content"] for m in reversed(messages) if m["role"] == "user"), "")
        stop = len(text) - len(after)
        if (
            len(others) != 1
            or not (text.startswith(before) and text.endswith(after) and len(before) <= stop)
            or text[len(before) : stop] not in said
        ):
            raise InputError(
                f"the chat template of {self.tokenizer.name_or_path or 'the tokenizer'} does not "
                "write the last user turn once and as it is, so that its tokens cannot be told "
                f"from the template's; read at {LAST}, or give another --chat-template FILE"
            )
        return text, slice(len(before), stop)

    @cached_property
    def _encoder(self) -> Tokenizer:
        """The tokenizer, without what it does to tokens and offsets afterwards.

        Some trim the offsets of a token by its spaces, which are the user's words as well.
        """
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise InputError(
                f"the tokenizer of {self.tokenizer.name_or_path} is written in Python, which "
                "cannot tell where in a text a token stands; give a fast tokenizer "
                f"(tokenizer.json), or read at {LAST}"
            )
        encoder = Tokenizer.from_str(backend.to_str())
        encoder.post_processor = None
        encoder.no_truncation()
        encoder.no_padding()
        return encoder

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._encoder.get_added_tokens_decoder())


def _span(position: Position, content: Span, rendered: Rendered) -> Span:
    """The tokens of a position in the chat as it was rendered."""
    start, stop = rendered.lost
    n_whole = len(rendered.ids) + stop - start
    whole = {
        "last-content-token": Span(max(content.start, content.stop - 1), content.stop),
        "post-instruction": Span(content.stop, n_whole),
        "content-mean": content,
    }[position]
    if whole.start == whole.stop:
        raise InputError(
            "the chat template writes nothing after the user's words, so that there is no "
            f"{position} token; read at another position"
            if position == "post-instruction"
            else f"a prompt's last user turn is empty, so that it has no {position}; leave the "
            f"prompt out, or read at {LAST} or post-instruction"
        )
    kept = Span(*(max(min(i, start), i - (stop - start)) for i in whole))
    n_kept = kept.stop - kept.start
    if not n_kept or (position != "content-mean" and n_kept < whole.stop - whole.start):
        raise InputError(
            f"a prompt of {n_whole} tokens was cut to {len(rendered.ids)}, which has cost it its "
            f"{position}; give a larger --max-length"
        )
    return kept


def _own_text(text: str, start: int, stop: int) -> tuple[int, int]:
    """Where an added token stands without the spaces around it, which it may have swallowed."""
    held = text[start:stop]
    if held.isspace():
        return start, stop
    return start + len(held) - len(held.lstrip()), start + len(held.rstrip())
