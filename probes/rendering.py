"""From chat messages to token ids, and the last input token among them.

The last input token is the last token of the chat as the tokenizer's own template renders it with
its generation prompt: what the model has read when it is about to answer, and nothing of the
answer. The template alone writes special tokens, so there is never a second BOS.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from datetime import date
from typing import Any, NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from probes.errors import InputError
from probes.prompts import Message

# Templates that write today's date (Llama 3.1 and later among them) always get this one, which is
# Llama's own default: what is rendered, and so what is cached, must not change overnight.
DATE = date(2024, 7, 26)

# For base models, which have no template of their own. Fixed texts, so that it can be recorded.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
    "{% else %}{{ message['role'] | capitalize + ': ' + message['content'] + '\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)

# Stand for the user's words where only the template's own tokens are wanted.
PLACEHOLDER, ANOTHER = "x", "0"


class Rendered(NamedTuple):
    """A chat as the model reads it."""

    ids: tuple[int, ...]
    """Token ids, without padding."""
    position: int
    """Index in `ids` of the last input token."""
    truncated: bool
    """Whether part of the user's text was left out."""
    lost: tuple[int, int] = (0, 0)
    """The tokens that were left out, as they stood in the whole chat: the first one, and the one
    after the last."""


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    max_length: int | None = None,
) -> Rendered:
    """Render a chat with its generation prompt and find the last input token.

    A chat longer than `max_length` tokens loses the middle of what lies between the template's
    head and its tail: the system prompt, the first user's header, the end of the last turn and the
    generation prompt stay whole.

    Args:
        tokenizer: The model's own, with a chat template.
        messages: Chat messages, the last one the user's.
        max_length: Most tokens to give the model; None for no limit.

    Raises:
        InputError: There is no template, it refuses the messages, it writes BOS twice, or the
            template's own tokens leave no room for the user's within `max_length`.
    """
    ids = _ids(tokenizer, messages)
    bos = tokenizer.bos_token_id
    # The user's own text may hold a BOS too; only the template's second one is a fault.
    if _doubled(ids, bos) and _doubled(_ids(tokenizer, _without(messages, "all")), bos):
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} begins with two BOS tokens; "
            "give another with --chat-template FILE"
        )
    if max_length is None or len(ids) <= max_length:
        return Rendered(tuple(ids), len(ids) - 1, truncated=False)

    # Of two, for the user's words may begin or end as one of them does.
    n_head = min(
        _common(ids, _ids(tokenizer, _without(messages, "first", other)))
        for other in (PLACEHOLDER, ANOTHER)
    )
    n_tail = min(
        _common(ids[:n_head:-1], _ids(tokenizer, _without(messages, "last", other))[::-1])
        for other in (PLACEHOLDER, ANOTHER)
    )
    room = max_length - n_head - n_tail
    if room < 1:
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} takes {n_head + n_tail} tokens by "
            f"itself, so that --max-length {max_length} leaves none for the prompt; give at least "
            f"{n_head + n_tail + 1}"
        )
    start, stop = n_head + (room + 1) // 2, len(ids) - n_tail - room // 2
    ids = ids[:start] + ids[stop:]
    return Rendered(tuple(ids), len(ids) - 1, truncated=True, lost=(start, stop))


def chat_text(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    last_words: str | None = None,
) -> str:
    """The text of which `render` gives the ids, before anything is cut.

    Args:
        tokenizer: The model's own, with a chat template.
        messages: Chat messages.
        last_words: What the last user turn says instead; None: its own words.

    Raises:
        InputError: There is no template, or it refuses the messages.
    """
    if last_words is not None:
        messages = _without(messages, "last", last_words)
    return str(_applied(tokenizer, messages, add_generation_prompt=True, tokenize=False))


def answered_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole chat whose last message is the assistant's, without generation prompt.

    Raises:
        InputError: There is no template, or it refuses the messages.
    """
    return _ids(tokenizer, messages, add_generation_prompt=False)


def last_token_text(tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> str:
    r"""Text of the token that is read, such as `'\n'` after `<|assistant|>`."""
    return str(tokenizer.decode([rendered.ids[rendered.position]]))


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 (hex) of the chat template as it is used and of the special tokens it may write.

    The padding token counts only where the template names it: people set it as they like.

    Raises:
        InputError: There is no template.
    """
    template = _template(tokenizer)
    special = dict(tokenizer.special_tokens_map)
    if "pad_token" not in template:
        special.pop("pad_token", None)
    written = json.dumps([template, special], sort_keys=True)
    return hashlib.sha256(written.encode()).hexdigest()


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template with its date fixed."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path or 'the tokenizer'} has no chat template, as base models "
            "have none; give one with --chat-template plain (User: ... Assistant:) or "
            "--chat-template FILE"
        )
    return re.sub(
        r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""",
        lambda call: repr(DATE.strftime(call[2])),
        tokenizer.get_chat_template(),
    )


def _ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
) -> list[int]:
    encoded = _applied(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    return list(encoded["input_ids"])


def _applied(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any
) -> Any:
    """What the chat template makes of messages: ids, or text with `tokenize=False`."""
    try:
        return tokenizer.apply_chat_template(
            [{"role": m["role"], "content": m["content"]} for m in messages],
            chat_template=_template(tokenizer),
            **options,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(
            f"the chat template of {tokenizer.name_or_path} refuses messages with the roles "
            f"{roles}: {error}; change the messages or give another --chat-template FILE"
        ) from error


def _without(messages: Sequence[Message], which: str, instead: str = PLACEHOLDER) -> list[Message]:
    """The same chat without the first, the last or all of the users' words."""
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    chosen = {"first": users[:1], "last": users[-1:], "all": users}[which]
    return [
        {**message, "content": instead} if i in chosen else message
        for i, message in enumerate(messages)
    ]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences have in common from the start."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def _doubled(ids: Sequence[int], bos: int | None) -> bool:
    return bos is not None and list(ids[:2]) == [bos, bos]
