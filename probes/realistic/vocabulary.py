"""A vocabulary cut to what is in use, so that a small model's head stops mattering.

Gemma 3 270M spends 168 of its 268 million parameters on 262,144 tokens. Cut to those that a body of
texts needs, it is the same function of such texts:

- **Same tokens.** Byte-pair encoding always applies the applicable merge of the lowest rank. With a
  token everything that it is merged from is kept, so the choice among fewer merges is the same at
  every step, and a text whose tokens are all kept is encoded as before. Any other text is
  encoded too, in smaller pieces, down to bytes.
- **Same logits** of the tokens that are kept. So the probabilities are the whole model's, given
  that the next token is a kept one: each is larger by one factor, 1 / (mass that was kept).
"""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from probes.errors import InputError

BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def kept_ids(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], *, floor: int = 0
) -> list[int]:
    """Ids to keep, ascending: special tokens, bytes, the texts' tokens, and what those come from.

    Args:
        tokenizer: A fast tokenizer whose model is byte-pair encoding.
        texts: What has to be encoded as before.
        floor: The first so many ids are kept too: the vocabulary's most frequent pieces.

    Raises:
        InputError: The tokenizer is of another kind.
    """
    written = _written(tokenizer)
    vocab: dict[str, int] = written["model"]["vocab"]
    token_of = {number: token for token, number in vocab.items()}
    found = set(tokenizer.all_special_ids)
    found |= {vocab[token] for token in _bytes(written) if token in vocab}
    found |= {number for number in token_of if number < floor}
    for ids in tokenizer(list(texts), add_special_tokens=False).input_ids:
        found.update(ids)
    rank = {pair: number for number, pair in enumerate(_merges(written))}
    for number in tuple(found):
        if number in token_of:
            found.update(vocab[part] for part in _comes_from(token_of[number], rank))
    return sorted(found)


def _bytes(written: dict) -> Iterable[str]:
    """The tokens that any text falls back on."""
    if written["model"].get("byte_fallback"):
        return (f"<0x{number:02X}>" for number in range(256))
    return ByteLevel.alphabet()


def _comes_from(token: str, rank: Mapping[tuple[str, str], int]) -> Iterator[str]:
    """The tokens that byte-pair encoding passes through on its way to this one."""
    parts = [token] if BYTE.fullmatch(token) else list(token)
    while len(parts) > 1:
        pairs = list(itertools.pairwise(parts))
        best = min(range(len(pairs)), key=lambda i: rank.get(pairs[i], len(rank)))
        if pairs[best] not in rank:
            return  # an added token, which is looked up whole
        yield from pairs[best]
        parts[best : best + 2] = ["".join(pairs[best])]


def cut(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The same model with these tokens alone, renumbered in their order, and its tokenizer.

    Args:
        model: A decoder-only language model.
        tokenizer: Its tokenizer.
        ids: From `kept_ids`.

    Raises:
        InputError: The tokenizer is no byte-pair encoding.
    """
    new = {old: number for number, old in enumerate(ids)}
    return _cut_model(model, ids, new), _cut_tokenizer(tokenizer, new)


def _cut_model(model: PreTrainedModel, ids: Sequence[int], new: dict[int, int]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.vocab_size = len(ids)
    _renumber(config, new)
    if hasattr(config, "quantization_config"):  # these weights are no longer those of a GGUF file
        del config.quantization_config
    rows = torch.as_tensor(list(ids))
    ends: Any = (model.get_input_embeddings(), model.get_output_embeddings())
    by_token = {id(parameter) for end in ends for parameter in end.parameters()}
    state = {
        name: value.detach()[rows] if id(value) in by_token else value
        for name, value in model.state_dict(keep_vars=True).items()
    }
    small: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    small.load_state_dict(state)
    small.generation_config = copy.deepcopy(model.generation_config)
    _renumber(small.generation_config, new)
    return small.eval()


def _renumber(config: Any, new: Mapping[int, int]) -> None:
    """Of several tokens that end a turn, those that are kept."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old = getattr(config, name, None)
        if isinstance(old, list):
            setattr(config, name, [new[one] for one in old if one in new])
        elif old is not None:
            setattr(config, name, new.get(old))


def _cut_tokenizer(
    tokenizer: PreTrainedTokenizerBase, new: dict[int, int]
) -> PreTrainedTokenizerFast:
    written = _written(tokenizer)
    vocab = {token: new[old] for token, old in written["model"]["vocab"].items() if old in new}
    written["model"]["vocab"] = vocab
    written["model"]["merges"] = [
        [left, right]
        for left, right in _merges(written)
        if left in vocab and right in vocab and left + right in vocab
    ]
    written["added_tokens"] = [
        {**added, "id": new[added["id"]]} for added in written["added_tokens"] if added["id"] in new
    ]
    for special in _specials(written["post_processor"] or {}):
        special["ids"] = [new[one] for one in special["ids"]]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(written)),
        chat_template=tokenizer.chat_template,
        padding_side=tokenizer.padding_side,
        **tokenizer.special_tokens_map,
    )


def _specials(processor: dict) -> Iterator[dict]:
    """The special tokens that a post-processor writes, or those that it consists of."""
    yield from processor.get("special_tokens", {}).values()
    for part in processor.get("processors", ()):
        yield from _specials(part)


def _written(tokenizer: PreTrainedTokenizerBase) -> dict:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    written = json.loads(backend.to_str()) if backend is not None else {"model": {"type": "slow"}}
    if written["model"]["type"] != "BPE":
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer is no byte-pair encoding, and only such a "
            "vocabulary can be cut without changing how texts are encoded"
        )
    return written


def _merges(written: dict) -> list[tuple[str, str]]:
    """Pairs, however this release of the library has written them."""
    pairs = (
        pair.split(" ") if isinstance(pair, str) else pair for pair in written["model"]["merges"]
    )
    return [(left, right) for left, right in pairs]
