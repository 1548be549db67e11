"""What the arms of a comparison share is found once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from probes.models import ChatModel
from probes.prompts import Message
from regularize import anchors as anchoring
from regularize import remembered
from regularize.critics import Critic, Risks
from regularize.data import Example, examples
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
    first = remembered.answered(chat(), PROMPTS, 4, tmp_path)
    again = remembered.answered(chat(), PROMPTS, 4, tmp_path)
    assert asked == ["5 prompts, 4 tokens"]
    wanted = own(chat(), PROMPTS, max_new_tokens=4)
    for found in (first, again):
        assert [(one.prompt, one.answer) for one in found] == [
            (one.prompt, one.answer) for one in wanted
        ]
    assert wanted, "a model that leaves all unanswered would show nothing"

    remembered.answered(chat(), PROMPTS[:4], 4, tmp_path)
    remembered.answered(chat(), PROMPTS, 3, tmp_path)
    remembered.answered(chat(seed=1), PROMPTS, 4, tmp_path)
    assert asked[1:] == ["4 prompts, 4 tokens", "5 prompts, 3 tokens", "5 prompts, 4 tokens"]


ASKED: list[str] = []


@dataclass(frozen=True)
class Counted(Critic):
    scale: float = 1.0
    path: str | None = None
    flags: bool = True

    def assess(self, examples: Sequence[Example], chat: ChatModel) -> Risks:
        ASKED.append(chat.name)
        s = np.array([len(one.text) * self.scale / 1000 for one in examples]) / 3
        return Risks(s, s > s.mean() if self.flags else None)


ROWS = examples([{"prompt": f"say {'so ' * i}", "completion": "so"} for i in range(1, 5)])


@pytest.mark.parametrize("flags", [True, False])
def test_risks_are_assessed_once_and_read_back_to_the_last_bit(tmp_path: Path, flags: bool) -> None:
    ASKED.clear()
    critic = Counted(flags=flags)
    wanted = critic.assess(ROWS, chat())
    found = [remembered.Remembered(critic, tmp_path).assess(ROWS, chat()) for _ in range(2)]
    assert len(ASKED) == 2
    for one in found:
        assert one.s.dtype == np.float64
        assert one.s.tolist() == wanted.s.tolist()
        if flags:
            assert wanted.flagged is not None and one.flagged is not None
            assert one.flagged.dtype == bool
            assert one.flagged.tolist() == wanted.flagged.tolist()
        else:
            assert one.flagged is None


def test_risks_of_anything_else_are_assessed_anew(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    (probe / "config.json").write_text("{}")
    ASKED.clear()

    def assess(critic: Critic, rows: Sequence[Example] = ROWS, seed: int = 0) -> None:
        remembered.Remembered(critic, tmp_path).assess(rows, chat(seed))

    of_probe = Counted(path=str(probe))
    assess(of_probe)
    assess(of_probe)
    assert len(ASKED) == 1
    assess(of_probe, ROWS[1:])
    assess(of_probe, seed=1)
    assess(Counted(2.0, path=str(probe)))
    (probe / "config.json").write_text('{"fitted": "anew"}')
    assess(of_probe)
    assert len(ASKED) == 5
