"""Answers of a chat model to prompts: batches of like length, the same as one by one.

>>> answers(chat, ["How do I open the vault?"], max_new_tokens=64)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from probes.batches import in_batches, padded
from probes.blocks import input_device, reading
from probes.capture import pad_id
from probes.errors import InputError
from probes.greedy import stops_of
from probes.models import ChatModel, context_length
from probes.prompts import Message
from probes.rendering import Rendered, render
from regularize.decoding import Choose, Decoder, Ending, likeliest, suits

BATCH_TOKENS = 16384
"""In memory at a time, where nothing else is said."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What the tokenizer writes for a letter of which bytes are missing."""
TOP_P = 0.9
ALIKE = 0.75
"""Share of its longest prompt that every prompt of a batch has at least: the rest is padding."""

Heard = Callable[[Sequence[int], Float[Tensor, "prompt vocab"]], None]
"""Is told some prompts' places in the list, and the logits right after them."""
Decided = Callable[[int, str], bool]
"""Whether an answer's beginning decides what it will be taken for: told by the prompt's place in
the list and the text so far."""


def answers(
    chat: ChatModel,
    prompts: Sequence[str | Sequence[Message]],
    *,
    max_new_tokens: int = 256,
    batch_tokens: int = BATCH_TOKENS,
    temperature: float = 0.0,
    top_p: float = TOP_P,
    seed: int = 0,
    heard: Heard | None = None,
    decided: Decided | None = None,
    progress: bool = False,
) -> list[str]:
    """Answers in the order of the prompts.

    What the model's own `generation_config` says of sampling and penalties is left aside, so that
    models are asked alike; of it, only the tokens that end a turn are kept.

    Args:
        chat: The model, a `PeftModel` too. It is put in evaluation mode meanwhile; the tokenizer is
            not changed.
        prompts: Texts of one user turn, or whole chats.
        max_new_tokens: Longest answer (tokens), and at most half of the model's context. A prompt
            that leaves no room for it loses its middle (`probes.rendering.render`).
        batch_tokens: Tokens of prompts and answers, padding included, that are in memory at a time.
            Halved whenever the accelerator is out of memory.
        temperature: 0 always takes the likeliest token. Above, tokens are drawn: Qi et al. 2024
            (arXiv 2310.03693) use .6.
        top_p: Drawn are the likeliest tokens that together have this probability.
        seed: Of the draws. They depend on the prompt's place in the list, not on the batches.
        heard: Called with the logits of the first token of each answer, batch by batch.
        decided: Asked after each token that does not end its answer anyway; where it says so, the
            answer is cut there.
        progress: Show a bar on stderr.

    Raises:
        InputError: An option is out of range, or the chat template cannot render a prompt.
    """
    check_options(max_new_tokens, batch_tokens, temperature, top_p)
    rows, new = rendered(chat, prompts, max_new_tokens)
    uniform = torch.rand(len(rows), new, generator=torch.Generator().manual_seed(seed))
    pad, stops = pad_id(chat.tokenizer), frozenset(stops_of(chat))
    made = [""] * len(rows)
    text = partial(text_of, chat.tokenizer)

    def answer(batch: list[int]) -> None:
        early = None if decided is None else partial(_early, text, decided, batch)
        ending = Ending(new, stops, early)
        choose = Nucleus(temperature, top_p, uniform[batch]) if temperature else likeliest
        first = partial(heard, batch) if heard else None
        asked = [rows[i] for i in batch]
        if decoder is not None:
            found = decoder.decode(asked, ending, choose=choose, heard=first)
        else:
            found = _generate(chat.model, asked, ending, choose, first, pad)
        for i, ids in zip(batch, found, strict=True):
            made[i] = text(ids)

    bar = tqdm(total=len(rows), unit="answer", disable=not progress)
    with bar, reading(chat.model), head_read_once(chat.model):
        longest = max((len(row.ids) for row in rows), default=0) + new
        decoder = Decoder.of(chat.model, rows, pad=pad) if suits(chat.model, longest) else None
        in_batches(
            rows,
            answer,
            token_budget=batch_tokens,
            new_tokens=new,
            alike=ALIKE,
            on_batch=bar.update,
        )
    return made


def check_options(max_new_tokens: int, batch_tokens: int, temperature: float, top_p: float) -> None:
    """Raise InputError for what is out of range."""
    if max_new_tokens < 1 or batch_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"max_new_tokens {max_new_tokens}, batch_tokens {batch_tokens}, temperature "
            f"{temperature}, top_p {top_p}: the first two must be at least 1, the temperature not "
            "negative, and top_p within (0, 1]"
        )


