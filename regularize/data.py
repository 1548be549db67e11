"""Training rows -> token ids, with the answer's tokens as labels.

A row is in trl's conventions: `messages`, whose last message is the answer, or `prompt` and
`completion`, as texts or as chats. It is rendered with the model's own chat template, and the
answer's tokens alone are learnt, with the token that ends the turn. What stands before them is
exactly what a probe reads: the chat rendered with its generation prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from probes import cells, files
from probes.errors import InputError
from probes.files import Row
from probes.prompts import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


IGNORE = -100
"""Label of a token that is not learnt, as everywhere in transformers."""


@dataclass(frozen=True, slots=True)
class Example:
    """A chat and the answer to learn."""

    prompt: tuple[Message, ...]
    """All that comes before the answer; the last message is the user's."""
    answer: str
    where: str
    """File and row, for messages."""
    label: int | None = None
    """1 = harmful, 0 = harmless, where the data say so."""
    risk: float | None = None
    """s in [0, 1], where the data say so."""
    flagged: bool | None = None
    """Whether that lies above the critic's threshold, where the data say so."""

    @property
    def text(self) -> str:
        """What the user said last."""
        return self.prompt[-1]["content"]


class Encoded(NamedTuple):
    """An example as the model reads it."""

    input_ids: list[int]
    labels: list[int]
    """The answer's ids in their places, `IGNORE` before them."""
    shortened: bool
    """Whether the answer's end was cut off."""


def load(spec: str, *, seed: int = 0) -> list[Example]:
    """The training rows of a file, of a data set on the hub, or of a testbed.

    Args:
        spec: A .jsonl, .csv, .tsv or .parquet file; `hub:org/name[:config][:split]`; or
            `TESTBED:NAME`, such as miniature:mixed.
        seed: Draws the rows of what is generated.

    Raises:
        InputError: It cannot be read, or a row is malformed; names file, row and field.
    """
    name, _, rest = spec.partition(":")
    if name == "hub":
        from probes import hub

        path, *pieces = rest.split(":")
        config, split = hub.resolve(path, pieces)
        return examples(hub.read(path, config, split))
    from pathlib import Path

    from regularize import testbeds

    if testbed := testbeds.known().get(name):
        return testbed.training(rest, seed=seed)
    return examples(files.read(Path(spec)))


def examples(rows: Iterable[Row | Mapping[str, object]]) -> list[Example]:
    """Rows as examples; a row that is not from a file (one of `datasets`) is named by its number.

    Raises:
        InputError: A row is malformed; names file, row and field.
    """
    placed = (
        row if isinstance(row, Row) else Row("train_dataset", f"row {i}", i, row)
        for i, row in enumerate(rows)
    )
    return [_example(row) for row in placed]


def encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, *, max_length: int | None = None
) -> Encoded:
    """Render one example and mark its answer.

    Args:
        example: The chat and its answer.
        tokenizer: The model's own, with a chat template.
        max_length: Most tokens; an answer that goes on beyond loses its end.

    Raises:
        InputError: The template cannot render it, the answer has no token, or none within
            `max_length`. Names the row.
    """
    from probes.rendering import PLACEHOLDER, answered_ids, render

    def answered_with(text: str) -> list[int]:
        reply = Message(role="assistant", content=text)
        return answered_ids(tokenizer, [*example.prompt, reply])

    try:
        prompt = list(render(tokenizer, example.prompt).ids)
        whole = answered_with(example.answer)
        ending, after = _end_of_turn(answered_with(PLACEHOLDER), tokenizer)
    except InputError as error:
        raise InputError(f"{example.where}: {error}") from error
    if whole[: len(prompt)] != prompt:
        # A template that writes the generation prompt otherwise once it is answered (thinking
        # marks): the answer follows what the model will see when it is asked.
        answer = list(tokenizer(example.answer, add_special_tokens=False)["input_ids"])
        answer += [] if ending is None else [ending]
    else:
        answer = whole[len(prompt) : len(whole) - after]
    if ending is None:  # as in base models' templates
        answer = _without_blank_end(answer, tokenizer)
        answer += [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if not str(tokenizer.decode(answer, skip_special_tokens=True)).strip():
        raise InputError(f"{example.where}: the answer has no token that could be learnt")
    room = len(answer) if max_length is None else max_length - len(prompt)
    if room < 1:
        raise InputError(
            f"{example.where}: the prompt takes {len(prompt)} tokens, so that --max-length "
            f"{max_length} cuts the whole answer away; give at least {len(prompt) + 1}, or leave "
            "the row out"
        )
    kept = answer[:room]
    return Encoded(prompt + kept, [IGNORE] * len(prompt) + kept, len(kept) < len(answer))


def supervised(encoded: Encoded, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that is learnt, special tokens and all, for a person to look at."""
    return str(tokenizer.decode([label for label in encoded.labels if label != IGNORE]))


def harmful_share(examples: Sequence[Example]) -> float:
    """Share of the rows that are labelled harmful; NaN where a row has no label."""
    labels = [example.label for example in examples]
    known = [label for label in labels if label is not None]
    return sum(known) / len(known) if known and len(known) == len(labels) else float("nan")


def _end_of_turn(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[int | None, int]:
    """The special token that ends an answered chat's last turn, and how many stand after it.

    There generation stops, and nothing more is learnt, though templates write more (a newline,
    another end of text).
    """
    # Phi-3.5's <|end|> is special, but none of `all_special_ids`.
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    end = len(ids)
    while end and (ids[end - 1] in special or _is_blank(ids[end - 1], tokenizer)):
        end -= 1
    at = next((i for i in range(end, len(ids)) if ids[i] in special), None)
    return (None, 0) if at is None else (ids[at], len(ids) - at - 1)


def _without_blank_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    end = len(ids)
    while end and _is_blank(ids[end - 1], tokenizer):
        end -= 1
    return ids[:end]


def _is_blank(token: int, tokenizer: PreTrainedTokenizerBase) -> bool:
    return not str(tokenizer.decode([token])).strip()


def _example(row: Row) -> Example:
    prompt, answer = _messages(row) if "messages" in row else _prompt_and_completion(row)
    risk, flagged = row.cells.get("risk"), row.cells.get("flagged")
    return Example(
        tuple(prompt),
        answer,
        f"{row.file}, {row.number}",
        _label(row),
        None if risk in (None, "") else _risk(risk, row.at("risk")),
        None if flagged in (None, "") else bool(cells.label(flagged, row.at("flagged"))),
    )


def _label(row: Row) -> int | None:
    """1 or 0 where the field `label` says so: other data's labels may speak of something else."""
    try:
        return cells.label(row.cells.get("label"), row.at("label"))
    except InputError:
        return None


def _prompt(row: Row) -> Sequence[Message]:
    if "messages" in row:
        return cells.messages(row["messages"], row.at("messages"))
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return [Message(role="user", content=cells.text(prompt, row.at("prompt")))]
    return cells.messages(prompt, row.at("prompt"))


def _messages(row: Row) -> tuple[Sequence[Message], str]:
    place = row.at("messages")
    chat = cells.turns(row["messages"], place)
    if chat[-1]["role"] != "assistant":
        raise InputError(
            f"{place}: the last message is the {chat[-1]['role']}'s; it must be the assistant's, "
            "for that is the answer to learn"
        )
    return cells.messages(chat[:-1], place), chat[-1]["content"]


def _prompt_and_completion(row: Row) -> tuple[Sequence[Message], str]:
    for field in ("prompt", "completion"):
        if field not in row:
            raise InputError(
                f"{row.file}, {row.number}: needs 'messages', or 'prompt' and 'completion'; it has "
                f"{', '.join(map(repr, row.cells)) or 'nothing'}"
            )
    chat, completion = _prompt(row), row["completion"]
    if isinstance(completion, str):
        return chat, cells.text(completion, row.at("completion"))
    turns = cells.turns(completion, row.at("completion"))
    if [turn["role"] for turn in turns] != ["assistant"]:
        raise InputError(
            f"{row.at('completion')}: one message of the assistant is needed, these are of: "
            f"{', '.join(turn['role'] for turn in turns)}"
        )
    return chat, turns[0]["content"]


def _risk(value: Any, place: str) -> float:
    try:
        risk = float(value)
    except (TypeError, ValueError):
        risk = float("nan")
    if not 0 <= risk <= 1:
        raise InputError(f"{place}: the risk is {value!r}; it must be a number from 0 to 1")
    return risk
