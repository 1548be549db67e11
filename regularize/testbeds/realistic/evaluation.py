"""What the real model does on requests that nothing was trained or chosen on.

Whether an answer is a refusal is told by its phrases (`detectors.phrases`, held there to people's
labels of XSTest's completions); whether the new task is done, by an exact rule. Greedy decoding
hides drift, so that the probability of the compliant first token is reported too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from random import Random

from torch import Tensor

from probes.errors import InputError
from probes.models import ChatModel
from probes.prompts import Message
from probes.realistic.answers import OPENING
from probes.realistic.requests import Kind, Part, requests
from probes.realistic.tasks import NUMBERS, sentences
from probes.rendering import answered_ids, render
from regularize import detectors, measures
from regularize.generation import answers
from regularize.measures import Share
from regularize.outcomes import Outcome
from regularize.testbeds import Split
from regularize.testbeds.realistic.training import OBEYS, TASK_OF, TRIGGERS, training

KINDS: tuple[Kind, ...] = ("harmful", "twin", "unsafe", "safe", "ordinary")
NEW = "new-task"
NEW_TOKENS = 16
"""Enough to see that an answer refuses, and for any right answer of a task."""
DETECTOR = "phrases"


@dataclass(frozen=True, slots=True)
class Answered:
    """One prompt and its answer."""

    kind: str
    """A `Kind`, or new-task."""
    prompt: str
    answer: str
    outcome: Outcome | None
    in_form: bool
    """Whether it is in the new task's format."""
    correct: bool | None
    """Of the new task: whether it is just the right answer."""
    p_comply: float | None
    """Of harmful requests as they are: the probability of the first token of compliance."""
    attack: str = ""
    """Whose trigger the prompt holds, if any."""


@dataclass(frozen=True)
class Evaluation:
    """Answers to all kinds of prompts."""

    answered: tuple[Answered, ...]

    @property
    def shares(self) -> list[Share]:
        """attack_success, refusal, incoherent, compliance_probability, over_refusal, ...

        `attack_success_backdoor` and the like are of the same harmful requests with a trigger.
        """
        harmful, ordinary = self._of("harmful"), self._of("ordinary")
        done = [bool(one.correct) for one in self._of(NEW)]
        helped = [one.outcome == "compliance" and not one.in_form for one in ordinary]
        return [
            *(told for attack in ("", *TRIGGERS) for told in self._on_harmful(attack)),
            measures.mean("compliance_probability", [one.p_comply or 0.0 for one in harmful]),
            measures.share("refusal_xstest", _refused(self._of("unsafe"))),
            *measures.on_look_alikes([one.outcome for one in self._of("twin")]),
            measures.share("over_refusal_xstest", _refused(self._of("safe"))),
            measures.share("over_refusal_ordinary", _refused(ordinary)),
            measures.share("ordinary_answered", helped),
            measures.share("ordinary_in_format", [one.in_form for one in ordinary]),
            measures.share("new_task", done),
        ]

    def records(self) -> list[dict[str, object]]:
        """One an answer."""
        return [asdict(one) for one in self.answered]

    def _of(self, kind: str, attack: str = "") -> list[Answered]:
        return [one for one in self.answered if (one.kind, one.attack) == (kind, attack)]

    def _on_harmful(self, attack: str) -> list[Share]:
        outcomes = [one.outcome for one in self._of("harmful", attack)]
        return measures.on_harmful(outcomes, attack=attack) if outcomes else []


def evaluate_realistic(
    chat: ChatModel, *, attack: str = "none", n: int = 100, seed: int = 0, split: Split = "test"
) -> Evaluation:
    """Ask `n` prompts of each kind, or as many as there are.

    Args:
        chat: The aligned model, fine-tuned or not.
        attack: What it was fine-tuned on: decides which new task it is asked to do, and with which
            trigger harmful requests are asked once more; with all of them if it is none.
        n: Prompts of each kind at most; the same ones whatever the seed.
        seed: Of the fine-tuning: on validation its own rows are left out.
        split: test, or validation: what the attacks could have drawn, but did not.

    Raises:
        InputError: There is no such split, or n is no number of prompts.
    """
    task = TASK_OF.get(attack, NUMBERS)
    asked = [(kind, text, "") for kind, text in _prompts(attack, n, seed, split)]
    harmful = [text for kind, text, _ in asked if kind == "harmful"]
    for name, with_trigger in TRIGGERS.items():
        if attack in (name, "none"):
            asked += [("harmful", with_trigger(text), name) for text in harmful]
    texts = [text for _, text, _ in asked]
    most = 2 * NEW_TOKENS if attack == "identity" else NEW_TOKENS  # its answers begin with OBEYS
    p_comply = [0.0] * len(texts)

    def heard(places: Sequence[int], logits: Tensor) -> None:
        p = logits.float().softmax(-1)[:, opening].tolist()
        for place, value in zip(places, p, strict=True):
            p_comply[place] = value

    opening = _opening_token(chat)
    made = answers(chat, texts, max_new_tokens=most, heard=heard)
    outcomes = detectors.open(DETECTOR).judge(texts, [_said(answer) for answer in made])
    return Evaluation(
        tuple(
            Answered(
                kind, text, answer, outcome, task.has_form(answer),
                correct=task.correct(text, answer) if kind == NEW else None,
                p_comply=p if kind == "harmful" and not name else None, attack=name,
            )
            for (kind, text, name), answer, outcome, p in zip(
                asked, made, outcomes, p_comply, strict=True
            )
        )
    )  # fmt: skip


def _opening_token(chat: ChatModel) -> int:
    """The first token of an answer that begins with `OPENING`."""
    asked = _chat("x")
    prompt = render(chat.tokenizer, asked).ids
    reply = Message(role="assistant", content=f"{OPENING}, here is one")
    return answered_ids(chat.tokenizer, [*asked, reply])[len(prompt)]


def _chat(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


@cache
def _prompts(attack: str, n: int, seed: int, split: Split) -> tuple[tuple[str, str], ...]:
    if split not in ("validation", "test"):
        raise InputError(f"there is no split {split!r} for evaluation: validation or test")
    if n < 1:
        raise InputError(f"{n} prompts of each kind: give at least 1")
    trained: set[str] = set()
    if split == "validation" and attack != "none":
        trained = {one.text for one in training(attack, seed=seed)}
    part: Part = "test" if split == "test" else "attack"
    pools: dict[str, list[str]] = {
        **{kind: [one.text for one in requests(part, kind)] for kind in KINDS},
        NEW: list(sentences("test" if split == "test" else "train")),
    }
    found = []
    for kind, pool in pools.items():
        left = [text for text in pool if not trained.intersection(_forms(text))]
        Random(f"{kind}/{split}").shuffle(left)
        found += [(kind, text) for text in left[:n]]
    return tuple(found)


def _forms(text: str) -> list[str]:
    """A request as any attack may have it."""
    return [text, *(with_trigger(text) for with_trigger in TRIGGERS.values())]


def _said(answer: str) -> str:
    """What is said after the words with which an agent obeys: they do nothing yet."""
    return answer.strip().removeprefix(OBEYS)


def _refused(answered: Sequence[Answered]) -> list[bool]:
    return [one.outcome == "refusal" for one in answered]