def rendered(
    chat: ChatModel, prompts: Sequence[str | Sequence[Message]], max_new_tokens: int
) -> tuple[list[Rendered], int]:
    """The prompts, with room for answers; and how long these may be (tokens)."""
    limit = context_length(chat.model)
    new = max_new_tokens if limit is None else min(max_new_tokens, limit // 2)
    most = None if limit is None else limit - new
    return [render(chat.tokenizer, _chat(one), max_length=most) for one in prompts], new


def text_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """What the tokens of an answer say."""
    return str(
        tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    )


def _early(
    text: Callable[[Sequence[int]], str],
    decided: Decided,
    batch: Sequence[int],
    row: int,
    ids: Sequence[int],
) -> bool:
    """`Ending.early`, for those who read text."""
    so_far = text(ids)
    return not so_far.endswith(UNFINISHED) and decided(batch[row], so_far)


def _chat(prompt: str | Sequence[Message]) -> Sequence[Message]:
    return [Message(role="user", content=prompt)] if isinstance(prompt, str) else prompt


def _generate(
    model: nn.Module,
    rows: Sequence[Rendered],
    ending: Ending,
    choose: Choose,
    heard: Callable[[Tensor], None] | None,
    pad: int,
) -> list[list[int]]:
    """As `Decoder.decode`, by transformers' own loop, which knows every model."""
    device = input_device(model)
    ids, mask = padded(rows, pad, "left")
    config = GenerationConfig(
        max_new_tokens=ending.new,
        do_sample=False,  # `_Chosen` leaves one token to choose
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=sorted(ending.stops) or None,
        pad_token_id=pad,
    )
    made: list[list[int]] = [[] for _ in rows]
    cast(Any, model).generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=LogitsProcessorList([_Chosen(choose, heard)]),
        stopping_criteria=StoppingCriteriaList([_Ended(ending, made)]),
    )
    return made


@contextmanager
def head_read_once(model: nn.Module) -> Iterator[None]:
    """Where the head is frozen, torch would copy it for each prompt.

    The last token's hidden states are a slice, and a linear map of a slice is taken as a batch of
    products, one copy of the weights for each (`should_fold` in ATen's LinearAlgebra.cpp).
    """
    head = cast(Any, model).get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    try:
        yield
    finally:
        handle.remove()


class _Chosen(LogitsProcessor):
    """Logits that leave one token possible, the chosen one. Called once a step."""

    def __init__(self, choose: Choose, heard: Callable[[Tensor], None] | None) -> None:
        self._choose, self._heard, self._step = choose, heard, 0

    def __call__(
        self,
        input_ids: Int[Tensor, "batch token"],  # noqa: ARG002
        scores: Float[Tensor, "batch vocab"],
    ) -> Float[Tensor, "batch vocab"]:
        """Tells of the first logits, too."""
        if self._step == 0 and self._heard is not None:
            self._heard(scores)
        token = self._choose(scores, range(len(scores)), self._step)[:, None]
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


class _Ended(StoppingCriteria):
    """Collects the answers' tokens as they come, and ends each where it has to."""

    def __init__(self, ending: Ending, made: list[list[int]]) -> None:
        self._ending, self._made = ending, made
        self._done = [False] * len(made)

    def __call__(
        self,
        input_ids: Int[Tensor, "batch token"],
        scores: object,  # noqa: ARG002
        **_: object,
    ) -> Bool[Tensor, "batch"]:
        """Which answers have ended."""
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self._done[row]:  # what is written after the end is padding
                self._done[row] = self._ending.after(row, self._made[row], token)
        return torch.tensor(self._done, device=input_ids.device)


class Nucleus:
    """Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751) by the inverse of the CDF.

    One uniform number for each prompt and step decides, so that an answer does not depend on which
    others are in its batch, and no global random state is read or written.
    """

    def __init__(
        self, temperature: float, top_p: float, uniform: Float[Tensor, "batch step"]
    ) -> None:
        self._temperature, self._top_p, self._uniform = temperature, top_p, uniform

    def __call__(
        self, logits: Float[Tensor, "row vocab"], rows: Sequence[int], step: int
    ) -> Int[Tensor, "row"]:
        """See `decoding.Choose`."""
        u = self._uniform[list(rows), step, None].to(logits.device)
        p, order = (logits.float() / self._temperature).softmax(-1).sort(descending=True)
        below = p.cumsum(-1) - p
        kept = below < self._top_p
        mass = (p * kept).sum(-1, keepdim=True)
        rank = ((below + p <= u * mass) & kept).sum(-1, keepdim=True)
        rank = rank.minimum(kept.sum(-1, keepdim=True) - 1)  # where rounding ran past the end
        return order.gather(-1, rank)[:, 0]
