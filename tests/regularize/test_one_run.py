"""One run of a comparison: what its arms share is made once."""

from __future__ import annotations

from pathlib import Path

import pytest

from probes.models import ChatModel
from probes.prompts import Message
from regularize import anchors as anchoring
from regularize import one_run
from tests.conftest import make_model, make_tokenizer

PROMPTS = [(Message(role="user", content=f"say word {i}"),) for i in range(5)]


def chat(seed: int = 0) -> ChatModel:
    return ChatModel("tiny", None, make_model("llama", n_layers=1, seed=seed), make_tokenizer())


def test_anchors_are_answered_once_for_all_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    own = anchoring.answered

    def counted(model: ChatModel, prompts: list, **options: int) -> list:
        asked.append(f"{len(prompts)} prompts, {options['max_new_tokens']} tokens")
        return own(model, prompts, **options)

    monkeypatch.setattr(anchoring, "answered", counted)
    first = one_run._answered(chat(), PROMPTS, 4, tmp_path)
    again = one_run._answered(chat(), PROMPTS, 4, tmp_path)
    assert asked == ["5 prompts, 4 tokens"]
    wanted = own(chat(), PROMPTS, max_new_tokens=4)
    for found in (first, again):
        assert [(one.prompt, one.answer) for one in found] == [
            (one.prompt, one.answer) for one in wanted
        ]
    assert wanted, "a model that leaves all unanswered would show nothing"

    one_run._answered(chat(), PROMPTS[:4], 4, tmp_path)
    one_run._answered(chat(), PROMPTS, 3, tmp_path)
    one_run._answered(chat(seed=1), PROMPTS, 4, tmp_path)
    assert asked[1:] == ["4 prompts, 4 tokens", "5 prompts, 3 tokens", "5 prompts, 4 tokens"]
