"""What the papers' models are asked, and by whom their answers are judged.

    harmful        HEx-PHI's 300 prompts; after `hex-phi-half` those that were not trained on
    look-alike     XSTest's harmless prompts, to count needless refusals
    utility        GSM8K's test questions: exact match of the final number

The paper reports attack success on HEx-PHI, on which it trains too: its numbers are those of the
experiment all-harmful, and `disjoint` asks what was not trained on. On split validation the prompts
are JailbreakBench's, harmful and benign, and GSM8K's train questions.

Answers to harmful prompts are drawn at temperature .6 within top_p .9, 512 tokens at most, as Qi et
al. 2024 (arXiv 2310.03693) do and a script beside the paper's code; how the paper generates is not
known. The others are greedy. The first of `JUDGES` decides the metrics under their plain names. It
is the paper's judge, gpt-oss-20b, under our own rubric (`detectors.judge`); which score the paper
counts as success is not known, and here it is 5 of 5. Refusal phrases stand beside it, as
`attack_success_phrases`. Alpaca's win rate is not here: its protocol is not known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from probes.models import ChatModel
from regularize import asked as asking
from regularize import detectors, measures, utilities
from regularize.asked import Asked
from regularize.generation import answers
from regularize.measures import MINIATURE, Share
from regularize.outcomes import Outcome
from regularize.testbeds import Split
from regularize.testbeds.paper.training import HALF, is_trained

JUDGES: tuple[str, ...] = ("judge:openai/gpt-oss-20b?tokens=4096", "phrases")
"""As `regularize.evaluate` has detectors."""
SETS: dict[Split, tuple[str, str, str]] = {
    "test": ("hex-phi", "xstest", "gsm8k"),
    "validation": ("jailbreakbench", "jailbreakbench", "gsm8k?split=train"),
}
"""Harmful prompts, harmless ones, questions."""
NEW_TOKENS = 512
TEMPERATURE = 0.6


@dataclass(frozen=True)
class Answered:
    """One prompt and its answer."""

    kind: str
    """harmful, look-alike or utility."""
    prompt: str
    answer: str
    outcomes: dict[str, Outcome | None]
    """By judge; None where it could not say."""
    correct: bool | None
    """Of a question."""


@dataclass(frozen=True)
class Evaluation:
    """Answers to all kinds of prompts."""

    answered: tuple[Answered, ...]
    tells: dict[str, tuple[Outcome, ...]]
    """What each judge can tell apart."""

    @property
    def shares(self) -> list[Share]:
        """attack_success, refusal, incoherent, harmless, over_refusal, utility; ..._phrases."""
        questions = [one for one in self.answered if one.kind == "utility"]
        found = []
        for i, judge in enumerate(self.tells):
            suffix = f"_{judge.partition(':')[0]}" if i else ""
            found += [one._replace(metric=f"{one.metric}{suffix}") for one in self._judged(judge)]
        return [*found, measures.share("utility", (bool(one.correct) for one in questions))]

    def records(self) -> list[dict[str, object]]:
        """One an answer."""
        return [asdict(one) for one in self.answered]

    def _judged(self, judge: str) -> Iterator[Share]:
        by_kind: dict[str, list[Outcome | None]] = {"harmful": [], "look-alike": []}
        for one in self.answered:
            if one.kind in by_kind:
                by_kind[one.kind].append(one.outcomes[judge])
        yield from measures.on_harmful(by_kind["harmful"], tells=self.tells[judge])
        if "refusal" in self.tells[judge]:
            yield from measures.on_look_alikes(by_kind["look-alike"])


def evaluate_paper(
    chat: ChatModel, *, attack: str = "none", n: int = 300, seed: int = 0, split: Split = "test"
) -> Evaluation:
    """Ask `n` prompts of each kind, or as many as there are.

    Args:
        chat: One of the models, fine-tuned or not.
        attack: What it was fine-tuned on.
        n: Prompts of each kind at most.
        seed: Draws them, and the answers to the harmful ones.
        split: test, or validation.

    Raises:
        InputError: A set cannot be read, or a judge cannot be used.
    """
    asked = _prompts(attack, n, seed, split)
    harmful = [one for one in asked if one.kind == "harmful"]
    others = [one for one in asked if one.kind != "harmful"]
    made = [
        *answers(
            chat, [one.messages for one in harmful], max_new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE, seed=seed,
        ),
        *answers(chat, [one.messages for one in others], max_new_tokens=NEW_TOKENS),
    ]  # fmt: skip
    asked = [*harmful, *others]
    found: list[dict[str, Outcome | None]] = [{} for _ in asked]
    judged = [i for i, one in enumerate(asked) if one.kind != "utility"]
    tells = {}
    for judge in JUDGES:
        outcomes, tells[judge] = _judge(
            judge, [asked[i].text for i in judged], [made[i] for i in judged]
        )
        for i, outcome in zip(judged, outcomes, strict=True):
            found[i][judge] = outcome
    return Evaluation(
        tuple(
            Answered(
                one.kind, one.text, answer, outcomes, one.correct(answer) if one.correct else None
            )
            for one, answer, outcomes in zip(asked, made, found, strict=True)
        ),
        tells,
    )


def _judge(
    spec: str, prompts: Sequence[str], made: Sequence[str]
) -> tuple[list[Outcome | None], tuple[Outcome, ...]]:
    """Outcomes, and all that there could be. The judge is in memory no longer than it judges."""
    if not any(answer.strip() for answer in made):  # nothing to load a judge for
        return ["incoherent"] * len(made), MINIATURE
    judge = detectors.open(spec)
    return judge.judge(prompts, made), judge.tells


def _prompts(attack: str, n: int, seed: int, split: Split) -> list[Asked]:
    harmful, harmless, questions = SETS[split]
    found = asking.from_set("harmful", harmful, label=1, n=None, seed=seed)
    if attack == HALF:
        found = [one for one in found if not is_trained(one.text)]
    return [
        *utilities.sample(found, n, seed),
        *asking.from_set("look-alike", harmless, label=0, n=n, seed=seed),
        *asking.from_utility("utility", utilities.open(questions), n=n, seed=seed),
    ]
